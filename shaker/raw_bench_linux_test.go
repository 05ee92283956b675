package shaker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
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
			own := netip.AddrFrom4([4]byte{127, 1, byte(i >> 8 % 16), byte(i)})
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
			b.ReportMetric(float64(ours.n)/ours.wall.Seconds(), "raw/s")
			b.ReportMetric(float64(theirs.n)/theirs.wall.Seconds(), "socket/s")
			b.ReportMetric(theirs.wall.Seconds()/ours.wall.Seconds(), "rate-ratio")
		})
	}
}

// BenchmarkForeign measures what a Shaker without sockets costs the other TCP segments of this host, which the kernel
// offers to its filters: two other sockets exchange segments of one byte over the loopback interface, in turns with and
// without the Shaker. The kernel handles a segment on behalf of the process that sends it. share is the part of a
// processor that the Shaker takes for 100,000 foreign segments a second.
//
//	go test -run '^$' -bench Foreign -benchtime 1000000x ./shaker
func BenchmarkForeign(b *testing.B) {
	lab.Need(b)
	for _, local := range []string{"127.0.0.1:0", "[::1]:0"} {
		b.Run(netip.MustParseAddrPort(local).Addr().String(), func(b *testing.B) {
			var with, without foreign
			const rounds = 10
			for range rounds {
				without.exchange(b, local, b.N/rounds+1)
				s := startWithoutSockets(b)
				target, _ := listen(b, local)
				ports := s.Ports()
				for _, port := range []uint16{ports.First, ports.Last} { // of different loops, which open a filter each
					r, err := s.Shake(b.Context(), target, &Options{SourcePort: port})
					if err != nil || r.Outcome != Open {
						b.Fatalf("Shake(%v) = %+v, error %v, want Open", target, r, err)
					}
				}
				with.exchange(b, local, b.N/rounds+1)
				if strays := s.Strays(); strays != (Strays{}) {
					b.Errorf("strays %+v, want none: the filter drops foreign segments", strays)
				}
				s.Close()
			}
			each := func(f foreign) float64 { return float64(f.cpu.Nanoseconds()) / float64(f.segments) }
			b.ReportMetric(0, "ns/op") // of both together: meaningless
			b.ReportMetric(each(with), "CPU-ns/segment-with")
			b.ReportMetric(each(without), "CPU-ns/segment-without")
			b.ReportMetric(each(with)/each(without), "CPU-ratio")
			b.ReportMetric((each(with)-each(without))*100_000/1e9, "share")
		})
	}
}

// foreign counts segments and their cost.
type foreign struct {
	segments int
	cpu      time.Duration
}

// exchange lets two sockets exchange n segments. Each of them acknowledges the one before.
func (f *foreign) exchange(b *testing.B, local string, n int) {
	b.Helper()
	l, err := net.Listen("tcp", local)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	defer server.Close()
	var ends [2]int
	for i, conn := range []net.Conn{client, server} {
		file, err := conn.(*net.TCPConn).File()
		if err != nil {
			b.Fatal(err)
		}
		defer file.Close()
		ends[i] = int(file.Fd()) // blocking
	}
	counter := func() int { return kernel.Counters(b)["TcpInSegs"] }
	before, cpu := counter(), lab.CPU()
	data := []byte{0}
	for i := range n {
		from, to := ends[i%2], ends[1-i%2]
		if _, errno := send(from, data); errno != 0 {
			b.Fatal(errno)
		}
		if _, errno := receive(to, data); errno != 0 { // on the loopback interface it has arrived
			b.Fatal(errno)
		}
	}
	f.cpu += lab.CPU() - cpu
	f.segments += counter() - before
}
