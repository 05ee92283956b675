package pages

import (
	"errors"
	"net/netip"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/hold"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// heldFleet returns many kinds of held targets.
func heldFleet(now time.Time) []*hold.Status {
	const us, ms = time.Microsecond, time.Millisecond
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	all := []*hold.Status{
		{
			Target: "sessions.prod.example:6379", Result: "open", Since: ago(26 * time.Hour),
			Established: ago(26 * time.Hour), Handshake: 300 * us, RTT: 240 * us,
			LastAnswer: ago(2 * time.Second), LastData: ago(2 * time.Second),
			Address: netip.MustParseAddrPort("10.1.7.51:6379"), HasName: true, AddressCurrent: true,
			Connects:     []hold.ResultCount{{Result: "open", Total: 1}},
			HasHeartbeat: true, Heartbeats: 9360, HeartbeatP50: 310 * us, HeartbeatP99: 2 * ms,
		},
		{
			Target: "queue.prod.example:5672", Result: "silent", Since: ago(95 * time.Second), Changed: true,
			Reason: "no answer to a heartbeat", Failure: "silent", FailureAt: ago(5 * time.Second),
			Established: ago(3 * time.Hour), Handshake: 700 * us, RTT: 610 * us,
			LastAnswer: ago(3 * time.Second), LastData: ago(97 * time.Second),
			Address: netip.MustParseAddrPort("10.1.7.60:5672"), HasName: true,
			Connects: []hold.ResultCount{
				{Result: "open", Total: 2}, {Result: "refused", Errno: "ECONNREFUSED", Total: 7},
			},
			Closes:       []hold.ResultCount{{Result: "reset", Errno: "ECONNRESET", Total: 1}},
			Lifetime:     70 * time.Minute,
			HasHeartbeat: true, Heartbeats: 1523, HeartbeatP50: 900 * us, HeartbeatP99: 41 * ms,
			HeartbeatFailures: []hold.ResultCount{{Result: "silent", Total: 9}, {Result: "mismatch", Total: 1}},
		},
		{
			Target: "10.4.12.9:22", Result: "open", Since: ago(80 * time.Second), Changed: true,
			Failure: "closed", FailureAt: ago(82 * time.Second),
			Established: ago(80 * time.Second), Handshake: 3 * ms, RTT: 3 * ms, LastAnswer: ago(31 * time.Second),
			LastData: ago(80 * time.Second), KeepAlivesUnanswered: 2,
			Address:  netip.MustParseAddrPort("10.4.12.9:22"),
			Connects: []hold.ResultCount{{Result: "open", Total: 1201}},
			Closes: []hold.ResultCount{
				{Result: "closed", Total: 1180}, {Result: "timeout", Errno: "ETIMEDOUT", Total: 20},
			},
			Lifetime: 2 * time.Minute,
		},
		{
			Target: "db-replica.prod.example:3306", Result: "closed", Since: ago(70 * time.Second), Changed: true,
			Reason: "connection ended after 10.003s", Failure: "closed", FailureAt: ago(70 * time.Second),
			LastAnswer: ago(70 * time.Second), LastData: ago(80 * time.Second), NextConnect: now.Add(170 * time.Second),
			Address: netip.MustParseAddrPort("10.1.7.33:3306"), HasName: true, AddressCurrent: true,
			Connects: []hold.ResultCount{{Result: "open", Total: 41}},
			Closes:   []hold.ResultCount{{Result: "closed", Total: 41}},
			Lifetime: 10 * time.Second,
		},
		{Target: "new.prod.example:6379", Address: netip.MustParseAddrPort("10.1.7.52:6379"), HasName: true,
			AddressCurrent: true},
		{Target: "many.example:443", Fault: errors.New("shake 203.0.113.9:443: socket: too many open files"),
			Address: netip.MustParseAddrPort("203.0.113.9:443"), HasName: true, AddressCurrent: true,
			NextConnect: now.Add(12 * time.Second)},
	}
	for _, s := range all {
		s.Module, s.Registered, s.Client = "tcp_hold", ago(27*time.Hour), "10.1.0.90"
		s.KeepAlive = shaker.KeepAlive{Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}
		s.Scraped, s.Expires = ago(8*time.Second), now.Add(292*time.Second)
	}
	return all
}
