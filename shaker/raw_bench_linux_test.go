package shaker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// withoutSockets configures a Shaker that sends SYNs without sockets.
var withoutSockets = &Config{Raw: &Raw{}}

// BenchmarkRaw compares handshakes without a socket with those of sockets, in turns, at full speed. The targets are on
// this host.
//
//	go test -run '^$' -bench 'Raw$' -benchtime 200000x ./shaker
func BenchmarkRaw(b *testing.B) {
	lab.Need(b)
	target, _ := listen(b, "0.0.0.0:0")
	handshake := func(config *Config) func() error {
		s, err := New(config)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { s.Close() })
		var n atomic.Uint32
		return func() error {
			i := n.Add(1)
			own := netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)})
			options := Options{Timeout: 5 * time.Second}
			r, err := s.Shake(context.Background(), netip.AddrPortFrom(own, target.Port()), &options)
			return errors.Join(err, r.Err())
		}
	}
	raw, sockets := handshake(withoutSockets), handshake(nil)
	for _, callers := range []int{1, 100, 1000, 10000} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			var ours, theirs cost
			const rounds = 4
			for range rounds {
				ours.add(measure(b, callers, b.N/rounds+1, raw))
				theirs.add(measure(b, callers, b.N/rounds+1, sockets))
			}
			b.ReportMetric(0, "ns/op") // of both together: meaningless
			b.ReportMetric(float64(ours.failed), "failed")
			b.ReportMetric(float64(ours.acks), "ACKs")
			b.ReportMetric(float64(ours.cpu.Microseconds())/float64(ours.n), "CPU-µs/raw")
			b.ReportMetric(float64(theirs.cpu.Microseconds())/float64(theirs.n), "CPU-µs/socket")
			b.ReportMetric(theirs.wall.Seconds()/ours.wall.Seconds(), "rate-ratio")
		})
	}
}
