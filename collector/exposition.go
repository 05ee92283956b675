package collector

import (
	"io"
	"net/http"
	"slices"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// An exposition is the format in which a caller accepts metrics.
type exposition struct {
	accept string // the caller's Accept header
	format expfmt.Format
	kind   expfmt.FormatType
}

var plainText = &exposition{kind: expfmt.TypeTextPlain}

// negotiate returns the exposition that the caller prefers. The callers of an exporter usually send the
// same header each time, so the last result is cached.
func (h *Handler) negotiate(header http.Header) *exposition {
	accept := header.Get("Accept")
	if last := h.exposition.Load(); last != nil && last.accept == accept {
		return last
	}
	format := expfmt.NegotiateAccept(header, expfmt.DefaultOpenMetricsAcceptedFormats()...)
	e := &exposition{accept, format, format.FormatType()}
	h.exposition.Store(e)
	return e
}

// write writes the metric families. No format needs to escape their names.
func (e *exposition) write(w io.Writer, families []*dto.MetricFamily) error {
	switch e.kind {
	case expfmt.TypeTextPlain:
		for _, family := range families {
			if _, err := expfmt.MetricFamilyToText(w, family); err != nil {
				return err
			}
		}
		return nil
	case expfmt.TypeOpenMetrics:
		for _, family := range families {
			if _, err := expfmt.MetricFamilyToOpenMetrics(w, family); err != nil {
				return err
			}
		}
		_, err := expfmt.FinalizeOpenMetrics(w)
		return err
	}
	encoder := expfmt.NewEncoder(w, e.format)
	for _, family := range families {
		if err := encoder.Encode(family); err != nil {
			return err
		}
	}
	if closer, ok := encoder.(expfmt.Closer); ok {
		return closer.Close()
	}
	return nil
}

// WriteOpenMetrics writes the metrics of several probes. Each series has the target and the module as labels.
func WriteOpenMetrics(w io.Writer, reports []*probe.Report) error {
	targetLabel, moduleLabel := "target", "module"
	byName := make(map[string]*dto.MetricFamily)
	var all []*dto.MetricFamily
	for _, report := range reports {
		labels := []*dto.LabelPair{
			{Name: &targetLabel, Value: &report.Text},
			{Name: &moduleLabel, Value: &report.ModuleName},
		}
		var sheet sheet
		sheet.fill(report)
		for _, family := range sheet.families {
			for _, metric := range family.Metric {
				metric.Label = append(slices.Clone(labels), metric.Label...)
			}
			if first := byName[family.GetName()]; first != nil {
				first.Metric = append(first.Metric, family.Metric...)
				continue
			}
			byName[family.GetName()] = family
			all = append(all, family)
		}
	}
	return (&exposition{kind: expfmt.TypeOpenMetrics}).write(w, all)
}
