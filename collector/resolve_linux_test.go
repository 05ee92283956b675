package collector

import (
	"context"
	"net"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
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

// A silent DNS server is given up at the probe's deadline, not at the resolver's own, which
// is a multiple of 5 s.
func TestLookupDeadline(t *testing.T) {
	p := newProber(t, Options{DialDNS: lab.NewDNS(t, nil)})
	value := values(t, get(p, "/probe?target=silent.example:80", timeoutHeader, "0.1"))
	for _, name := range []string{"probe_dns_lookup_time_seconds", "probe_duration_seconds"} {
		if took := value(name); took < 0.1 || took > 4 {
			t.Errorf("%s %v, want 0.1", name, took)
		}
	}
}

// When the caller has gone, the sockets of its lookup are closed, long before the deadline.
func TestLookupEndsWithItsCaller(t *testing.T) {
	dial := lab.NewDNS(t, nil)
	ctx, cancel := context.WithCancel(context.Background())
	var open sync.WaitGroup
	p := newProber(t, Options{DialDNS: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		deadline, _ := ctx.Deadline()
		open.Add(1)
		time.AfterFunc(10*time.Millisecond, cancel) // the caller goes while the server is silent
		return dnsConn{conn, sync.OnceFunc(func() {
			if !time.Now().Before(deadline) {
				t.Error("a socket was open until the deadline")
			}
			open.Done()
		})}, nil
	}})
	r := httptest.NewRequest("GET", "/probe?target=silent.example:80", nil)
	p.ServeHTTP(httptest.NewRecorder(), r.WithContext(ctx))
	open.Wait()
}
