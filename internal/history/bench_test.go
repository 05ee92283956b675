package history

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"
)

// BenchmarkHistory adds the first record of each of many targets, and reports how much memory the history
// uses for each record that it keeps.
//
//	go test -run '^$' -bench History -benchtime 10000x ./internal/history
func BenchmarkHistory(b *testing.B) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	h := New(b.N)
	record := Record{Time: time.Now(), Success: true, Result: "open", Address: netip.MustParseAddr("192.0.2.1")}
	for i := range b.N {
		h.Add(fmt.Sprintf("192.0.2.1:%d", i), "tcp_connect", record, nil)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(b.N), "B-kept/record")
	runtime.KeepAlive(h)
}
