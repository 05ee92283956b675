package collector

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
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
