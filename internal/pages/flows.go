package pages

import (
	"fmt"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// A flowCell is the cell of one flow in the strip of a target.
type flowCell struct{ Class, Title string }

// FlowCells returns one cell for each flow of the latest probe, none if the target has no flows.
func (r *row) FlowCells() []flowCell {
	flows := r.Last().Flows
	if flows == nil {
		return nil
	}
	var cells []flowCell
	for _, f := range flows.Each {
		title := fmt.Sprintf("port %d: %s", f.Port, words(f.Result))
		if f.Errno != "" {
			title += fmt.Sprintf(" (%s)", f.Errno)
		}
		if f.Latency > 0 {
			title += fmt.Sprintf(", RTT %s ms", probe.Milliseconds(f.Latency))
		}
		class := "good"
		switch {
		case f.Success:
		case f.Result == "timeout":
			class = "lost"
		default:
			class = "bad"
		}
		cells = append(cells, flowCell{Class: class, Title: title})
	}
	return cells
}

// Flows says which flows of the latest probe failed.
func (r *row) Flows() string { return probe.DescribeFailedFlows(r.Last().Flows) }

// FlowSummary says how many flows of the latest probe failed, to each address if there are several.
func (r *row) FlowSummary() string {
	flows := r.Last().Flows
	text := probe.DescribeFlows(flows)
	if leftOut := probe.DescribeLeftOut(flows); leftOut != "" {
		text += "; " + leftOut
	}
	if flows.Others != "" {
		text += "; " + flows.Others
	}
	return text
}

// FlowParting says where the paths of the flows part, "" if that is not known.
func (r *row) FlowParting() string { return parting(r.Last()) }

// Flows says which flows of the probe failed and where their paths part, "" if it had no flows or none failed, and none
// was left out.
func (r *result) Flows() string { return failedFlows(r.Record) }

// failedFlows says which flows of a record failed or were left out, where their paths part, and how many to other
// addresses failed. It is "" if there are none.
func failedFlows(r *history.Record) string {
	if r.Flows == nil || r.Flows.Failed() == 0 && len(r.Flows.LeftOut) == 0 {
		return ""
	}
	text := probe.DescribeFailedFlows(r.Flows)
	if r.Flows.Failed() == 0 {
		text = probe.DescribeLeftOut(r.Flows)
	}
	if where := parting(r); where != "" {
		text += "; " + where
	}
	if r.Flows.Others != "" {
		text += "; " + r.Flows.Others
	}
	return text
}

// parting says where the paths of the flows of a record part, "" if that is not known.
func parting(r *history.Record) string {
	if r.Flows == nil || !r.Flows.Traced {
		return ""
	}
	return probe.DescribeParting(r.Flows.Shared, r.Flows.Parted)
}

// remark returns what a record says in addition to its result: the reason, and the flows that failed. It is "" if there
// is neither.
func remark(r *history.Record) string {
	flows := failedFlows(r)
	if r.Reason != "" && flows != "" {
		return r.Reason + "; " + flows
	}
	return r.Reason + flows
}
