package collector

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

func TestMain(m *testing.M) { lab.Main(m) }

// settings are what a test sets of a handler and of what is behind it.
type settings struct {
	Options // without the Prober

	config      *config.Config // nil: the built-in modules
	dialDNS     func(ctx context.Context, network, address string) (net.Conn, error)
	maxInFlight int
}

// A handler is a Handler with what is behind it.
type handler struct {
	*Handler
	prober *probe.Prober
	shaker *shaker.Shaker
}

// newHandler returns a handler on a Shaker of its own.
func newHandler(t testing.TB, s settings) *handler {
	t.Helper()
	lab.Need(t)
	engine, err := shaker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	if s.config == nil {
		s.config = config.Default()
	}
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	s.Prober = probe.New(probe.Options{Shaker: engine, Config: s.config, DialDNS: s.dialDNS, MaxInFlight: s.maxInFlight})
	return &handler{Handler: New(s.Options), prober: s.Prober, shaker: engine}
}

// get requests a path, with headers in pairs, and returns the response.
func get(h http.Handler, path string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", path, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// probeInBackground requests a probe of a silent target and returns a function that ends it.
func probeInBackground(h http.Handler, target string) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := httptest.NewRequest("GET", "/probe?target="+target, nil)
		h.ServeHTTP(httptest.NewRecorder(), r.WithContext(ctx))
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
