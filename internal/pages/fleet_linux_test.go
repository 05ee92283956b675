package pages

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// fleet returns a history of many kinds of targets, as after some time of scrapes.
func fleet() []collector.Track {
	random := rand.New(rand.NewPCG(1, 2))
	now := time.Now()
	const period = 15 * time.Second
	// track has o for open, s for open after a lost SYN, the first letter of other results.
	track := func(target, module, address, pattern string, age time.Duration, rtt time.Duration, icmp shaker.ICMP, wanted string) collector.Track {
		t := collector.Track{Target: target, Module: module}
		from := now.Add(-age - period*time.Duration(len(pattern)))
		t.First = from
		for i, c := range pattern {
			r := collector.Record{Time: from.Add(period * time.Duration(i)), Address: netip.MustParseAddr(address)}
			switch c {
			case 'o', 's':
				r.Result = "open"
				r.RTT = rtt + time.Duration(random.ExpFloat64()*float64(rtt)/6)
				r.Handshake = r.RTT + time.Duration(random.ExpFloat64()*60e3)
				if c == 's' {
					r.SYNRetransmits, r.Handshake, r.RTT = 1, r.RTT+time.Second, 0
				}
				r.Duration = r.Handshake + 80*time.Microsecond
			case 'r':
				r.Result, r.Errno, r.Duration = "refused", "ECONNREFUSED", rtt
			case 't':
				r.Result, r.Errno, r.SYNRetransmits, r.Duration = "timeout", "ETIMEDOUT", 4, 5*time.Second
			case 'u':
				r.Result, r.Errno, r.ICMP, r.Duration = "unreachable", "EHOSTUNREACH", icmp, rtt
			case 'p':
				r.Result, r.Errno, r.ICMP, r.Duration = "prohibited", "EHOSTUNREACH", icmp, rtt
			case 'n':
				r.Result, r.Address, r.SYNRetransmits, r.Duration = "dns_not_found", netip.Addr{}, 0, rtt
			}
			r.Success = r.Result == wanted
			if n := len(t.Records); n > 0 && t.Records[n-1].Result != r.Result {
				t.Changed = r.Time
			}
			t.Records = append(t.Records, r)
		}
		return t
	}
	o := func(n int) string { return strings.Repeat("o", n) }
	r := func(c string, n int) string { return strings.Repeat(c, n) }
	router := shaker.ICMP{From: netip.MustParseAddr("10.4.0.1"), Type: 3, Code: 1}
	wall := shaker.ICMP{From: netip.MustParseAddr("10.9.255.254"), Type: 3, Code: 13}
	const us, ms = time.Microsecond, time.Millisecond
	tracks := []collector.Track{
		track("orders-db-2.prod.example:5432", "tcp_connect", "10.1.7.32", o(52)+r("r", 3), 4*time.Second, 410*us, router, "open"),
		track("mail.example.org:25", "tcp_connect", "198.51.100.25", o(20)+"t"+o(11)+r("t", 27), 9*time.Second, 18*ms, router, "open"),
		track("10.4.12.8:22", "tcp_connect", "10.4.12.8", r("u", 60), 12*time.Second, 3*ms, router, "open"),
		track("billing.partner.example:8443", "tcp_connect", "10.9.3.4", o(30)+r("p", 9), 2*time.Second, 7*ms, wall, "open"),
		track("search-old.prod.example:9200", "tcp_connect", "10.1.7.99", r("n", 40), 14*time.Second, 2*ms, router, "open"),
		track("api.example.com:443", "tcp_connect", "2001:db8:4::443", o(60), 3*time.Second, 11*ms, router, "open"),
		track("cache-2.prod.example:6379", "tcp_connect", "10.1.7.41", o(41)+"tt"+o(17), 7*time.Second, 205*us, router, "open"),
		track("edge.fra.example:443", "tcp_connect", "203.0.113.9", o(22)+"s"+o(8)+"s"+o(14)+"s", 5*time.Second, 26*ms, router, "open"),
		track("[2001:db8:0:7::53]:53", "tcp_connect", "2001:db8:0:7::53", o(60), 11*time.Second, 1400*us, router, "open"),
		track("orders-db-1.prod.example:5432", "tcp_connect", "10.1.7.31", o(60), 6*time.Second, 380*us, router, "open"),
		track("orders-db-1.prod.example:3306", "tcp_closed", "10.1.7.31", r("r", 60), 6*time.Second, 380*us, router, "refused"),
		track("web-1.prod.example:443", "tcp_connect", "10.1.7.10", o(12), 8*time.Second, 240*us, router, "open"),
		track("staging.example:443", "tcp_connect", "10.2.0.4", o(33), 3*time.Hour, 610*us, router, "open"),
	}
	// way is a path whose hops answer after 0.3 ms and more, but those that have no address.
	way := func(reached bool, outcome shaker.Outcome, last shaker.ICMP, addresses ...string) *shaker.Path {
		p := &shaker.Path{}
		for i, a := range addresses {
			h := shaker.Hop{TTL: i + 1}
			if a != "" {
				h.From, h.RTT = netip.MustParseAddr(a), time.Duration((i*i+1)*307)*us
				h.ICMP = shaker.ICMP{From: h.From, Type: 11}
				if h.From.Is6() {
					h.ICMP.Type = 3
				}
			}
			p.Hops = append(p.Hops, h)
		}
		end := &p.Hops[len(p.Hops)-1]
		if last.From.IsValid() {
			end.ICMP = last
		}
		if reached {
			end.ICMP, end.Outcome, p.Reached = shaker.ICMP{}, outcome, end.TTL
		}
		return p
	}
	none := shaker.ICMP{}
	tracks[0].Path = way(true, shaker.Refused, none, "10.1.0.1", "10.1.7.32")
	tracks[1].Path = way(false, 0, none, "10.1.0.1", "192.0.2.1", "198.51.100.130", "", "198.51.100.161")
	tracks[1].GoodPath = way(true, shaker.Open, none, "10.1.0.1", "192.0.2.1", "", "203.0.113.17", "198.51.100.1", "198.51.100.25")
	tracks[2].Path = way(false, 0, router, "10.1.0.1", "10.4.0.1")
	tracks[5].Path = way(true, shaker.Open, none, "2001:db8:1::1", "", "2001:db8:ffff:ffff:ffff:ffff:ffff:fff1", "2001:db8:4::443")
	tracks[5].GoodPath = tracks[5].Path
	return tracks
}
