package watch

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// Whatever the network loses, the counters of each target are what the wire shows, to the handshake, and the quantiles
// of the latency lie within one bucket of the wire's. The control: one SYN per 15 s over the same losses, as a scrape
// without watch sends it, shows next to nothing of them. This is a million handshakes:
//
//	go test -run MatchesTheWire ./internal/watch -soak 2m
func TestWatchMatchesTheWire(t *testing.T) {
	const perGroup = 150
	handshakes := 60_000
	switch {
	case *lab.Soak >= time.Minute:
		handshakes = 1_000_000
	case lab.Race || testing.Short():
		handshakes = 10_000
	}
	b := newBench(t, watchConfig, 0, Options{})
	b.network.WatchStalls()
	process.Prefer(t)
	groups := []struct {
		prefix string
		loss   float64
		bursts bool
	}{
		{prefix: "10.9.0.0/24", loss: 0.001},
		{prefix: "10.9.1.0/24", loss: 0.01},
		{prefix: "10.9.2.0/24", loss: 0.05},
		{prefix: "10.9.3.0/24", bursts: true},
	}
	var targets []netip.AddrPort
	var bursting *simnet.Host
	for i, g := range groups {
		answer := simnet.SYNACK().Between(time.Millisecond, 200*time.Millisecond)
		host := b.network.At(g.prefix, answer).Losing(g.loss, 0)
		if g.bursts {
			bursting = host
		}
		for n := range perGroup {
			targets = append(targets, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i), byte(n + 1)}), 443))
		}
	}
	var scraping sync.WaitGroup
	for _, target := range targets {
		scraping.Go(func() { b.scrape(target.String(), "fast") })
	}
	scraping.Wait()
	if t.Failed() {
		return // a target is not watched
	}
	// The network is silent for the last group for a while, again and again.
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for loss := 1.0; ; loss = 1 - loss {
			select {
			case <-over:
				return
			case <-time.After(700 * time.Millisecond):
				bursting.Losing(loss, 0)
			}
		}
	}()
	watched := make(map[string]*target)
	for t := range b.watcher.registry.Targets() {
		watched[t.Key.Target] = t
	}
	total := func() (n int) {
		for _, t := range watched {
			n += int(t.snapshot().total(""))
		}
		return n
	}
	for before := 0; total() < handshakes; {
		lab.Eventually(t, fmt.Sprintf("there are more than %d handshakes", before),
			func() bool { return total() > before })
		before = total()
	}
	close(over)
	<-ended
	b.watcher.Close() // the handshakes that are running end without a result

	wire := make(map[netip.AddrPort]*truth)
	for _, target := range targets {
		wire[target] = &truth{}
	}
	for _, exchange := range b.network.Exchanges() {
		w := wire[exchange.SYN.Dst]
		w.losses = append(w.losses, exchange.After == 0)
		switch {
		case exchange.After == 0:
			w.lost++
		case exchange.After > 250*time.Millisecond:
			w.late++
		default:
			w.open++
			w.rtts = append(w.rtts, exchange.After)
		}
	}
	var lost [4]int
	seen, wrong := 0, 0
	for i, target := range targets {
		counters := watched[target.String()]
		s, w := counters.snapshot(), wire[target]
		open, timeouts := int(s.total("open")), int(s.total("timeout"))
		group := i / perGroup
		lost[group] += timeouts
		seen += open + timeouts
		w.late += int(s.Skipped.Late) // the machine stood still, and with it the network: any answer may have been late
		if open > w.open+w.late || open < w.open-running-w.late ||
			timeouts > w.lost+w.late || timeouts < w.lost-running ||
			open+timeouts+int(s.Skipped.Fault) > w.open+w.lost+w.late {
			if wrong++; wrong > 3 {
				t.Fatal("and further targets")
			}
			t.Errorf("%v: %d open and %d lost, %+v, want %d and %d as on the wire, and %d of either; "+
				"up to %d were running:\n%s",
				target, open, timeouts, s.Skipped, w.open, w.lost, w.late, running, b.network.Trace(target.Addr()))
		}
		if w.late > 0 || len(w.rtts) < 50 {
			continue
		}
		slices.Sort(w.rtts)
		for _, q := range []float64{0.5, 0.9} {
			// Up to 4 handshakes are on the wire and not in the histogram.
			rank := q * float64(len(w.rtts)-1)
			least, most := w.rtts[int(rank)-running], w.rtts[min(int(rank)+1+running, len(w.rtts)-1)]
			const bucket = 1.0905077326652577 // 2^(1/8)
			got := counters.rtt.Quantile(q)
			if got.Seconds() < least.Seconds()/bucket || got.Seconds() > most.Seconds()*bucket {
				t.Errorf("%v: quantile %v is %v, want %v to %v as on the wire, give or take a bucket",
					target, q, got, least, most)
			}
		}
	}
	t.Logf("%d handshakes; timeouts, by group: %v", seen, lost)
	for i, g := range groups {
		if lost[i] == 0 {
			t.Errorf("no handshake of the group with a loss of %v (bursts: %t) was lost, want some", g.loss, g.bursts)
		}
		var c control
		for n := range perGroup {
			c.add(wire[targets[i*perGroup+n]], n)
		}
		t.Logf("loss of %v (bursts: %t): the wire, and one SYN per 15 s: %+v", g.loss, g.bursts, c)
		switch {
		case g.bursts && c.outagesSeen*10 > c.outages:
			t.Errorf("one SYN per 15 s sees %d of %d outages, want a tenth at most", c.outagesSeen, c.outages)
		case !g.bursts && c.estimates > 0:
			t.Errorf("one SYN per 15 s estimates a loss of %v within 30%% for %d targets, want none",
				g.loss, c.estimates)
		case g.loss == 0.001 && c.lossySeen*10 > c.lossy:
			t.Errorf("one SYN per 15 s sees a loss for %d of %d targets that have lost 1 of 1000, want a tenth at most",
				c.lossySeen, c.lossy)
		}
	}
}

// running is how many handshakes with a target may be running at the end: three of 300 ms, and one whose answer was
// just coming in.
const running = 4

// A truth is what the wire shows of the handshakes with a target. A late answer is one that may be after the deadline,
// because the simulated network was late.
type truth struct {
	open, lost, late int
	rtts             []time.Duration
	losses           []bool // of all SYNs in their order, whether there was no answer
}

// A control is what one SYN per 15 s shows of the losses of a group of targets.
type control struct {
	all, allLost         int // SYNs of all targets
	syns, lost           int // those of them that the control has
	lossy, lossySeen     int // targets that have lost handshakes, and those of them for which the control has a loss
	estimates            int // lossy targets whose loss the control has within 30%
	outages, outagesSeen int // three or more losses in a row, and those of them in which the control has a SYN
}

// add adds a target. The control has one of 150 of its SYNs, which are sent every 100 ms, from the given one on.
func (c *control) add(w *truth, first int) {
	const every = int(15 * time.Second / (100 * time.Millisecond))
	losses := w.losses[:max(0, len(w.losses)-running)]
	var syns, lost, lostOfSampled, row int
	sampledInRow := false
	endRow := func() {
		if row >= 3 {
			c.outages++
			if sampledInRow {
				c.outagesSeen++
			}
		}
		row, sampledInRow = 0, false
	}
	for i, loss := range losses {
		sampled := i%every == first
		if sampled {
			syns++
		}
		if !loss {
			endRow()
			continue
		}
		lost++
		row++
		if sampled {
			lostOfSampled++
			sampledInRow = true
		}
	}
	endRow()
	c.all += len(losses)
	c.allLost += lost
	c.syns += syns
	c.lost += lostOfSampled
	if lost == 0 {
		return
	}
	c.lossy++
	if lostOfSampled > 0 {
		c.lossySeen++
	}
	share := float64(lost) / float64(len(losses))
	if syns > 0 && math.Abs(float64(lostOfSampled)/float64(syns)/share-1) <= 0.3 {
		c.estimates++
	}
}
