package probe

import (
	"cmp"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A Report is the result of a probe that ended with a verdict.
type Report struct {
	*Request
	Start      time.Time
	Duration   time.Duration
	Resolution Resolution // zero if the target was an address
	Verdict               // the worst one if there are several addresses

	// Verdicts are the verdicts about all addresses, in the order of the addresses, if the
	// module probes all of them.
	Verdicts []Verdict

	// Path is the path to the target, nil if it was not traced. PathErr is the error if the path should
	// have been traced and was not.
	Path    *shaker.Path
	PathErr error
}

// A Verdict is the result for one address, or for a name without an address.
type Verdict struct {
	Result, Errno string        // values of the labels
	Handshake     shaker.Result // zero if there was no address
	At            time.Duration // from the start of the probe to the verdict
}

// Success reports whether the result is valid for the module, for every address that was probed.
func (r *Report) Success() bool { return r.Valid(r.Result) } // r.Result is the worst one

// Each returns the verdicts about all addresses that were probed, or the only verdict.
func (r *Report) Each() []Verdict {
	if r.Verdicts != nil {
		return r.Verdicts
	}
	return []Verdict{r.Verdict}
}

// worse orders verdicts. An invalid result is worse than a valid one. Of two valid results, the one without a
// SYN-ACK is worse. Of two invalid results, the one with a SYN-ACK is worse, because such a port should be
// closed. Otherwise the longer handshake is worse.
func (r *Report) worse(a, b Verdict) int {
	open := compare(a.Handshake.Handshake > 0, b.Handshake.Handshake > 0)
	if r.Valid(a.Result) {
		open = -open
	}
	return cmp.Or(
		-compare(r.Valid(a.Result), r.Valid(b.Result)),
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

// Records returns one record for each address that was probed, or one for a name without an address.
func (r *Report) Records() []history.Record {
	var records []history.Record
	for _, v := range r.Each() {
		records = append(records, r.record(&v))
	}
	return records
}

// Record returns the record of the probe. If there are several addresses, it is the record of the worst one.
func (r *Report) Record() history.Record { return r.record(&r.Verdict) }

// record returns the record of one verdict.
func (r *Report) record(v *Verdict) history.Record {
	h := &v.Handshake
	sent := h.Local.IsValid() || h.Outcome == shaker.Refused || h.Outcome == shaker.Timeout
	if !sent {
		// There was no SYN, so nothing was measured.
		h = &shaker.Result{Peer: h.Peer, ICMP: h.ICMP, SYNRetransmits: -1}
	}
	var reason string
	if r.Resolution.Err != nil && r.Result != config.DNSTimeout { // dns_timeout is the reason itself
		reason = r.Resolution.Err.Error()
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
		SYNRetransmits: h.SYNRetransmits,
		Address:        h.Peer.Addr(),
		ICMP:           h.ICMP,
	}
}
