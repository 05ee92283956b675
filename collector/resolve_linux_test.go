package collector

import (
	"context"
	"errors"
	"net"
	"net/http/httptest"
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

func TestChoose(t *testing.T) {
	four, other4 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	six, other6 := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	for _, c := range []struct {
		addrs     []netip.Addr
		preferred string
		want      netip.Addr
	}{
		{[]netip.Addr{six, other6, four, other4}, config.IP6, six},
		{[]netip.Addr{six, other6, four, other4}, config.IP4, four},
		{[]netip.Addr{four, six}, config.IP6, six},
		{[]netip.Addr{four, other4}, config.IP6, four},
		{[]netip.Addr{six, other6}, config.IP4, six},
	} {
		if got := choose(c.addrs, c.preferred); got != c.want {
			t.Errorf("%v of %v: %v, want %v", c.preferred, c.addrs, got, c.want)
		}
	}
}

// dnsConn is a connection to a DNS server that tells of its being closed.
type dnsConn struct {
	net.Conn
	closed func()
}

func (c dnsConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// When the callers have gone, the sockets of their lookups are closed, long before the
// resolver would do that. Two of them ask for the same name.
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
	var callers sync.WaitGroup
	for range 2 {
		callers.Go(func() {
			r := httptest.NewRequest("GET", "/probe?target=silent.example:80&module=tcp_connect_ip4", nil)
			p.ServeHTTP(httptest.NewRecorder(), r.WithContext(ctx))
		})
	}
	for range 2 { // one query of each caller
		<-dialled
	}
	cancel()
	callers.Wait()
	lab.Eventually(t, "the sockets are closed", func() bool { return open.Load() == 0 })
	if n := late.Load(); n > 0 {
		t.Errorf("%d sockets were open until the resolver's own deadline", n)
	}
}

// A query that is given up at the resolver's own deadline ends with a timeout, and not
// because its socket was closed: that would not be told from a broken answer. It takes many
// queries for one to lose that race.
func TestQueriesTimeOut(t *testing.T) {
	resolver := newResolver(simnet.NewDNS(t, nil))
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
				t.Error(err)
			}
		})
	}
	queries.Wait()
}

// A query that could not be sent leaves the lookup without an answer, whatever the resolver
// makes of it: it has another try, and asks for the addresses of the other IP version. But a
// server that has no way from this host is one of several.
func TestQueryNotSent(t *testing.T) {
	dial := simnet.NewDNS(t, simnet.Names{"six.example": {"::1"}})
	for _, c := range []struct {
		errno  syscall.Errno
		status int
	}{{syscall.EMFILE, 503}, {syscall.EAGAIN, 503}, {syscall.ENETUNREACH, 200}, {syscall.EADDRNOTAVAIL, 200}} {
		var dials atomic.Int64
		p := newProber(t, Options{DialDNS: func(ctx context.Context, network, address string) (net.Conn, error) {
			if dials.Add(1) == 1 {
				return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", c.errno)}
			}
			return dial(ctx, network, address)
		}})
		if w := get(p, "/probe?target=six.example:1"); w.Code != c.status {
			t.Errorf("%v: %d %s", c.errno, w.Code, w.Body)
		}
	}
}

// The resolver's errors have no more than the text of their cause.
func TestFaultOf(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EAGAIN} {
		if got := faultOf(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)}); got != errno {
			t.Errorf("%v, dialling: %v", errno, got)
		}
		err := &net.DNSError{Err: "dial udp 192.0.2.53:53: " + os.NewSyscallError("socket", errno).Error(), Name: "x"}
		if got := faultOf(err); got != errno {
			t.Errorf("%v: %v", err, got)
		}
	}
	for _, err := range []error{nil, errors.New("too many open files"), context.DeadlineExceeded, os.ErrDeadlineExceeded, &net.DNSError{Err: "no such host", IsNotFound: true},
		&net.DNSError{Err: "read udp: connection refused"}} {
		if got := faultOf(err); got != 0 {
			t.Errorf("%v: %v", err, got)
		}
	}
}
