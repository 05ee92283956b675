package shaker

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"
)

// Outcome is the verdict about a target, in one word.
type Outcome uint8

// The outcomes of a handshake. There will be no others without a new major
// version, so that they can serve as label values.
const (
	// Open: a SYN-ACK came.
	Open Outcome = iota + 1
	// Refused: an RST came in answer to the SYN, or an ICMP port unreachable, or
	// nobody listened and the kernel connected the socket to itself.
	Refused
	// Reset: an RST came after the SYN-ACK.
	Reset
	// Timeout: no answer came before the deadline.
	Timeout
	// Unreachable: this host or a router has no way to the target.
	Unreachable
	// Prohibited: this host or a router forbids the way to the target.
	Prohibited
	// Failed: any other errno. As a label it is "error".
	Failed
)

// String returns the outcome as the exporter's result label has it.
func (o Outcome) String() string {
	switch o {
	case Open:
		return "open"
	case Refused:
		return "refused"
	case Reset:
		return "reset"
	case Timeout:
		return "timeout"
	case Unreachable:
		return "unreachable"
	case Prohibited:
		return "prohibited"
	case Failed:
		return "error"
	default:
		return fmt.Sprintf("Outcome(%d)", uint8(o))
	}
}

// Result is the verdict about a target and what was measured on the way to it.
// What was not measured is zero.
type Result struct {
	Outcome Outcome

	// Errno is the kernel's reason, 0 when Open, and ETIMEDOUT for every Timeout.
	Errno syscall.Errno

	// Handshake is the time from SYN to SYN-ACK on this process's clock, its
	// scheduling included. Only when Open.
	Handshake time.Duration

	// RTT is the same time on the kernel's clock, in steps of 1 µs (tcpi_rtt in
	// tcp(7)), free of this process's scheduling. It is 0 if the kernel took
	// no sample, as after a retransmission without TCP timestamps. Only on
	// Linux, when Open or Reset.
	RTT time.Duration

	// SYNRetransmits counts the SYNs that had to be sent again, on success and
	// on failure alike. It is -1 on other systems than Linux, which do not tell.
	SYNRetransmits int

	// MSS is the maximum segment size in bytes that the handshake settled for
	// data to the target. Only on Linux, when Open or Reset.
	MSS int

	// ACKSent tells that the last ACK of the handshake left after all, so that
	// the target's application may have seen a connection. On Linux that
	// happens when this process is held up for 200 ms between SYN-ACK and RST,
	// or when the target repeats its SYN-ACK, or if [Options.FIN] says so. Elsewhere
	// it is true whenever Open.
	ACKSent bool

	// ResetLag is the time from the event loop's seeing the SYN-ACK to its RST:
	// well under the 200 ms for which the kernel holds the ACK back, unless this
	// machine is overloaded. Only on Linux, when Open, without [Options.FIN].
	ResetLag time.Duration

	// Local is the address and port from which the SYN was sent. It is invalid
	// if none was sent, because this host had no route to the target or was
	// forbidden to use it.
	Local netip.AddrPort

	// Peer is the target, as an IPv4 address where it was an IPv4-mapped one.
	Peer netip.AddrPort

	// ICMP is the ICMP error that ended the handshake. Its From is invalid if
	// there was none. Only on Linux.
	ICMP ICMP

	// answered is the time from the first SYN to whatever ended the handshake, on
	// this process's clock. Only on Linux.
	answered time.Duration
}

// Err returns nil if the target is open, and otherwise an error for which
// [errors.Is] finds the Errno and, on a Timeout, [os.ErrDeadlineExceeded]. Like
// the errors of package net it has a method Timeout() bool.
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
	if r.Outcome != Refused && r.Outcome != Timeout { // which say it all
		fmt.Fprintf(&text, ": %v", ErrnoName(r.Errno))
	}
	if r.ICMP.From.IsValid() {
		fmt.Fprintf(&text, " (ICMP %v from %v)", r.ICMP, r.ICMP.From)
	}
	return text.String()
}

func (e *verdictError) Timeout() bool { return e.result.Outcome == Timeout }

// Temporary is here for code that still asks for a net.Error.
func (e *verdictError) Temporary() bool { return e.Timeout() }

func (e *verdictError) Unwrap() []error {
	if e.Timeout() {
		return []error{e.result.Errno, os.ErrDeadlineExceeded}
	}
	return []error{e.result.Errno}
}
