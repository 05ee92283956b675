package collector

import (
	"context"
	"net"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

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
	p := newHandler(t, settings{dialDNS: func(ctx context.Context, network, address string) (net.Conn, error) {
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
		p := newHandler(t, settings{dialDNS: func(ctx context.Context, network, address string) (net.Conn, error) {
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
