//go:build !plan9

package shaker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

func newShaker(t *testing.T) *shaker.Shaker {
	t.Helper()
	s, err := shaker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// listen listens on a loopback port for the rest of the test.
func listen(t *testing.T) (net.Listener, netip.AddrPort) {
	t.Helper()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return server, server.Addr().(*net.TCPAddr).AddrPort()
}

// The interface of a target's zone may be gone for a while: that is an error of this host, not of the caller.
func TestZoneWithoutInterface(t *testing.T) {
	s := newShaker(t)
	for _, zone := range []string{"nowhere", "1000000"} {
		target := netip.AddrPortFrom(netip.MustParseAddr("fe80::1").WithZone(zone), 80)
		want := fmt.Sprintf("shake %v: this host has no interface %q", target, zone)
		r, err := s.Shake(context.Background(), target, nil)
		if err == nil || err.Error() != want || r != (shaker.Result{}) {
			t.Errorf("Shake(%v) = %+v, error %v, want error %s", target, r, err, want)
		}
		if !errors.Is(err, shaker.ErrLocal) || errors.Is(err, os.ErrInvalid) {
			t.Errorf("Shake(%v): error %v, want one that wraps %v and not %v",
				target, err, shaker.ErrLocal, os.ErrInvalid)
		}
	}
}

func TestInvalidArguments(t *testing.T) {
	s := newShaker(t)
	for _, c := range []struct {
		target  netip.AddrPort
		options *shaker.Options
		want    string
		wraps   error
	}{
		{
			target: netip.AddrPort{},
			want:   "shake invalid AddrPort: invalid target",
			wraps:  shaker.ErrTarget,
		},
		{
			target: netip.AddrPortFrom(netip.Addr{}, 80),
			want:   "shake invalid AddrPort: invalid target",
			wraps:  shaker.ErrTarget,
		},
		{
			target: netip.MustParseAddrPort("127.0.0.1:0"),
			want:   "shake 127.0.0.1:0: invalid target",
			wraps:  shaker.ErrTarget,
		},
		{
			target: netip.MustParseAddrPort("[fe80::1]:80"),
			want:   "shake [fe80::1]:80: invalid target: a link-local address needs a zone",
			wraps:  shaker.ErrTarget,
		},
		{
			target:  netip.MustParseAddrPort("127.0.0.1:1"),
			options: &shaker.Options{Timeout: -1},
			want:    "shake 127.0.0.1:1: negative timeout -1ns",
			wraps:   os.ErrInvalid,
		},
		{
			target:  netip.MustParseAddrPort("127.0.0.1:1"),
			options: &shaker.Options{Source: netip.IPv6Loopback()},
			want:    "shake 127.0.0.1:1: invalid target: not of the same family as the source ::1",
			wraps:   shaker.ErrTarget,
		},
		{
			target:  netip.MustParseAddrPort("[::1]:1"),
			options: &shaker.Options{Source: netip.MustParseAddr("::ffff:127.0.0.1")},
			want:    "shake [::1]:1: invalid target: not of the same family as the source 127.0.0.1",
			wraps:   shaker.ErrTarget,
		},
	} {
		r, err := s.Shake(context.Background(), c.target, c.options)
		if err == nil || err.Error() != c.want || r != (shaker.Result{}) {
			t.Errorf("Shake(%v, %+v) = %+v, error %v, want error %s", c.target, c.options, r, err, c.want)
		}
		if !errors.Is(err, c.wraps) || errors.Is(err, shaker.ErrLocal) {
			t.Errorf("Shake(%v, %+v): error %v, want one that wraps %v and not ErrLocal",
				c.target, c.options, err, c.wraps)
		}
	}
	const want = "shaker: DSCP is 64, want 0 to 63"
	_, err := shaker.New(&shaker.Config{Options: shaker.Options{DSCP: 64}})
	if !errors.Is(err, os.ErrInvalid) || err.Error() != want {
		t.Errorf("New with DSCP 64: error %v, want %s", err, want)
	}
}

// Values that the kernel would truncate or reinterpret are rejected before they get there.
func TestOptionsOutOfRange(t *testing.T) {
	s := newShaker(t)
	for _, c := range []struct {
		options shaker.Options
		want    string
	}{
		{
			options: shaker.Options{Timeout: -time.Second},
			want:    "negative timeout -1s",
		},
		{
			options: shaker.Options{DSCP: 64},
			want:    "DSCP is 64, want 0 to 63",
		},
		{
			options: shaker.Options{DSCP: 200},
			want:    "DSCP is 200, want 0 to 63",
		},
		{
			options: shaker.Options{SourcePorts: shaker.PortRange{First: 2, Last: 1}},
			want:    "invalid source port range 2-1",
		},
		{
			options: shaker.Options{SourcePorts: shaker.PortRange{First: 1}},
			want:    "invalid source port range 1-0",
		},
		{
			options: shaker.Options{SourcePorts: shaker.PortRange{Last: 1}},
			want:    "invalid source port range 0-1",
		},
		{
			options: shaker.Options{Source: netip.MustParseAddr("224.0.0.1")},
			want:    "source 224.0.0.1: not the address of one host",
		},
		{
			options: shaker.Options{Source: netip.MustParseAddr("255.255.255.255")},
			want:    "source 255.255.255.255: not the address of one host",
		},
		{
			options: shaker.Options{Source: netip.MustParseAddr("::ffff:255.255.255.255")},
			want:    "source 255.255.255.255: not the address of one host",
		},
		{
			options: shaker.Options{Source: netip.MustParseAddr("ff02::1%1")},
			want:    "source ff02::1%1: not the address of one host",
		},
		{
			options: shaker.Options{Source: netip.MustParseAddr("fe80::1")},
			want:    "source fe80::1: a link-local address needs a zone",
		},
		{
			options: shaker.Options{Source: netip.MustParseAddr("fe80::1%here"), Interface: "there"},
			want:    `source fe80::1%here: zone does not match the interface "there"`,
		},
	} {
		if err := c.options.Check(); !errors.Is(err, os.ErrInvalid) || err.Error() != c.want {
			t.Errorf("Check of %+v: error %v, want %s", c.options, err, c.want)
		}
		r, err := s.Shake(context.Background(), netip.MustParseAddrPort("127.0.0.1:1"), &c.options)
		if want := "shake 127.0.0.1:1: " + c.want; err == nil || err.Error() != want || r != (shaker.Result{}) {
			t.Errorf("Shake(127.0.0.1:1, %+v) = %+v, error %v, want error %s", c.options, r, err, want)
		}
	}
	if err := (&shaker.Options{}).Check(); err != nil {
		t.Errorf("Check of the zero Options: error %v, want none", err)
	}
}

// Every platform can send from a given address, and close with a FIN.
func TestSourceAndFIN(t *testing.T) {
	server, target := listen(t)
	for _, source := range []string{"127.0.0.1", "::ffff:127.0.0.1"} {
		options := &shaker.Options{Source: netip.MustParseAddr(source), FIN: true}
		if err := options.Check(); err != nil {
			t.Errorf("Check of source %v: error %v, want none", source, err)
		}
		r, err := newShaker(t).Shake(context.Background(), target, options)
		local := options.Source.Unmap()
		if err != nil || r.Outcome != shaker.Open || !r.ACKSent || r.ResetLag != 0 || r.Local.Addr() != local {
			t.Fatalf("Shake(%v, source %v, FIN) = %+v, error %v, want Open from %v with ACKSent and without ResetLag",
				target, source, r, err, local)
		}
		conn, err := server.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if data, err := io.ReadAll(conn); len(data) > 0 || err != nil {
			t.Errorf("the server reads %q, error %v, want EOF", data, err)
		}
		conn.Close()
	}
}

func TestSourceOfAnotherHost(t *testing.T) {
	options := &shaker.Options{Source: netip.MustParseAddr("192.0.2.99")}
	err := options.Check()
	if !errors.Is(err, syscall.EADDRNOTAVAIL) || !strings.Contains(err.Error(), "source 192.0.2.99: ") {
		t.Errorf("Check of source 192.0.2.99: error %v, want EADDRNOTAVAIL and the source", err)
	}
	r, err := newShaker(t).Shake(context.Background(), netip.MustParseAddrPort("127.0.0.1:1"), options)
	if !errors.Is(err, syscall.EADDRNOTAVAIL) || !errors.Is(err, shaker.ErrLocal) ||
		!strings.Contains(err.Error(), "192.0.2.99") ||
		r != (shaker.Result{}) {
		t.Errorf("Shake from 192.0.2.99 = %+v, error %v, want EADDRNOTAVAIL and the source", r, err)
	}
}

// The error of a context that has ended is the context's error and its cause. A deadline that has
// passed is not the verdict Timeout.
func TestEndedContext(t *testing.T) {
	s := newShaker(t)
	target := netip.MustParseAddrPort("127.0.0.1:1")
	cause := errors.New("the program is too old")
	for _, c := range []struct {
		name        string
		end         func() (context.Context, context.CancelFunc)
		is, isNot   []error
		wantMessage string
	}{
		{
			name: "cancelled",
			end: func() (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				return ctx, cancel
			},
			is:          []error{context.Canceled},
			isNot:       []error{shaker.ErrUnsent, shaker.ErrLocal},
			wantMessage: "context canceled",
		},
		{
			name: "cancelled with a cause",
			end: func() (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancelCause(context.Background())
				cancel(cause)
				return ctx, func() {}
			},
			is:          []error{context.Canceled, cause},
			isNot:       []error{shaker.ErrUnsent, shaker.ErrLocal},
			wantMessage: "context canceled: the program is too old",
		},
		{
			name: "expired",
			end: func() (context.Context, context.CancelFunc) {
				return context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
			},
			is:          []error{shaker.ErrUnsent, shaker.ErrLocal, context.DeadlineExceeded},
			wantMessage: "no SYN was sent in time for the deadline: context deadline exceeded",
		},
		{
			name: "expired with a cause",
			end: func() (context.Context, context.CancelFunc) {
				return context.WithDeadlineCause(context.Background(), time.Now().Add(-time.Second), cause)
			},
			is: []error{shaker.ErrUnsent, shaker.ErrLocal, context.DeadlineExceeded, cause},
			wantMessage: "no SYN was sent in time for the deadline: context deadline exceeded: " +
				"the program is too old",
		},
	} {
		ctx, cancel := c.end()
		defer cancel()
		r, err := s.Shake(ctx, target, nil)
		if want := "shake 127.0.0.1:1: " + c.wantMessage; err == nil || err.Error() != want || r != (shaker.Result{}) {
			t.Errorf("%s: Shake = %+v, error %v, want error %s", c.name, r, err, want)
		}
		for _, want := range c.is {
			if !errors.Is(err, want) {
				t.Errorf("%s: Shake: error %v, want one that wraps %q", c.name, err, want)
			}
		}
		for _, not := range append(c.isNot, os.ErrDeadlineExceeded) {
			if errors.Is(err, not) {
				t.Errorf("%s: Shake: error %v, want one that does not wrap %q", c.name, err, not)
			}
		}
		if timeout, ok := errors.AsType[net.Error](err); !ok || timeout.Timeout() {
			t.Errorf("%s: Shake: error %v, want a net.Error that is not a timeout", c.name, err)
		}
	}
}

// The methods of a zero Shaker return ErrClosed.
func TestZeroShaker(t *testing.T) {
	var s shaker.Shaker
	const want = "the shaker is closed: it was not started by New"
	target := netip.MustParseAddrPort("127.0.0.1:1")
	_, shake := s.Shake(context.Background(), target, nil)
	_, trace := s.Trace(context.Background(), shaker.Result{Peer: target}, nil)
	for what, err := range map[string]error{
		"shake 127.0.0.1:1": shake,
		"trace 127.0.0.1:1": trace,
		"check 127.0.0.1:1": s.Check(context.Background(), "127.0.0.1:1"),
		"shaker":            s.Err(),
	} {
		if !errors.Is(err, shaker.ErrClosed) || !errors.Is(err, shaker.ErrLocal) || err.Error() != what+": "+want {
			t.Errorf("%s by the zero Shaker: error %v, want %s: %s", what, err, what, want)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close of the zero Shaker: error %v, want none", err)
	}
}

func TestCheck(t *testing.T) {
	_, open := listen(t)
	server, closed := listen(t)
	server.Close()
	s := newShaker(t)
	dnsError := new(net.DNSError)
	for _, c := range []struct {
		address string
		is      error // nil if open
		as      any
		want    string
	}{
		{address: open.String()},
		{address: fmt.Sprintf("[::ffff:127.0.0.1]:%d", open.Port())},
		{address: closed.String(), is: syscall.ECONNREFUSED, want: fmt.Sprintf("shake %v: refused", closed)},
		{address: "127.0.0.1", is: shaker.ErrTarget,
			want: "check 127.0.0.1: invalid target: address 127.0.0.1: missing port in address"},
		{address: ":80", is: shaker.ErrTarget, want: "check :80: invalid target: missing host"},
		{address: "127.0.0.1:70000", is: shaker.ErrTarget,
			want: "check 127.0.0.1:70000: invalid target: address 70000: invalid port"},
		{address: "127.0.0.1:0", is: shaker.ErrTarget, want: "shake 127.0.0.1:0: invalid target"},
		{address: "a..b:80", as: &dnsError, want: "check a..b:80: lookup a..b: no such host"},
	} {
		err := s.Check(context.Background(), c.address)
		switch {
		case c.want == "" && err != nil,
			c.want != "" && (err == nil || err.Error() != c.want),
			c.is != nil && !errors.Is(err, c.is),
			c.as != nil && !errors.As(err, c.as),
			errors.Is(err, shaker.ErrLocal):
			t.Errorf("Check(%s): error %v, want %q that wraps %v and not ErrLocal", c.address, err, c.want, c.is)
		}
	}
	limited, err := shaker.New(&shaker.Config{Options: shaker.Options{Source: netip.IPv6Loopback()}})
	if err != nil {
		t.Fatal(err)
	}
	defer limited.Close()
	const want = ": invalid target: no address of the same family as the source ::1"
	err = limited.Check(context.Background(), open.String())
	if !errors.Is(err, shaker.ErrTarget) || err.Error() != "check "+open.String()+want {
		t.Errorf("Check(%v) from ::1: error %v, want %s", open, err, want)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("the program is too old")
	cancel(cause)
	for _, address := range []string{open.String(), "shaker.invalid:80"} {
		err := s.Check(ctx, address)
		if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) || errors.Is(err, shaker.ErrLocal) {
			t.Errorf("Check(%s) with a cancelled context: error %v, want %v and %v",
				address, err, context.Canceled, cause)
		}
	}
}

func TestICMPText(t *testing.T) {
	router4, router6 := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:ffff::7")
	for want, icmp := range map[string]shaker.ICMP{
		"":                     {},
		"host_unreachable":     {From: router4, Type: 3, Code: 1},
		"neighbor_unreachable": {From: router6, Type: 1, Code: 3, Own: true},
		"other":                {From: router4, Type: 200},
	} {
		if got := icmp.String(); got != want {
			t.Errorf("String of %#v = %q, want %q", icmp, got, want)
		}
	}
}

// Every outcome has a text, from which it can be read again.
func TestOutcomeText(t *testing.T) {
	type labelled struct{ Outcome shaker.Outcome }
	for outcome := range shaker.Mismatch + 1 {
		text, err := json.Marshal(labelled{outcome})
		if want := fmt.Sprintf(`{"Outcome":"%v"}`, outcome); err != nil || string(text) != want {
			t.Errorf("the outcome %d in JSON is %s, error %v, want %s", uint8(outcome), text, err, want)
		}
		got := labelled{shaker.Failed}
		if err := json.Unmarshal(text, &got); err != nil || got.Outcome != outcome {
			t.Errorf("%s read as JSON is %v, error %v, want %v", text, got.Outcome, err, outcome)
		}
	}
	if zero := shaker.Outcome(0).String(); zero != "unknown" {
		t.Errorf("the zero Outcome is %q, want unknown", zero)
	}
	if text := (shaker.Mismatch + 1).String(); text != "Outcome(11)" {
		t.Errorf("the outcome after the last one is %q, want Outcome(11)", text)
	}
	if text, err := (shaker.Mismatch + 1).MarshalText(); err == nil {
		t.Errorf("MarshalText of %v = %q, want an error", shaker.Mismatch+1, text)
	}
	outcome := shaker.Open
	if err := outcome.UnmarshalText([]byte("OPEN")); err == nil || outcome != shaker.Open {
		t.Errorf("UnmarshalText of OPEN = %v, error %v, want an error and no change", outcome, err)
	}
}

// ACKSent is correct on every platform. If the ACK was sent, the server accepts the connection of
// the handshake first. If not, it accepts the connection after the handshake first.
func TestACKSentIsCorrect(t *testing.T) {
	server, target := listen(t)
	r, err := newShaker(t).Shake(context.Background(), target, nil)
	if err != nil || r.Outcome != shaker.Open || r.Handshake <= 0 {
		t.Fatalf("Shake(%v) = %+v, error %v, want Open with a Handshake time", target, r, err)
	}
	next, err := net.Dial("tcp", server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	first, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if accepted := first.RemoteAddr().String() == r.Local.String(); accepted != r.ACKSent {
		t.Errorf("ACKSent is %t, want %t: the first accepted connection is from %v, the handshake was from %v",
			r.ACKSent, accepted, first.RemoteAddr(), r.Local)
	}
}

func TestRefusedByClosedPort(t *testing.T) {
	server, target := listen(t)
	server.Close()
	r, err := newShaker(t).Shake(context.Background(), target, nil)
	if err != nil || r.Outcome != shaker.Refused || r.Errno != syscall.ECONNREFUSED ||
		!errors.Is(r.Err(), syscall.ECONNREFUSED) {
		t.Errorf("Shake(%v) = %+v, error %v, want Refused with ECONNREFUSED", target, r, err)
	}
}

func TestClose(t *testing.T) {
	s := newShaker(t)
	if err := s.Err(); err != nil {
		t.Errorf("Err before Close: %v, want nil", err)
	}
	for i := range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close, call %d: error %v, want none", i+1, err)
		}
	}
	r, err := s.Shake(context.Background(), netip.MustParseAddrPort("127.0.0.1:1"), nil)
	if !errors.Is(err, shaker.ErrClosed) || !errors.Is(err, os.ErrClosed) || !errors.Is(err, shaker.ErrLocal) {
		t.Errorf("Shake after Close = %+v, error %v, want %v", r, err, shaker.ErrClosed)
	}
	if err := s.Err(); !errors.Is(err, shaker.ErrClosed) || !errors.Is(err, shaker.ErrLocal) {
		t.Errorf("Err after Close: %v, want %v", err, shaker.ErrClosed)
	}
}

func TestErr(t *testing.T) {
	peer := netip.MustParseAddrPort("192.0.2.1:80")
	for _, c := range []struct {
		result  shaker.Result
		text    string
		timeout bool
	}{
		{
			result: shaker.Result{Outcome: shaker.Refused, Errno: syscall.ECONNREFUSED, Peer: peer},
			text:   "shake 192.0.2.1:80: refused",
		},
		{
			result:  shaker.Result{Outcome: shaker.Timeout, Errno: syscall.ETIMEDOUT, Peer: peer},
			text:    "shake 192.0.2.1:80: timeout",
			timeout: true,
		},
		{
			result: shaker.Result{Outcome: shaker.Unreachable, Errno: syscall.EHOSTUNREACH, Peer: peer,
				ICMP: shaker.ICMP{From: netip.MustParseAddr("198.51.100.7"), Type: 3, Code: 1}},
			text: "shake 192.0.2.1:80: unreachable: EHOSTUNREACH (ICMP host_unreachable from 198.51.100.7)",
		},
		{
			result: shaker.Result{Outcome: shaker.Failed, Errno: syscall.EINVAL, Peer: peer},
			text:   "shake 192.0.2.1:80: error: EINVAL",
		},
	} {
		err := c.result.Err()
		if err.Error() != c.text {
			t.Errorf("Err of %+v = %q, want %q", c.result, err, c.text)
		}
		if !errors.Is(err, c.result.Errno) || errors.Is(err, shaker.ErrLocal) {
			t.Errorf("Err of %+v = %v, want one that wraps %v and not ErrLocal", c.result, err, c.result.Errno)
		}
		var netError net.Error
		if !errors.As(err, &netError) {
			t.Errorf("Err of %+v = %v, which is not a net.Error", c.result, err)
		} else if netError.Timeout() != c.timeout || errors.Is(err, os.ErrDeadlineExceeded) != c.timeout {
			t.Errorf("Err of %+v = %v: Timeout() is %t, os.ErrDeadlineExceeded is %t, want %t for both", c.result, err,
				netError.Timeout(), errors.Is(err, os.ErrDeadlineExceeded), c.timeout)
		}
		if temporary, ok := err.(interface{ Temporary() bool }); !ok || temporary.Temporary() != c.timeout {
			t.Errorf("Err of %+v = %v: Temporary() is not %t, want the same as Timeout()", c.result, err, c.timeout)
		}
	}
	if err := (shaker.Result{Outcome: shaker.Open}).Err(); err != nil {
		t.Errorf("Err of an open target = %v, want nil", err)
	}
	const want = "shake invalid AddrPort: unknown"
	if err := (shaker.Result{}).Err(); err == nil || err.Error() != want || errors.Is(err, syscall.Errno(0)) {
		t.Errorf("Err of the zero Result = %v, want %s, which does not wrap the errno 0", err, want)
	}
}
