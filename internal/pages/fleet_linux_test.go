package pages

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/watch"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A member describes the history of one target of the fleet.
type member struct {
	target, module, address string

	// Letters of results, 15 s apart: o is open, s is open after a lost SYN, r, t, u, p and n are
	// refused, timeout, unreachable, prohibited and dns_not_found.
	results string

	age  time.Duration // of the latest probe
	rtt  time.Duration // typical
	icmp shaker.ICMP   // the error of u and p
	want string        // the result that counts as a success; open if it is ""
}

// track returns the history of m, with random latencies.
func (m member) track(now time.Time, random *rand.Rand) history.Track {
	const period = 15 * time.Second
	first := now.Add(-m.age - period*time.Duration(len(m.results)))
	t := history.Track{Target: m.target, Module: cmp.Or(m.module, "tcp_connect"), Since: first}
	for i, c := range m.results {
		r := history.Record{Time: first.Add(period * time.Duration(i)), Address: netip.MustParseAddr(m.address)}
		switch c {
		case 'o', 's':
			r.Result = "open"
			r.RTT = m.rtt + time.Duration(random.ExpFloat64()*float64(m.rtt)/6)
			r.Handshake = r.RTT + time.Duration(random.ExpFloat64()*60e3)
			if c == 's' {
				r.SYNRetransmits, r.Handshake, r.RTT = 1, r.RTT+time.Second, 0
			}
			r.Duration = r.Handshake + 80*time.Microsecond
		case 'r':
			r.Result, r.Errno, r.Duration = "refused", "ECONNREFUSED", m.rtt
		case 't':
			r.Result, r.Errno, r.SYNRetransmits, r.Duration = "timeout", "ETIMEDOUT", 4, 5*time.Second
		case 'u':
			r.Result, r.Errno, r.ICMP, r.Duration = "unreachable", "EHOSTUNREACH", m.icmp, m.rtt
		case 'p':
			r.Result, r.Errno, r.ICMP, r.Duration = "prohibited", "EHOSTUNREACH", m.icmp, m.rtt
		case 'n':
			r.Result, r.Address, r.Duration = "dns_not_found", netip.Addr{}, m.rtt
		}
		r.Success = r.Result == cmp.Or(m.want, "open")
		if n := len(t.Records); n > 0 && t.Records[n-1].Result != r.Result {
			t.Since, t.Changed = r.Time, true
		}
		t.Records = append(t.Records, r)
	}
	return t
}

// routersTo returns a path that ends at the last of the routers with the given addresses, "" for a
// router that did not answer.
func routersTo(addresses ...string) *shaker.Path {
	p := &shaker.Path{}
	for i, a := range addresses {
		h := shaker.Hop{TTL: i + 1}
		if a != "" {
			h.From, h.RTT = netip.MustParseAddr(a), time.Duration((i*i+1)*307)*time.Microsecond
			h.ICMP = shaker.ICMP{From: h.From, Type: 11}
			if h.From.Is6() {
				h.ICMP.Type = 3
			}
		}
		p.Hops = append(p.Hops, h)
	}
	return p
}

// targetAt returns a path whose last address is the target itself.
func targetAt(outcome shaker.Outcome, addresses ...string) *shaker.Path {
	p := routersTo(addresses...)
	target := &p.Hops[len(p.Hops)-1]
	target.ICMP, target.Outcome, p.Reached = shaker.ICMP{}, outcome, target.TTL
	return p
}

// fleet returns a history with many kinds of targets.
func fleet() []history.Track {
	const us, ms = time.Microsecond, time.Millisecond
	router := shaker.ICMP{From: netip.MustParseAddr("10.4.0.1"), Type: 3, Code: 1}
	firewall := shaker.ICMP{From: netip.MustParseAddr("10.9.255.254"), Type: 3, Code: 13}
	n := strings.Repeat
	members := []member{
		{
			target: "orders-db-2.prod.example:5432", address: "10.1.7.32",
			results: n("o", 52) + "rrr", age: 4 * time.Second, rtt: 410 * us,
		},
		{
			target: "mail.example.org:25", address: "198.51.100.25",
			results: n("o", 20) + "t" + n("o", 11) + n("t", 27), age: 9 * time.Second, rtt: 18 * ms,
		},
		{
			target: "10.4.12.8:22", address: "10.4.12.8",
			results: n("u", 60), age: 12 * time.Second, rtt: 3 * ms, icmp: router,
		},
		{
			target: "billing.partner.example:8443", address: "10.9.3.4",
			results: n("o", 30) + n("p", 9), age: 2 * time.Second, rtt: 7 * ms, icmp: firewall,
		},
		{
			target: "search-old.prod.example:9200", address: "10.1.7.99",
			results: n("n", 40), age: 14 * time.Second, rtt: 2 * ms,
		},
		{
			target: "api.example.com:443", address: "2001:db8:4::443",
			results: n("o", 60), age: 3 * time.Second, rtt: 11 * ms,
		},
		{
			target: "cache-2.prod.example:6379", address: "10.1.7.41",
			results: n("o", 41) + "tt" + n("o", 17), age: 7 * time.Second, rtt: 205 * us,
		},
		{
			target: "edge.fra.example:443", address: "203.0.113.9",
			results: n("o", 22) + "s" + n("o", 8) + "s" + n("o", 14) + "s", age: 5 * time.Second, rtt: 26 * ms,
		},
		{
			target: "[2001:db8:0:7::53]:53", address: "2001:db8:0:7::53",
			results: n("o", 60), age: 11 * time.Second, rtt: 1400 * us,
		},
		{
			target: "orders-db-1.prod.example:5432", address: "10.1.7.31",
			results: n("o", 60), age: 6 * time.Second, rtt: 380 * us,
		},
		{
			target: "orders-db-1.prod.example:3306", address: "10.1.7.31", module: "tcp_closed", want: "refused",
			results: n("r", 60), age: 6 * time.Second, rtt: 380 * us,
		},
		{
			target: "web-1.prod.example:443", address: "10.1.7.10",
			results: n("o", 12), age: 8 * time.Second, rtt: 240 * us,
		},
		{
			target: "staging.example:443", address: "10.2.0.4",
			results: n("o", 33), age: 3 * time.Hour, rtt: 610 * us,
		},
	}
	random := rand.New(rand.NewPCG(1, 2))
	now := time.Now()
	var tracks []history.Track
	for _, m := range members {
		tracks = append(tracks, m.track(now, random))
	}
	tracks[0].Path = targetAt(shaker.Refused, "10.1.0.1", "10.1.7.32")
	tracks[1].Path = routersTo("10.1.0.1", "192.0.2.1", "198.51.100.130", "", "198.51.100.161")
	tracks[1].GoodPath = targetAt(shaker.Open,
		"10.1.0.1", "192.0.2.1", "", "203.0.113.17", "198.51.100.1", "198.51.100.25")
	tracks[2].Path = routersTo("10.1.0.1", "10.4.0.1")
	tracks[2].Path.Hops[1].ICMP = router
	tracks[5].Path = targetAt(shaker.Open,
		"2001:db8:1::1", "", "2001:db8:ffff:ffff:ffff:ffff:ffff:fff1", "2001:db8:4::443")
	tracks[5].GoodPath = tracks[5].Path
	return tracks
}

// A watchedMember describes a watched target of the fleet.
type watchedMember struct {
	target, address string

	// Letters of slots, 5 s apart: o has successes, l is one lost SYN, r one retransmission, t has timeouts only,
	// k handshakes that this host skipped, b both of these, and - none at all.
	slots string

	result string // the last one
	rtt    time.Duration
	since  time.Duration // registration
}

// status returns the status of m.
func (m watchedMember) status(now time.Time) *watch.Status {
	s := &watch.Status{
		Target:     m.target,
		Module:     "tcp_watch",
		Registered: now.Add(-m.since),
		Since:      now.Add(-m.since),
		SlotLength: 5 * time.Second,
		P50:        m.rtt,
		P99:        m.rtt * 7 / 4,
		Client:     "10.1.0.90",
		Scraped:    now.Add(-8 * time.Second),
		Expires:    now.Add(292 * time.Second),
		Last: history.Record{
			Time: now.Add(-time.Second), Result: m.result, Success: m.result == "open", RTT: m.rtt * 11 / 10,
			Handshake: m.rtt * 12 / 10, Address: netip.MustParseAddr(m.address),
		},
		All: watch.Tally{Completed: uint64(m.since / time.Second)},
	}
	if !s.Last.Success {
		s.Last.Errno, s.Last.RTT, s.Last.Handshake = "ETIMEDOUT", 0, 0
		s.Changed, s.Since = true, now.Add(-22*time.Second)
	}
	for i, c := range m.slots {
		slot := map[rune]watch.Slot{
			'o': {Completed: 5},
			'l': {Completed: 5, Failed: 1, Lost: 1},
			'r': {Completed: 5, Lost: 1},
			't': {Completed: 5, Failed: 5, Lost: 5},
			'k': {Skipped: 5},
			'b': {Completed: 3, Failed: 1, Lost: 1, Skipped: 2},
			'-': {},
		}[c]
		s.Slots = append(s.Slots, slot)
		s.All.Lost += uint64(slot.Lost)
		s.All.Failed += uint64(slot.Failed)
		if age := s.SlotLength * time.Duration(len(m.slots)-i); slot.Failed > 0 {
			s.Failure, s.FailureAt = "timeout", now.Add(1234*time.Millisecond-age)
		}
		if i >= len(m.slots)-13 {
			s.LastMinute.Completed += uint64(slot.Completed)
			s.LastMinute.Lost += uint64(slot.Lost)
			s.LastMinute.Failed += uint64(slot.Failed)
		}
	}
	return s
}

// watchedFleet returns many kinds of watched targets.
func watchedFleet() []*watch.Status {
	const us, ms = time.Microsecond, time.Millisecond
	n := strings.Repeat
	var all []*watch.Status
	for _, m := range []watchedMember{
		{
			target: "gateway.lon.example:443", address: "203.0.113.77", result: "timeout", rtt: 9 * ms,
			slots: n("o", 40) + "l" + n("o", 14) + n("t", 5), since: 75 * time.Hour,
		},
		{
			target: "wan.sgp.example:443", address: "203.0.113.140", result: "open", rtt: 171 * ms,
			slots: n("o", 13) + "l" + n("o", 20) + "l" + n("o", 21) + "l" + "ooo", since: 26 * time.Hour,
		},
		{
			target: "10.3.8.15:5671", address: "10.3.8.15", result: "open", rtt: 600 * us,
			slots: n("o", 20) + n("k", 6) + "b" + n("o", 20) + "r" + n("o", 12), since: 31 * time.Hour,
		},
		{
			target: "payments.example:443", address: "203.0.113.5", result: "open", rtt: 14 * ms,
			slots: n("-", 31) + n("o", 29), since: 145 * time.Second,
		},
	} {
		all = append(all, m.status(time.Now()))
	}
	return all
}
