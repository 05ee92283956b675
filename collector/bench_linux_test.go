package collector

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"testing"
	"time"
)

// BenchmarkProbe asks for probes of a loopback port over one kept-alive HTTP connection, client
// included.
//
//	go test -run '^$' -bench Probe -benchmem ./collector
func BenchmarkProbe(b *testing.B) {
	server := httptest.NewServer(newProber(b, Options{}))
	defer server.Close()
	url := server.URL + "/probe?target=" + listen(b, "127.0.0.1:0")
	b.ReportAllocs()
	for b.Loop() {
		response, err := http.Get(url)
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
}

// BenchmarkHistory adds the first record of one target after the other, and says how much
// memory each takes while it is kept.
//
//	go test -run '^$' -bench History -benchtime 10000x ./collector
func BenchmarkHistory(b *testing.B) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	h := NewHistory(b.N)
	record := Record{Time: time.Now(), Success: true, Result: "open", Address: netip.MustParseAddr("192.0.2.1")}
	for i := range b.N {
		h.add(fmt.Sprintf("192.0.2.1:%d", i), "tcp_connect", record, nil)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(b.N), "B-kept/record")
	runtime.KeepAlive(h)
}
