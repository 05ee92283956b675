package collector

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/watch"
)

// BenchmarkProbe requests probes of a loopback port over one kept-alive HTTP connection. The cost includes
// that of the client.
//
//	go test -run '^$' -bench Probe -benchmem ./collector
func BenchmarkProbe(b *testing.B) {
	server := httptest.NewServer(newHandler(b, settings{}))
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

// BenchmarkWatchedScrape answers scrapes of a watched target from memory, without a connection.
//
//	go test -run '^$' -bench WatchedScrape -benchmem ./collector
func BenchmarkWatchedScrape(b *testing.B) {
	h := newWatchHandler(b, watch.Options{})
	path := "/probe?module=watched&target=" + listen(b, "127.0.0.1:0")
	r := httptest.NewRequest("GET", path, nil)
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			b.Fatalf("GET %s = %d %s, want 200", path, w.Code, w.Body)
		}
	}
}
