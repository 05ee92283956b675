package registry

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

const name = "host.example:80"

// look looks all names up, and waits until a target has adapted.
func (b *bench) look(target *fakeTarget) {
	b.t.Helper()
	lab.Eventually(b.t, "the previous lookup has ended", func() bool { return !target.isLooking() })
	before := target.adaptations()
	b.resolve()
	lab.Eventually(b.t, "the target adapts", func() bool { return target.adaptations() > before })
}

// A name is looked up again and again, and the target gets the result. An address is not looked up.
func TestLookups(t *testing.T) {
	b := newBench(t)
	target, address := b.scrape(name, "one"), b.scrape(first, "one")
	want := []LookupCount{{Result: Resolved, Total: 1}, {Result: config.DNSNotFound}, {Result: config.DNSTimeout},
		{Result: config.DNSError}, {Result: fault}}
	if got := target.Lookups(); !slices.Equal(got, want) {
		t.Errorf("the first scrape counts %+v, want %+v", got, want)
	}
	if got := address.Lookups(); got != nil {
		t.Errorf("the scrape of an address counts %+v, want no lookups", got)
	}
	b.Resolve(time.Now())
	if target.isLooking() {
		t.Error("the name is looked up right after the first scrape, want later")
	}
	for _, c := range []struct {
		dns     simnet.Names
		verdict string
		want    []netip.Addr
	}{
		{dns: simnet.Names{"host.example": {"10.0.0.2"}}, want: []netip.Addr{netip.MustParseAddr("10.0.0.2")}},
		{dns: simnet.Names{"host.example": {"10.0.0.3", "10.0.0.2"}},
			want: []netip.Addr{netip.MustParseAddr("10.0.0.3"), netip.MustParseAddr("10.0.0.2")}},
		{verdict: config.DNSNotFound},
	} {
		b.answerDNS(c.dns)
		result := c.verdict
		if result == "" {
			result = Resolved
		}
		before := target.looked(result)
		b.look(target)
		lab.Eventually(t, "the lookup is counted: "+result, func() bool { return target.looked(result) > before })
		target.mu.Lock()
		if !slices.Equal(target.adapted, c.want) || target.verdict != c.verdict {
			t.Errorf("with %v, the target adapts to %v, %q, want %v, %q",
				c.dns, target.adapted, target.verdict, c.want, c.verdict)
		}
		target.mu.Unlock()
	}
	if n := address.adaptations(); n > 0 {
		t.Errorf("the address was looked up %d times, want never", n)
	}
}

// Names are not looked up if the interval is 0.
func TestNoLookups(t *testing.T) {
	b := newBench(t)
	b.options.Resolve = func(*config.Module) time.Duration { return 0 }
	target := b.scrape(name, "one")
	b.resolve()
	if target.isLooking() {
		t.Error("the name is looked up, want never")
	}
}

// A target whose name has only addresses that are denied is forgotten.
func TestLookupDenied(t *testing.T) {
	b := newBench(t)
	b.reload(`targets: {deny: ["10.0.0.9/32:*"]}` + testConfig)
	target := b.scrape(name, "one")
	b.answerDNS(simnet.Names{"host.example": {"10.0.0.9"}})
	b.resolve()
	lab.Eventually(t, "the target is forgotten", func() bool { return b.keys() == nil })
	if n := target.adaptations(); n > 0 || target.isRunning() {
		t.Errorf("the target has adapted %d times, runs %t, want that it was stopped", n, target.isRunning())
	}
}

// holdDNS lets lookups wait for release, and then continue with the DNS server of that time. A value is sent for each
// that has begun.
func (b *bench) holdDNS() (begun <-chan struct{}, release func()) {
	arrivals, released := make(chan struct{}, 1000), make(chan struct{})
	b.dialDNS(func(ctx context.Context, network, address string) (net.Conn, error) {
		arrivals <- struct{}{}
		select {
		case <-released:
			return (*b.dns.Load())(ctx, network, address)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	return arrivals, func() { close(released) }
}

// A lookup that ends after a reload is ignored, because the policy may deny what was found. The name is looked up again
// soon.
func TestReloadDuringLookup(t *testing.T) {
	b := newBench(t)
	target := b.scrape(name, "one")
	begun, release := b.holdDNS()
	b.resolve()
	within(t, "the lookup begins", begun)
	b.reload(`targets: {deny: ["10.0.0.9/32:*"]}` + testConfig)
	b.answerDNS(simnet.Names{"host.example": {"10.0.0.9"}})
	release()
	lab.Eventually(t, "the lookup ends", func() bool { return len(b.lookups) == 0 })
	if n := target.adaptations(); n > 0 {
		t.Errorf("the target has adapted %d times to an address that is denied now, want 0", n)
	}
	b.resolve()
	lab.Eventually(t, "the target is forgotten", func() bool { return b.keys() == nil })
}

// A reload may come while a target adapts, and deny the new address. Configure still saw the previous one.
func TestReloadDuringAdaptation(t *testing.T) {
	b := newBench(t)
	target := b.scrape(name, "one")
	b.answerDNS(simnet.Names{"host.example": {"10.0.0.9"}})
	b.onAdapt = func() {
		b.reload(`targets: {deny: ["10.0.0.9/32:*"]}` + testConfig)
		if !slices.Contains(b.keys(), "one "+name) {
			t.Error("the reload has forgotten the target, want not yet")
		}
	}
	b.resolve()
	lab.Eventually(t, "the target is forgotten", func() bool { return b.keys() == nil })
	if target.isRunning() {
		t.Error("the target runs with an address that is denied, want that it was stopped")
	}
}

// A lookup may end after the target has expired or has been forgotten. It changes nothing about a new one.
func TestExpiryDuringLookup(t *testing.T) {
	b := newBench(t)
	b.reload(`targets: {deny: ["10.0.0.9/32:*"]}` + testConfig)
	b.scrape(name, "one")
	begun, release := b.holdDNS()
	b.resolve()
	within(t, "the lookup begins", begun)
	b.expire(time.Hour)
	b.expire(2 * time.Hour)
	other := b.scrape(name, "one")
	b.answerDNS(simnet.Names{"host.example": {"10.0.0.9"}})
	release()
	lab.Eventually(t, "the lookup ends", func() bool { return len(b.lookups) == 0 })
	if got := b.scrape(name, "one"); got != other || !other.isRunning() {
		t.Errorf("after the lookup: %p, runs %t, want %p, which runs", got, other.isRunning(), other)
	}
}

// Lookups for which there is no room are made later. None is lost.
func TestLookupsAtOnce(t *testing.T) {
	b := newBench(t)
	var targets []*fakeTarget
	names := make(simnet.Names)
	for i := range lookupsAtOnce + 10 {
		host := fmt.Sprintf("host%d.example", i)
		names[host] = []string{"10.0.0.2"}
		targets = append(targets, b.scrape(host+":80", "one"))
	}
	_, release := b.holdDNS()
	b.resolve()
	b.resolve()
	looking := 0
	for _, target := range targets {
		if target.isLooking() {
			looking++
		}
	}
	if looking != lookupsAtOnce {
		t.Errorf("%d lookups at once, want %d", looking, lookupsAtOnce)
	}
	b.answerDNS(names)
	release()
	lab.Eventually(t, "all names are looked up", func() bool {
		b.resolve()
		return !slices.ContainsFunc(targets, func(t *fakeTarget) bool { return t.adaptations() == 0 })
	})
}

// The interval of lookups is kept, although each of them begins a little late and takes a while. Those that could not
// be made in time are not made up for.
func TestLookupInterval(t *testing.T) {
	for _, c := range []struct {
		resolve, takes time.Duration
		stopped        time.Duration // the process stands still from the second minute on
		want           int           // lookups in the minute after that
	}{
		{resolve: time.Second, want: 60},
		{resolve: time.Second, takes: 900 * time.Millisecond, want: 60},
		{resolve: time.Second, takes: 1500 * time.Millisecond, want: 30},
		{resolve: 1500 * time.Millisecond, want: 40},
		{resolve: 10 * time.Second, takes: 4 * time.Second, want: 6},
		{resolve: 10 * time.Second, stopped: 5 * time.Minute, want: 6},
		{resolve: 0, want: 0},
	} {
		const registered = moment(300 * time.Millisecond)
		var r Registration
		r.countLookup(Resolved, registered, c.resolve)
		var ends moment // of the running lookup
		count := 0
		from := moment(time.Minute + c.stopped)
		for tick := moment(time.Second); tick < from+moment(time.Minute); tick += moment(time.Second) {
			if tick > moment(time.Minute) && tick < from {
				continue
			}
			now := tick + tick%7*moment(10*time.Millisecond) // the upkeep is late
			if now < ends || !r.mustLookUp(now) {
				continue
			}
			r.countLookup(Resolved, now, c.resolve)
			ends = now + moment(c.takes)
			if tick >= from {
				count++
			}
		}
		if count != c.want {
			t.Errorf("with resolve %v, each taking %v, after a stop of %v: %d lookups in a minute, want %d",
				c.resolve, c.takes, c.stopped, count, c.want)
		}
	}
}
