package benchmarks

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// BenchmarkHeld measures the exporter while it holds 19,000 connections with keepalive to the other end of a cable:
// the resident memory above rest, the CPU time at rest, and the latency of probes compared with before. Then it pulls
// the cable, and counts the connections whose end the exporter has missed. The peer has a descriptor for each
// connection, too, in this process. An op is a second at rest. With -short there are fewer connections, and their
// keepalives are faster.
//
//	go -C test test -run '^$' -bench 'Held$' -benchtime 30x ./benchmarks
func BenchmarkHeld(b *testing.B) {
	connections, keepalive, dead := 19_000, "{idle: 15s, interval: 5s, count: 3}", 30*time.Second
	if testing.Short() {
		connections, keepalive, dead = 200, "{idle: 2s, interval: 1s, count: 2}", 4*time.Second
	}
	lab.NeedDescriptors(b, connections+500)
	ip := lab.Program(b, "ip", "iproute2")
	chain := kernel.NewChain(b)
	// All addresses of the network belong to the other end.
	chain.Run(0, ip, "route", "add", "10.78.0.0/16", "via", "10.77.1.2")
	chain.Run(1, ip, "route", "add", "local", "10.78.0.0/16", "dev", "lo")
	var far net.Listener
	chain.In(1, func() (err error) {
		var config net.ListenConfig
		config.KeepAlive = -1
		config.SetMultipathTCP(false)
		far, err = config.Listen(context.Background(), "tcp4", "0.0.0.0:7000")
		return err
	})
	closeAll := acceptAll(b, far)

	ours := build(b)
	ours.args = []string{
		fmt.Sprintf("--hold.max-connections=%d", connections),
		"--config.file=" + lab.Write(b, b.TempDir(), "shaker.yml",
			"modules: {tcp_connect: {prober: tcp}, held: {prober: hold, hold: {expire: 1h, keepalive: "+keepalive+
				", reconnect: {min: 5m, max: 5m}}}}"),
	}
	process := ours.start(b)
	open := "/probe?target=" + listen(b)
	ours.latencies(b, open, 1000) // warms up
	usual50, usual99 := ours.latencies(b, open, 2000)
	rest := process.Resident()

	ours.requestEach(b, 64, connections, func(i int) string { return heldPath(i) })
	held := exporter.Metric(b, `shaker_held_connections{module="held"}`)
	if held != connections {
		b.Errorf("%d connections are held, want %d", held, connections)
	}
	time.Sleep(dead) // so that each connection has sent keepalives
	cpu, began := process.CPU(), time.Now()
	time.Sleep(time.Duration(b.N) * time.Second)
	share := (process.CPU() - cpu).Seconds() / time.Since(began).Seconds()
	resident := process.Resident()
	beside50, beside99 := ours.latencies(b, open, 2000)

	chain.In(1, func() error {
		link, err := netlink.LinkByName("to0")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(link)
	})
	var dying50, dying99 time.Duration
	for end := time.Now().Add(dead * 3 / 2); time.Now().Before(end); {
		p50, p99 := ours.latencies(b, open, 2000)
		dying50, dying99 = max(dying50, p50), max(dying99, p99)
	}
	missed := 0
	for i := range connections {
		body := string(ours.get(b, lab.Client, heldPath(i)))
		if strings.Contains(body, "probe_hold_lifetime_seconds_count 0") {
			missed++
		}
	}
	closeAll()
	if missed > 0 {
		b.Errorf("of %d connections whose cable was pulled, %d have not ended, want 0", connections, missed)
	}
	b.ReportMetric(0, "ns/op") // is a second
	b.ReportMetric(float64(resident-rest)/1e6, "MB-above-rest")
	b.ReportMetric(share*100, "%-of-a-core")
	b.ReportMetric(beside50.Seconds()/usual50.Seconds(), "p50-ratio")
	b.ReportMetric(beside99.Seconds()/usual99.Seconds(), "p99-ratio")
	b.ReportMetric(dying50.Seconds()/usual50.Seconds(), "p50-ratio-dying")
	b.ReportMetric(dying99.Seconds()/usual99.Seconds(), "p99-ratio-dying")
	b.ReportMetric(float64(missed), "missed")
}

func heldPath(i int) string {
	return fmt.Sprintf("/probe?module=held&target=10.78.%d.%d:7000", i>>8, i&255)
}

// acceptAll accepts all connections and neither reads nor writes, until the returned function is called.
func acceptAll(b *testing.B, l net.Listener) (closeAll func()) {
	var accepting sync.WaitGroup
	var all []net.Conn
	accepting.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the benchmark is over
			}
			all = append(all, conn)
		}
	})
	closeAll = sync.OnceFunc(func() {
		l.Close()
		accepting.Wait()
		for _, conn := range all {
			conn.Close()
		}
	})
	b.Cleanup(closeAll)
	return closeAll
}
