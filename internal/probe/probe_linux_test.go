package probe

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// choose returns the first address of the preferred protocol, or the first address if there is none.
func TestChoose(t *testing.T) {
	four, other4 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	six, other6 := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	for _, c := range []struct {
		addrs     []netip.Addr
		preferred string
		want      netip.Addr
	}{
		{addrs: []netip.Addr{six, other6, four, other4}, preferred: config.IP6, want: six},
		{addrs: []netip.Addr{six, other6, four, other4}, preferred: config.IP4, want: four},
		{addrs: []netip.Addr{four, six}, preferred: config.IP6, want: six},
		{addrs: []netip.Addr{four, other4}, preferred: config.IP6, want: four},
		{addrs: []netip.Addr{six, other6}, preferred: config.IP4, want: six},
	} {
		var r Request
		r.Module.TCP.PreferredIPProtocol = c.preferred
		if got := r.choose(c.addrs); got != c.want {
			t.Errorf("choose(%v) with preferred_ip_protocol %s = %v, want %v", c.addrs, c.preferred, got, c.want)
		}
	}
}

// Each address has the time of its own verdict, not the time of the slowest address.
func TestAddressesHaveTheirOwnTimes(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.2", simnet.RST())
	p := newProber(t, Options{
		Config:  parse(t, `modules: {all: {prober: tcp, timeout: 400ms, tcp: {addresses: all}}}`),
		DialDNS: simnet.NewDNS(t, simnet.Names{"two.example": {"192.0.2.2", "192.0.2.9"}}),
	})
	report, err := p.Probe(t.Context(), request(t, p, "two.example:80", "all"))
	if err != nil {
		t.Fatal(err)
	}
	records := report.Records()
	if len(records) != 2 || records[0].Duration >= records[1].Duration/2 ||
		records[1].Duration < 400*time.Millisecond {
		t.Errorf("the records of two.example are %+v, want two: the second after 400 ms, the first in less than "+
			"half of the time of the second", records)
	}
}

// All addresses of a name are in flight at the same time, and each of them counts.
func TestAllAddressesAtOnce(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	p := newProber(t, Options{
		MaxInFlight: 4,
		Config:      parse(t, `modules: {all: {prober: tcp, tcp: {addresses: all}}}`),
		DialDNS:     simnet.NewDNS(t, simnet.Names{"three.example": {"192.0.2.1", "192.0.2.2", "192.0.2.3"}}),
	})
	end := probeInBackground(t, p, "three.example:80", "all")
	wire.Await(3)
	if r, err := p.Probe(t.Context(), request(t, p, "three.example:80", "all")); !errors.Is(err, ErrInFlight) {
		t.Errorf("Probe of three addresses with three in flight and a limit of 4 = %+v, %v, want ErrInFlight", r, err)
	}
	if n := p.InFlight(); n != 3 {
		t.Errorf("InFlight() = %d during a probe of three addresses, want 3", n)
	}
	end()
	if n := p.InFlight(); n != 0 {
		t.Errorf("InFlight() = %d after all probes, want 0", n)
	}
}

// If this host cannot probe one address of a name because a local resource is exhausted, there is no verdict
// about the name.
func TestAllAddressesFault(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	p := newProber(t, Options{
		Config: parse(t, `
modules:
  tcp_connect: {prober: tcp, tcp: &port {source_ports: 40000}}
  all: {prober: tcp, tcp: {<<: *port, addresses: all}}
`),
		DialDNS: simnet.NewDNS(t, simnet.Names{"two.example": {"192.0.2.1", "192.0.2.2"}}),
	})
	end := probeInBackground(t, p, "192.0.2.2:80", "tcp_connect")
	defer end()
	wire.Await(1)
	r, err := p.Probe(t.Context(), request(t, p, "two.example:80", "all"))
	const want = "shake 192.0.2.2:80: connect: cannot assign requested address"
	if r != nil || !errors.Is(err, syscall.EADDRNOTAVAIL) || err.Error() != want {
		t.Errorf("Probe with the only source port in use = %+v, %v, want the error %q", r, err, want)
	}
	if n := p.InFlight(); n != 1 {
		t.Errorf("InFlight() = %d, want 1 for the probe in the background", n)
	}
}

// Probes that are rejected never count as in flight, not even for a moment: they would take the place of
// other probes.
func TestRejectedProbesAreNotInFlight(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	p := newProber(t, Options{MaxInFlight: 1})
	end := probeInBackground(t, p, "192.0.2.1:80", config.DefaultModule)
	wire.Await(1)
	req := request(t, p, "127.0.0.1:1", config.DefaultModule)
	var callers sync.WaitGroup
	var running atomic.Int64
	for range 4 {
		running.Add(1)
		callers.Go(func() {
			defer running.Add(-1)
			for range 2000 {
				if r, err := p.Probe(t.Context(), req); !errors.Is(err, ErrInFlight) {
					t.Errorf("Probe with one in flight and a limit of 1 = %+v, %v, want ErrInFlight", r, err)
				}
			}
		})
	}
	most := int64(0)
	for running.Load() > 0 {
		most = max(most, p.InFlight())
	}
	callers.Wait()
	if most != 1 {
		t.Errorf("InFlight() was up to %d, want 1 all the time", most)
	}
	end()
}

// A module's socket options reach the wire.
func TestModuleOptions(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.RST())
	p := newProber(t, Options{
		Config: parse(t, `modules: {ports: {prober: tcp, tcp: {source_ports: 40000-40003}}}`),
	})
	if r, err := p.Probe(t.Context(), request(t, p, "192.0.2.1:80", "ports")); err != nil {
		t.Errorf("Probe(192.0.2.1:80) = %+v, %v, want a report", r, err)
	}
	syns := 0
	for syn := range network.Sent() {
		syns++
		if port := syn.Src.Port(); port < 40000 || port > 40003 {
			t.Errorf("SYN from %v, want a port from 40000 to 40003", syn.Src)
		}
	}
	if syns == 0 {
		t.Error("no SYN was sent, want one")
	}
}

// If no address of a name is usable, the reason says why, and the verdict has a time.
func TestNoUsableAddress(t *testing.T) {
	p := newProber(t, Options{DialDNS: simnet.NewDNS(t, simnet.Names{"this.example": {"0.0.0.0"}})})
	report, err := p.Probe(t.Context(), request(t, p, "this.example.:80", config.DefaultModule))
	if err != nil {
		t.Fatal(err)
	}
	const want = "no usable address: 0.0.0.0 stands for this host, want an address such as 127.0.0.1 or ::1"
	if report.Result != config.DNSError || report.Err == nil || report.Err.Error() != want || report.At <= 0 {
		t.Errorf("Probe(this.example) = %s because of %v at %v, want %s because of %s, at a later time than 0",
			report.Result, report.Err, report.At, config.DNSError, want)
	}
}

// The path has as many hops as the module permits.
func TestMaxHops(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK()).Behind("198.51.100.1", "198.51.100.2", "198.51.100.3")
	p := newProber(t, Options{Config: parse(t, `modules: {two: {prober: tcp, tcp: {path: always, max_hops: 2}}}`)})
	report, err := p.Probe(t.Context(), request(t, p, "192.0.2.1:80", "two"))
	if err != nil {
		t.Fatal(err)
	}
	if path := report.Path; path == nil || len(path.Hops) != 2 || path.Reached != 0 {
		t.Errorf("Probe with max_hops 2 has the path %+v, error %v, want two hops that do not reach the target",
			path, report.PathErr)
	}
}

// Without a way to reach DNS servers in the options, the prober uses the one of package net.
func TestDefaultDialer(t *testing.T) {
	if p := newProber(t, Options{}); p.options.DialDNS == nil {
		t.Error("New without DialDNS has none, want the one of net.Dialer")
	}
}

// Reserved handshakes count as in flight: probes may use only the rest.
func TestReserve(t *testing.T) {
	p := newProber(t, Options{MaxInFlight: 4})
	listen(t, "127.0.0.1:7205")
	req := request(t, p, "127.0.0.1:7205", config.DefaultModule)
	p.Reserve(4)
	if n := p.InFlight(); n != 4 {
		t.Errorf("%d handshakes are in flight with 4 reserved, want 4", n)
	}
	const want = "too many probes in flight (limit: --probe.max-in-flight), " +
		"4 of them reserved for watched and held targets"
	if r, err := p.Probe(t.Context(), req); !errors.Is(err, ErrInFlight) || err.Error() != want {
		t.Errorf("Probe with all handshakes reserved = %+v, error %v, want %s", r, err, want)
	}
	p.Reserve(-1)
	if r, err := p.Probe(t.Context(), req); err != nil || r.Result != "open" {
		t.Errorf("Probe with one handshake that is not reserved = %+v, error %v, want open", r, err)
	}
}

// If no DNS server was asked, name resolution is not to blame for a timeout that is too short.
func TestTimeoutTooShortForHostsFile(t *testing.T) {
	p := newProber(t, Options{})
	req := request(t, p, "localhost:7206", config.DefaultModule)
	for req.Timeout = time.Nanosecond; req.Timeout < 10*time.Microsecond; req.Timeout *= 2 {
		r, err := p.Probe(t.Context(), req)
		// A closed port of this host may answer within microseconds.
		if refused := err == nil && r.Result == "refused"; !refused && !errors.Is(err, shaker.ErrUnsent) {
			t.Errorf("Probe of localhost with the timeout %v = %+v, error %v, want %v or refused",
				req.Timeout, r, err, shaker.ErrUnsent)
		}
	}
}
