package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// A query that reaches the resolver's own deadline ends with a timeout, not because its socket was closed: the
// latter would look like a broken answer. The test makes many queries because it takes many for one to lose
// this race.
func TestQueriesTimeOut(t *testing.T) {
	resolver := newResolver(simnet.NewDNS(t, nil), true)
	var queries sync.WaitGroup
	for range 300 {
		queries.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			conn, err := resolver.Dial(ctx, "udp", "")
			if err == nil {
				deadline, _ := ctx.Deadline()
				conn.SetDeadline(deadline) // as the resolver does
				_, err = conn.Read(make([]byte, 512))
				conn.Close()
			}
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Errorf("a query without an answer ended with the error %v, want a timeout", err)
			}
		})
	}
	queries.Wait()
}

// dnsConn is a connection to a DNS server that calls a function when it is closed.
type dnsConn struct {
	net.Conn
	closed func()
}

func (c dnsConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// When its caller is gone, a lookup closes its sockets at once, long before the resolver would close them. Two
// callers ask for the same name, because a shared resolver would merge their lookups.
func TestLookupsEndWithTheirCallers(t *testing.T) {
	dial := simnet.NewDNS(t, nil)
	dialled := make(chan struct{}, 100)
	var open, late atomic.Int64
	p := newProber(t, Options{DialDNS: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		deadline, _ := ctx.Deadline()
		open.Add(1)
		dialled <- struct{}{}
		return dnsConn{conn, sync.OnceFunc(func() {
			if !time.Now().Before(deadline) {
				late.Add(1)
			}
			open.Add(-1)
		})}, nil
	}})
	ctx, cancel := context.WithCancel(context.Background())
	req := request(t, p, "silent.example:80", "tcp_connect_ip4")
	var callers sync.WaitGroup
	for range 2 {
		callers.Go(func() {
			if r, err := p.Probe(ctx, req); !errors.Is(err, context.Canceled) {
				t.Errorf("Probe(silent.example:80) whose caller is gone = %+v, %v, want context.Canceled", r, err)
			}
		})
	}
	for range 2 { // one query of each caller
		<-dialled
	}
	cancel()
	callers.Wait()
	lab.Eventually(t, "the sockets are closed", func() bool { return open.Load() == 0 })
	if n := late.Load(); n > 0 {
		t.Errorf("%d sockets were open until the resolver's own deadline, want none", n)
	}
}

// If this host could not send one of the queries because a local resource is exhausted, there is no verdict, even
// if the resolver tries again or asks for the other IP version. But if this host has no route or no address to
// reach a server, the resolver may use another server.
func TestQueryNotSent(t *testing.T) {
	// The name has no address of the preferred IP version, so that the probe needs both answers.
	dial := simnet.NewDNS(t, simnet.Names{"four.example": {"127.0.0.1"}})
	for _, c := range []struct {
		errno syscall.Errno
		fault bool
	}{
		{errno: syscall.EMFILE, fault: true},
		{errno: syscall.EAGAIN, fault: true},
		{errno: syscall.ENETUNREACH, fault: false},
		{errno: syscall.EADDRNOTAVAIL, fault: false},
	} {
		var dials atomic.Int64
		p := newProber(t, Options{DialDNS: func(ctx context.Context, network, address string) (net.Conn, error) {
			if dials.Add(1) == 1 {
				return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", c.errno)}
			}
			return dial(ctx, network, address)
		}})
		r, err := p.Probe(t.Context(), request(t, p, "four.example:1", config.DefaultModule))
		switch {
		case c.fault && !errors.Is(err, c.errno):
			t.Errorf("Probe with %v for the first query = %+v, %v, want that error", c.errno, r, err)
		case !c.fault && err != nil:
			t.Errorf("Probe with %v for the first query = %+v, %v, want a report", c.errno, r, err)
		}
	}
}

// faultOf finds the errno even though the resolver's errors contain only the text of their cause.
func TestFaultOf(t *testing.T) {
	for _, errno := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EAGAIN,
	} {
		for _, err := range []error{
			&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)},
			&net.DNSError{Err: "dial udp 192.0.2.53:53: " + os.NewSyscallError("socket", errno).Error(), Name: "x"},
		} {
			if got := faultOf(err); got != errno {
				t.Errorf("faultOf(%v) = %d (%v), want %d (%v)", err, got, got, errno, errno)
			}
		}
	}
	for _, err := range []error{
		nil,
		errors.New("too many open files"),
		context.DeadlineExceeded,
		os.ErrDeadlineExceeded,
		&net.DNSError{Err: "no such host", IsNotFound: true},
		&net.DNSError{Err: "read udp: connection refused"},
	} {
		if got := faultOf(err); got != 0 {
			t.Errorf("faultOf(%v) = %d (%v), want 0", err, got, got)
		}
	}
}

// A name that has only addresses of the other IP version does not exist in this one. The resolver's error for it, which
// it returns for names of hosts(5), is about its own filter.
func TestNoAddressOfTheIPVersion(t *testing.T) {
	err := &net.AddrError{Err: "no suitable address found", Addr: "localhost"}
	got := newAnswer(config.IP6, nil, err)
	if got.err == nil || got.err.result != config.DNSNotFound || got.err.err != errNoAddress {
		t.Errorf("newAnswer(ip6, nil, %v) = %+v, want %s and %v", err, got.err, config.DNSNotFound, errNoAddress)
	}
}

// The answer of a network has the addresses of that network only. If there are none, it tells apart that there is no
// such address, that no answer came in time, and any other failure.
func TestNewAnswer(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"),
		netip.MustParseAddr("::ffff:192.0.2.2")}
	absent, late := &net.DNSError{IsNotFound: true}, &net.DNSError{IsTimeout: true}
	broken, noLiteral := &net.DNSError{IsTemporary: true}, &net.AddrError{}
	other := errors.New("another error")
	for _, c := range []struct {
		name, network string
		addrs         []netip.Addr
		err           error
		want          string // addresses
		result        string // if there are none
		reason        error
	}{
		{name: "both IP versions", network: config.IP4, addrs: addrs, want: "192.0.2.1 192.0.2.2"},
		{name: "both IP versions", network: config.IP6, addrs: addrs, want: "2001:db8::1"},
		{name: "addresses and an error", network: config.IP6, addrs: addrs, err: broken, want: "2001:db8::1"},
		{name: "the other IP version", network: config.IP6, addrs: addrs[:1],
			result: config.DNSNotFound, reason: errNoAddress},
		{name: "no such name", network: config.IP4, err: absent, result: config.DNSNotFound, reason: absent},
		{name: "not a name", network: config.IP4, err: noLiteral, result: config.DNSNotFound, reason: errNoAddress},
		{name: "no answer", network: config.IP4, err: late, result: config.DNSTimeout, reason: late},
		{name: "a broken server", network: config.IP4, err: broken, result: config.DNSError, reason: broken},
		{name: "another error", network: config.IP4, err: other, result: config.DNSError, reason: other},
	} {
		got := newAnswer(c.network, c.addrs, c.err)
		var result string
		var reason error
		if got.err != nil {
			result, reason = got.err.result, got.err.err
		}
		if got.network != c.network || joined(got.addrs) != c.want || result != c.result || reason != c.reason {
			t.Errorf("%s: newAnswer(%s, %v, %v) = %+v with %q because of %v, want the addresses %q or %q because of %v",
				c.name, c.network, c.addrs, c.err, got, result, reason, c.want, c.result, c.reason)
		}
	}
}
