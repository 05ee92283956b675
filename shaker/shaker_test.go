package shaker_test

import (
	"context"
	"errors"
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
		{netip.MustParseAddrPort("127.0.0.1:1"), &shaker.Options{Source: netip.IPv6Loopback()},
			"shake 127.0.0.1:1: no SYN can be addressed to it: the source ::1 is of another family", shaker.ErrTarget},
		{netip.MustParseAddrPort("[::1]:1"), &shaker.Options{Source: netip.MustParseAddr("::ffff:127.0.0.1")},
			"shake [::1]:1: no SYN can be addressed to it: the source 127.0.0.1 is of another family", shaker.ErrTarget},
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

// Values that would be others to the kernel, or none, are refused before they get there.
func TestOptionsOutOfRange(t *testing.T) {
	s := newShaker(t)
	for _, c := range []struct {
		options shaker.Options
		want    string
	}{
		{shaker.Options{Timeout: -time.Second}, "negative timeout -1s"},
		{shaker.Options{DSCP: 64}, "DSCP 64: above 63"},
		{shaker.Options{DSCP: 200}, "DSCP 200: above 63"},
		{shaker.Options{SourcePorts: shaker.PortRange{First: 2, Last: 1}}, "source ports 2-1: no range of ports"},
		{shaker.Options{SourcePorts: shaker.PortRange{First: 1}}, "source ports 1-0: no range of ports"},
		{shaker.Options{SourcePorts: shaker.PortRange{Last: 1}}, "source ports 0-1: no range of ports"},
		{shaker.Options{Source: netip.MustParseAddr("224.0.0.1")}, "source 224.0.0.1: not the address of one host"},
		{shaker.Options{Source: netip.MustParseAddr("255.255.255.255")}, "source 255.255.255.255: not the address of one host"},
		{shaker.Options{Source: netip.MustParseAddr("::ffff:255.255.255.255")}, "source 255.255.255.255: not the address of one host"},
		{shaker.Options{Source: netip.MustParseAddr("ff02::1%1")}, "source ff02::1%1: not the address of one host"},
		{shaker.Options{Source: netip.MustParseAddr("fe80::1")}, "source fe80::1: a link-local address needs a zone"},
		{shaker.Options{Source: netip.MustParseAddr("fe80::1%here"), Interface: "there"},
			`source fe80::1%here: its zone is not the interface "there"`},
	} {
		if err := c.options.Check(); err == nil || err.Error() != c.want {
			t.Errorf("Check: %v, want %s", err, c.want)
		}
		r, err := s.Shake(context.Background(), netip.MustParseAddrPort("127.0.0.1:1"), &c.options)
		if want := "shake 127.0.0.1:1: " + c.want; err == nil || err.Error() != want || r != (shaker.Result{}) {
			t.Errorf("%+v, %v, want %s", r, err, want)
		}
	}
	if err := (&shaker.Options{}).Check(); err != nil {
		t.Errorf("no options: %v", err)
	}
}

// Every platform can send from an address of its own, and close with a FIN.
func TestSourceAndFIN(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	for _, source := range []string{"127.0.0.1", "::ffff:127.0.0.1"} {
		options := &shaker.Options{Source: netip.MustParseAddr(source), FIN: true}
		if err := options.Check(); err != nil {
			t.Errorf("source %v: %v", source, err)
		}
		r, err := newShaker(t).Shake(context.Background(), server.Addr().(*net.TCPAddr).AddrPort(), options)
		if err != nil || r.Outcome != shaker.Open || !r.ACKSent || r.ResetLag != 0 || r.Local.Addr() != options.Source.Unmap() {
			t.Fatalf("source %v: %+v, %v", source, r, err)
		}
		conn, err := server.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if data, err := io.ReadAll(conn); len(data) > 0 || err != nil {
			t.Errorf("read %q, %v, want EOF", data, err)
		}
		conn.Close()
	}
}

func TestSourceOfAnotherHost(t *testing.T) {
	options := &shaker.Options{Source: netip.MustParseAddr("192.0.2.99")}
	if err := options.Check(); !errors.Is(err, syscall.EADDRNOTAVAIL) || !strings.Contains(err.Error(), "source 192.0.2.99: ") {
		t.Errorf("Check: %v", err)
	}
	r, err := newShaker(t).Shake(context.Background(), netip.MustParseAddrPort("127.0.0.1:1"), options)
	if !errors.Is(err, syscall.EADDRNOTAVAIL) || !strings.Contains(err.Error(), "192.0.2.99") || r != (shaker.Result{}) {
		t.Errorf("%+v, %v", r, err)
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
