package shaker_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
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

func TestWrongArguments(t *testing.T) {
	s := newShaker(t)
	for _, c := range []struct {
		target  netip.AddrPort
		options *shaker.Options
		want    string
		is      error
	}{
		{netip.AddrPort{}, nil, "shake invalid AddrPort: no SYN can be addressed to it", shaker.ErrTarget},
		{netip.MustParseAddrPort("127.0.0.1:0"), nil, "shake 127.0.0.1:0: no SYN can be addressed to it", shaker.ErrTarget},
		{netip.MustParseAddrPort("[fe80::1%nowhere]:80"), nil,
			`shake [fe80::1%nowhere]:80: no SYN can be addressed to it: zone "nowhere": route ip+net: no such network interface`, os.ErrInvalid},
		{netip.MustParseAddrPort("[fe80::1%1000000]:80"), nil,
			`shake [fe80::1%1000000]:80: no SYN can be addressed to it: zone "1000000": route ip+net: no such network interface`, os.ErrInvalid},
		{netip.MustParseAddrPort("[fe80::1]:80"), nil,
			"shake [fe80::1]:80: no SYN can be addressed to it: a link-local address needs a zone", shaker.ErrTarget},
		{netip.MustParseAddrPort("127.0.0.1:1"), &shaker.Options{Timeout: -1},
			"shake 127.0.0.1:1: negative timeout -1ns", nil},
	} {
		r, err := s.Shake(context.Background(), c.target, c.options)
		if err == nil || err.Error() != c.want || r != (shaker.Result{}) {
			t.Errorf("%+v, %v, want error %s", r, err, c.want)
		}
		if c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%v is not %v", err, c.is)
		}
	}
	if _, err := shaker.New(&shaker.Config{Timeout: -time.Second}); err == nil || err.Error() != "shaker: negative timeout -1s" {
		t.Errorf("New: %v", err)
	}
}

func TestContextThatHasEnded(t *testing.T) {
	s := newShaker(t)
	target := netip.MustParseAddrPort("127.0.0.1:1")
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Shake(canceled, target, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	late, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	defer cancel()
	if _, err := s.Shake(late, target, nil); !errors.Is(err, shaker.ErrUnsent) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("late: %v", err)
	}
}

// ACKSent is the truth on every platform: the server accepts the connection of a handshake
// whose ACK was sent, and the one after it of a handshake whose ACK was not.
func TestACKSentIsHonest(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	r, err := newShaker(t).Shake(context.Background(), server.Addr().(*net.TCPAddr).AddrPort(), nil)
	if err != nil || r.Outcome != shaker.Open || r.Handshake <= 0 {
		t.Fatalf("%+v, %v", r, err)
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
		t.Errorf("ACKSent is %t, but accepted is %t", r.ACKSent, accepted)
	}
}

func TestRefusedByClosedPort(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	r, err := newShaker(t).Shake(context.Background(), server.Addr().(*net.TCPAddr).AddrPort(), nil)
	if err != nil || r.Outcome != shaker.Refused || r.Errno != syscall.ECONNREFUSED || !errors.Is(r.Err(), syscall.ECONNREFUSED) {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestClose(t *testing.T) {
	s := newShaker(t)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	_, err := s.Shake(context.Background(), netip.MustParseAddrPort("127.0.0.1:1"), nil)
	if !errors.Is(err, shaker.ErrClosed) || !errors.Is(err, os.ErrClosed) {
		t.Errorf("Shake after Close: %v", err)
	}
}

func TestErr(t *testing.T) {
	peer := netip.MustParseAddrPort("192.0.2.1:80")
	for _, c := range []struct {
		result  shaker.Result
		text    string
		timeout bool
	}{
		{shaker.Result{Outcome: shaker.Refused, Errno: syscall.ECONNREFUSED, Peer: peer},
			"shake 192.0.2.1:80: refused", false},
		{shaker.Result{Outcome: shaker.Timeout, Errno: syscall.ETIMEDOUT, Peer: peer},
			"shake 192.0.2.1:80: timeout", true},
		{shaker.Result{Outcome: shaker.Unreachable, Errno: syscall.EHOSTUNREACH, Peer: peer,
			ICMP: shaker.ICMP{From: netip.MustParseAddr("198.51.100.7"), Type: 3, Code: 1}},
			"shake 192.0.2.1:80: unreachable: EHOSTUNREACH (ICMP host_unreachable from 198.51.100.7)", false},
		{shaker.Result{Outcome: shaker.Failed, Errno: syscall.EINVAL, Peer: peer},
			"shake 192.0.2.1:80: error: EINVAL", false},
	} {
		err := c.result.Err()
		if err.Error() != c.text {
			t.Errorf("text %q, want %q", err, c.text)
		}
		if !errors.Is(err, c.result.Errno) {
			t.Errorf("%v is not %v", err, c.result.Errno)
		}
		var netError net.Error
		if !errors.As(err, &netError) || netError.Timeout() != c.timeout || errors.Is(err, os.ErrDeadlineExceeded) != c.timeout {
			t.Errorf("%v: a timeout? want %v", err, c.timeout)
		}
	}
	if err := (shaker.Result{Outcome: shaker.Open}).Err(); err != nil {
		t.Errorf("open: %v", err)
	}
}
