package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A Report is the result of a probe that ended with a verdict.
type Report struct {
	*Request
	Start      time.Time
	Duration   time.Duration
	Resolution Resolution // zero if the target was an address
	Verdict               // the worst one if there are several

	// Verdicts are the verdicts about all addresses, in the order of the addresses, if the
	// module probes all of them. Unknown is one more verdict, about the addresses that are not known because
	// name resolution failed for one IP version; nil if it did not.
	Verdicts []Verdict
	Unknown  *Verdict

	// Path is the path to the target, nil if it was not traced, or not to its end. PathErr is the error if
	// the path should have been traced.
	Path    *shaker.Path
	PathErr error

	// Parting is where flows that fail part from those that do not: most of those that were traced, if there are
	// several such places. It is nil if not both kinds were traced, or if the traces do not show it.
	Parting *Parting

	// FlowPaths are the paths of all flows of the verdict, in the order of their ports; nil unless
	// [Request.TraceFlows] was called.
	FlowPaths []FlowPath
}

// A Resolution is what the probe found out about the addresses of a name. If its first addresses were enough, the
// probe did not wait for the rest.
type Resolution struct {
	Addrs   []netip.Addr
	Took    time.Duration
	LeftOut []error // one for each address that was not probed, although it is one of the addresses to choose from

	// Silent are the DNS servers that did not reply in their share of the time, so that another query was sent.
	Silent []string
}

// A Verdict is the result for one address, or for a name without an address.
type Verdict struct {
	Result, Errno string        // values of the labels
	Err           error         // why the result is about name resolution, nil if it is about an address
	Handshake     shaker.Result // zero if there was no address
	At            time.Duration // from the start of the probe to the verdict

	// Flows are the verdicts for the flows of the address, in the order of their ports, of which this is the worst
	// one; nil if the module has no flows.
	Flows []Flow

	// LeftOut are the ports of the flows that were not performed because other programs have them.
	LeftOut []uint16
}

// Success reports whether the result is valid for the module, for every address that was probed.
func (r *Report) Success() bool { return r.Valid(r.Result) } // r.Result is the worst one

// Each returns the verdicts about all addresses, followed by the one about unknown addresses if there is one, or the
// only verdict.
func (r *Report) Each() []Verdict {
	switch {
	case r.Verdicts == nil:
		return []Verdict{r.Verdict}
	case r.Unknown != nil:
		return append(slices.Clone(r.Verdicts), *r.Unknown)
	}
	return r.Verdicts
}

// worse orders verdicts. An invalid result is worse than a valid one, and more flows with an invalid result are worse
// than fewer. Otherwise, of two valid results, the one without a SYN-ACK is worse. Of two invalid results, the one with
// a SYN-ACK is worse, because such a port should be closed. Otherwise the longer handshake is worse.
func (r *Report) worse(a, b Verdict) int {
	open := compare(a.Handshake.Handshake > 0, b.Handshake.Handshake > 0)
	if r.Valid(a.Result) {
		open = -open
	}
	return cmp.Or(
		-compare(r.Valid(a.Result), r.Valid(b.Result)),
		cmp.Compare(len(r.FailedFlows(&a)), len(r.FailedFlows(&b))),
		open,
		cmp.Compare(a.Handshake.Handshake, b.Handshake.Handshake))
}

// compare orders false before true.
func compare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// Records returns one record for each verdict.
func (r *Report) Records() []history.Record {
	var records []history.Record
	for _, v := range r.Each() {
		records = append(records, r.record(&v))
	}
	return records
}

// Record returns the record of the probe. If there are several addresses, it is the record of the worst one.
func (r *Report) Record() history.Record {
	record := r.record(&r.Verdict)
	if record.Flows != nil {
		record.Flows.Others = r.describeOtherFlows()
	}
	return record
}

// describeOtherFlows says how many flows to addresses other than the worst one failed, "" if none did.
func (r *Report) describeOtherFlows() string {
	const most = 3
	var failed []string
	for i := range r.Verdicts {
		v := &r.Verdicts[i]
		if addr := v.Handshake.Peer.Addr(); addr != r.Handshake.Peer.Addr() && len(r.FailedFlows(v)) > 0 {
			failed = append(failed, fmt.Sprintf("%v: %s", addr, DescribeFlows(r.HistoryFlows(v))))
		}
	}
	if more := len(failed) - most; more > 0 {
		failed = append(failed[:most], fmt.Sprintf("and %d more addresses", more))
	}
	return strings.Join(failed, ", ")
}

// Handshakes returns one record for each handshake of a verdict: for each flow, if the module has flows.
func (r *Report) Handshakes(v *Verdict) []history.Record {
	if v.Flows == nil {
		return []history.Record{r.record(v)}
	}
	var records []history.Record
	for i := range v.Flows {
		records = append(records, r.record(&v.Flows[i].Verdict))
	}
	return records
}

// HistoryFlows returns the flows of a verdict for the history, nil if there are none.
func (r *Report) HistoryFlows(v *Verdict) *history.Flows {
	if v.Flows == nil {
		return nil
	}
	flows := &history.Flows{LeftOut: v.LeftOut}
	for _, f := range v.Flows {
		flows.Add(history.Flow{Port: f.Port, Success: r.Valid(f.Result), Result: f.Result, Errno: f.Errno,
			Latency: f.Handshake.Latency()})
	}
	if p := r.Parting; p != nil && v.Handshake.Local == r.Handshake.Local && v.Handshake.Peer == r.Handshake.Peer {
		flows.Traced, flows.Shared, flows.Parted = true, hopOf(p.Shared), hopOf(p.Failed)
	}
	return flows
}

// hopOf returns a hop for the history.
func hopOf(h shaker.Hop) history.Hop { return history.Hop{TTL: h.TTL, Address: h.From} }

// record returns the record of one verdict.
func (r *Report) record(v *Verdict) history.Record {
	h := &v.Handshake
	sent := sentSYN(h)
	if !sent {
		// There was no SYN, so nothing was measured.
		h = &shaker.Result{Peer: h.Peer, ICMP: h.ICMP}
	}
	var reason string
	if v.Err != nil && !errors.Is(v.Err, context.DeadlineExceeded) { // then dns_timeout is the reason itself
		reason = v.Err.Error()
	}
	return history.Record{
		Reason:         reason,
		Time:           r.Start,
		Success:        r.Valid(v.Result),
		Result:         v.Result,
		Errno:          v.Errno,
		Duration:       v.At,
		Handshake:      h.Handshake,
		RTT:            h.RTT,
		Sent:           sent,
		SYNRetransmits: h.SYNs - 1,
		Address:        h.Peer.Addr(),
		ICMP:           h.ICMP,
		Flows:          r.HistoryFlows(v),
	}
}

// sentSYN reports whether a SYN left this host, as far as is known.
func sentSYN(h *shaker.Result) bool {
	return h.Local.IsValid() || h.Outcome == shaker.Refused || h.Outcome == shaker.Timeout
}
