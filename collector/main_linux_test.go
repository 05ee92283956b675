package collector

import (
	"context"
	"log/slog"
	"net"
	"net/http/httptest"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

func TestMain(m *testing.M) { lab.Main(m) }

// newProber returns a Prober on a Shaker of its own, by default with the built-in modules.
func newProber(t testing.TB, options Options) *Prober {
	t.Helper()
	lab.Need(t)
	var err error
	if options.Shaker, err = shaker.New(nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { options.Shaker.Close() })
	if options.Config == nil {
		options.Config = config.Default()
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	return NewProber(options)
}

// get asks for a path, with headers in pairs.
func get(p *Prober, path string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", path, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	return w
}

// probeInBackground asks for a probe of a silent target and returns what ends it.
func probeInBackground(p *Prober, target string) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := httptest.NewRequest("GET", "/probe?target="+target, nil)
		p.ServeHTTP(httptest.NewRecorder(), r.WithContext(ctx))
	}()
	return func() {
		cancel()
		<-done
	}
}

// listen listens for the rest of the test and returns its address.
func listen(t testing.TB, address string) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}
