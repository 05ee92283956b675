package shaker

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"
)

// An Outcome is the verdict about a target, in one word.
type Outcome uint8

// The outcomes of a handshake, and of a [Connection]. New ones will only be added in a new major version, so
// that outcomes can serve as label values.
const (
	// Open: a SYN-ACK arrived.
	Open Outcome = iota + 1
	// Refused: the SYN was answered with an RST or an ICMP port unreachable, or no process
	// was listening and the kernel connected the socket to itself.
	Refused
	// Reset: an RST arrived after the SYN-ACK.
	Reset
	// Timeout: no reply arrived before the deadline.
	Timeout
	// Unreachable: this host or a router has no route to the target.
	Unreachable
	// Prohibited: this host or a router forbids packets to the target.
	Prohibited
	// Failed: any other errno. Its String is "error".
	Failed
	// Closed: the peer has closed its side of a Connection with a FIN. A handshake never has this outcome, nor
	// the next ones.
	Closed
	// Silent: the peer's kernel has acknowledged the data that was sent, and its application has not answered.
	Silent
	// Mismatch: the peer has sent something that is not what was expected, such as a frame that is too long.
	Mismatch
)

var outcomeNames = [...]string{
	0:           "unknown",
	Open:        "open",
	Refused:     "refused",
	Reset:       "reset",
	Timeout:     "timeout",
	Unreachable: "unreachable",
	Prohibited:  "prohibited",
	Failed:      "error",
	Closed:      "closed",
	Silent:      "silent",
	Mismatch:    "mismatch",
}

// String returns the outcome in lower case, as in the exporter's result label: "open", "refused",
// "reset", "timeout", "unreachable", "prohibited" or "error", and for a Connection also "closed", "silent" or
// "mismatch". The zero Outcome, which means that there is no verdict, is "unknown".
func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return fmt.Sprintf("Outcome(%d)", uint8(o))
}

// MarshalText returns the text of String. For an Outcome that is not one of the constants, and not
// 0, it returns an error.
func (o Outcome) MarshalText() ([]byte, error) {
	if int(o) < len(outcomeNames) {
		return []byte(outcomeNames[o]), nil
	}
	return nil, fmt.Errorf("shaker: no outcome has the number %d", uint8(o))
}

// UnmarshalText accepts what String returns for the constants and for 0.
func (o *Outcome) UnmarshalText(text []byte) error {
	for outcome, name := range outcomeNames {
		if name == string(text) {
			*o = Outcome(outcome)
			return nil
		}
	}
	return fmt.Errorf("shaker: unknown outcome %q", text)
}

// A Result is the verdict about a target, and the measurements of the handshake. A field that was
// not measured is zero.
type Result struct {
	// Outcome is the verdict. It is never 0 in a Result that Shake returns without an error.
	Outcome Outcome

	// Errno is the kernel's reason for the verdict: 0 if Open, ETIMEDOUT if Timeout.
	Errno Errno

	// Handshake is the time from the SYN to the SYN-ACK on this process's clock. It includes
	// delays in the scheduling of this process. It is measured only if Open.
	Handshake time.Duration

	// Waited is how long the SYN was out, whatever the outcome: the time from the first SYN to the
	// reply or, if there was none, to the end of the handshake, on this process's clock. It is 0
	// if no SYN was sent.
	Waited time.Duration

	// RTT is the time from the SYN to the SYN-ACK on the kernel's clock, in steps of 1 µs
	// (tcpi_rtt in tcp(7)). It does not include delays in the scheduling of this process. It
	// is 0 if the kernel took no sample, for example after a retransmission without TCP
	// timestamps. It is measured only on Linux, if Open or Reset.
	RTT time.Duration

	// SYNs is the number of SYNs that were sent, retransmissions included, whatever the
	// outcome. It is 0 if no SYN was sent, and if the system does not count them: systems other
	// than Linux, Linux before 4.2, and gVisor.
	SYNs int

	// MSS is the maximum segment size, in bytes, that the handshake negotiated for data to
	// the target. It is measured only on Linux, if Open or Reset.
	MSS int

	// ACKWithheld reports whether the final ACK of the handshake was not sent, so that the
	// target's application has not seen a connection: the kernel has counted no segments but SYNs,
	// and ResetLag is less than 180 ms. It is never true on systems other than Linux.
	ACKWithheld bool

	// ACKSent reports whether the final ACK was sent, so that the target's application may have
	// seen a connection. On Linux it is true if this process was delayed for 200 ms between
	// SYN-ACK and RST, if the target repeated its SYN-ACK, or with [Options.FIN]. On other systems
	// it is true whenever Open. ACKWithheld and ACKSent are both false if there was no SYN-ACK, and
	// if it is not known whether the ACK was sent: the kernel does not count segments, or this
	// process was delayed between asking the kernel and sending the RST.
	ACKSent bool

	// ResetLag is the time from the SYN-ACK to the RST. It begins when the SYN-ACK arrived, as far
	// as the kernel's clock tells, and includes the time for which this process was stopped or
	// had to wait for a processor. It is far less than the 200 ms for which the kernel withholds
	// the ACK, unless this host is overloaded. It is measured only on Linux, if Open and without
	// [Options.FIN].
	ResetLag time.Duration

	// TTL is the time to live, or hop limit, of the SYN-ACK or RST when it arrived: what the target had set, mostly 64,
	// 128 or 255, less the routers on the way back. It is measured only with [Config.Raw].
	TTL uint8

	// Local is the address and port from which the SYN was sent. It is invalid if no SYN was
	// sent, because this host has no route to the target or forbids packets to it.
	Local netip.AddrPort

	// Peer is the target. An IPv4-mapped IPv6 address is given as the IPv4 address.
	Peer netip.AddrPort

	// ICMP is the ICMP error that ended the handshake. Its From is invalid if there was none.
	// It is available only on Linux.
	ICMP ICMP

	// options are the handshake's options that Trace has to repeat: see ofRoute.
	options sharedOptions
}

// Latency returns the time from the SYN to the SYN-ACK: the RTT or, if the kernel took no sample, Handshake. It is 0 if
// neither was measured.
func (r Result) Latency() time.Duration { return cmp.Or(r.RTT, r.Handshake) }

// Err returns nil if the Outcome is Open. Otherwise it returns an error that wraps the Errno and,
// if the Outcome is Timeout, [os.ErrDeadlineExceeded]. Like the errors of package net, the error
// has a method Timeout() bool. It never wraps [ErrLocal].
func (r Result) Err() error {
	if r.Outcome == Open {
		return nil
	}
	return &verdictError{r}
}

type verdictError struct{ result Result }

func (e *verdictError) Error() string {
	r := e.result
	var text strings.Builder
	fmt.Fprintf(&text, "shake %v: %v", r.Peer, r.Outcome)
	if name := ErrnoName(r.Errno); name != "" && r.Outcome != Refused && r.Outcome != Timeout { // it adds nothing there
		fmt.Fprintf(&text, ": %s", name)
	}
	if r.ICMP.From.IsValid() {
		fmt.Fprintf(&text, " (ICMP %v from %v)", r.ICMP, r.ICMP.From)
	}
	return text.String()
}

func (e *verdictError) Timeout() bool { return e.result.Outcome == Timeout }

// Temporary completes net.Error.
func (e *verdictError) Temporary() bool { return e.Timeout() }

func (e *verdictError) Unwrap() []error {
	switch {
	case e.Timeout():
		return []error{e.result.Errno, os.ErrDeadlineExceeded}
	case e.result.Errno == 0: // not a result of Shake
		return nil
	}
	return []error{e.result.Errno}
}
