package shaker

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// What the state of a socket and its errors mean. The state counts first, then the pending error, then an ICMP error
// in the queue, then the deadline.
func TestClassify(t *testing.T) {
	router := netip.MustParseAddr("198.51.100.7")
	unreachable := ICMP{From: router, Type: 3, Code: 1}   // soft
	prohibited := ICMP{From: router, Type: 3, Code: 13}   // hard
	refusedByICMP := ICMP{From: router, Type: 3, Code: 3} // hard
	soft := conclusion{soft: true, errno: unix.EHOSTUNREACH, icmp: unreachable}
	states := map[string]uint8{
		"SYN-SENT":     unix.BPF_TCP_SYN_SENT,
		"SYN-RECEIVED": unix.BPF_TCP_SYN_RECV,
		"ESTABLISHED":  unix.BPF_TCP_ESTABLISHED,
		"CLOSE-WAIT":   unix.BPF_TCP_CLOSE_WAIT,
		"CLOSED":       unix.BPF_TCP_CLOSE,
		"FIN-WAIT-1":   unix.BPF_TCP_FIN_WAIT1,
		"LISTEN":       unix.BPF_TCP_LISTEN,
		"0":            0,
	}
	for _, c := range []struct {
		name   string
		state  string
		info   unix.TCPInfo
		errors socketErrors
		icmp   ICMP
		want   conclusion
		local  error // what the err of the conclusion wraps
	}{
		{name: "SYN-ACK", state: "ESTABLISHED", want: conclusion{outcome: Open}},
		{name: "SYN-ACK and FIN", state: "CLOSE-WAIT", want: conclusion{outcome: Open}},
		{name: "SYN-ACK after an ICMP error", state: "ESTABLISHED",
			errors: socketErrors{pending: unix.EHOSTUNREACH, queued: unix.EHOSTUNREACH, earlier: soft},
			icmp:   unreachable, want: conclusion{outcome: Open}},
		{name: "SYN-ACK at the deadline", state: "ESTABLISHED",
			errors: socketErrors{call: unix.ETIMEDOUT, tooLate: true}, want: conclusion{outcome: Open}},

		{name: "no reply yet", state: "SYN-SENT", want: conclusion{}},
		{name: "simultaneous open", state: "SYN-RECEIVED", want: conclusion{}},
		{name: "closed without a reason", state: "CLOSED",
			want: conclusion{outcome: Failed, errno: unix.ECONNABORTED}},
		{name: "RST", state: "CLOSED", errors: socketErrors{pending: unix.ECONNREFUSED},
			want: conclusion{outcome: Refused, errno: unix.ECONNREFUSED}},
		{name: "RST after the SYN-ACK", state: "CLOSED", errors: socketErrors{pending: unix.ECONNRESET},
			want: conclusion{outcome: Reset, errno: unix.ECONNRESET}},
		{name: "RST at the deadline", state: "CLOSED",
			errors: socketErrors{call: unix.ETIMEDOUT, pending: unix.ECONNREFUSED, tooLate: true},
			want:   conclusion{outcome: Refused, errno: unix.ECONNREFUSED}},

		{name: "ICMP port unreachable", state: "CLOSED",
			errors: socketErrors{pending: unix.ECONNREFUSED, queued: unix.ECONNREFUSED}, icmp: refusedByICMP,
			want: conclusion{outcome: Refused, errno: unix.ECONNREFUSED, icmp: refusedByICMP}},
		{name: "soft ICMP error that has closed the socket", state: "CLOSED",
			errors: socketErrors{pending: unix.EHOSTUNREACH, queued: unix.EHOSTUNREACH}, icmp: unreachable,
			want: conclusion{outcome: Unreachable, errno: unix.EHOSTUNREACH, icmp: unreachable}},
		{name: "ICMP error after SO_ERROR was read", state: "CLOSED",
			errors: socketErrors{queued: unix.EHOSTUNREACH}, icmp: unreachable,
			want: conclusion{outcome: Unreachable, errno: unix.EHOSTUNREACH, icmp: unreachable}},
		{name: "soft ICMP error during connect", state: "SYN-SENT",
			errors: socketErrors{pending: unix.EHOSTUNREACH, queued: unix.EHOSTUNREACH}, icmp: unreachable,
			want: soft},
		{name: "hard ICMP error during connect", state: "SYN-SENT",
			errors: socketErrors{pending: unix.EHOSTUNREACH, queued: unix.EHOSTUNREACH}, icmp: prohibited,
			want: conclusion{outcome: Prohibited, errno: unix.EHOSTUNREACH, icmp: prohibited}},
		{name: "soft ICMP error at the deadline", state: "SYN-SENT",
			errors: socketErrors{call: unix.ETIMEDOUT, pending: unix.EHOSTUNREACH, queued: unix.EHOSTUNREACH},
			icmp:   unreachable,
			want:   conclusion{outcome: Unreachable, errno: unix.EHOSTUNREACH, icmp: unreachable}},
		{name: "soft ICMP error before the deadline", state: "SYN-SENT",
			errors: socketErrors{call: unix.ETIMEDOUT, earlier: soft, tooLate: true},
			want:   conclusion{outcome: Unreachable, errno: unix.EHOSTUNREACH, icmp: unreachable, soft: true}},
		{name: "nothing since a soft ICMP error", state: "SYN-SENT",
			errors: socketErrors{earlier: soft}, want: conclusion{}},

		{name: "deadline", state: "SYN-SENT", errors: socketErrors{call: unix.ETIMEDOUT},
			want: conclusion{outcome: Timeout, errno: unix.ETIMEDOUT}},
		{name: "deadline after retransmissions", state: "SYN-SENT",
			info:   unix.TCPInfo{Total_retrans: 2, Retrans: 1},
			errors: socketErrors{call: unix.ETIMEDOUT}, want: conclusion{outcome: Timeout, errno: unix.ETIMEDOUT}},
		{name: "deadline too soon after the SYN", state: "SYN-SENT",
			errors: socketErrors{call: unix.ETIMEDOUT, tooLate: true}, local: ErrUnsent},
		{name: "deadline, and retransmissions fail", state: "SYN-SENT", info: unix.TCPInfo{Total_retrans: 2},
			errors: socketErrors{call: unix.ETIMEDOUT}, local: unix.EPERM},

		{name: "connect: no route", state: "CLOSED", errors: socketErrors{call: unix.ENETUNREACH},
			want: conclusion{outcome: Unreachable, errno: unix.ENETUNREACH}},
		{name: "the route has become a blackhole", state: "SYN-SENT",
			errors: socketErrors{call: unix.ETIMEDOUT, pending: unix.EINVAL},
			want:   conclusion{outcome: Unreachable, errno: unix.EINVAL}},
		{name: "connect: forbidden", state: "CLOSED", errors: socketErrors{call: unix.EPERM},
			want: conclusion{outcome: Prohibited, errno: unix.EPERM}},
		{name: "connect: no port", state: "CLOSED", errors: socketErrors{call: unix.EADDRNOTAVAIL},
			local: unix.EADDRNOTAVAIL},

		{name: "impossible state", state: "FIN-WAIT-1", local: errAny},
		{name: "impossible state and an error", state: "LISTEN",
			errors: socketErrors{pending: unix.ECONNREFUSED}, local: errAny},
		{name: "TCP_INFO that was not filled", state: "0",
			errors: socketErrors{call: unix.ETIMEDOUT, pending: unix.ECONNREFUSED}, local: errAny},
	} {
		info := c.info
		info.State = states[c.state]
		got := classify(&info, c.errors, c.icmp)
		err := got.err
		got.err = nil
		if got != c.want || c.local == nil && err != nil ||
			c.local != nil && (err == nil || c.local != errAny && !errors.Is(err, c.local)) {
			t.Errorf("%s: classify(%s, %+v, %+v) =\n     %+v, error %v\nwant %+v, error %v",
				c.name, c.state, c.errors, c.icmp, got, err, c.want, c.local)
		}
	}
}

// errAny stands for an error that wraps no other one.
var errAny = errors.New("any error")
