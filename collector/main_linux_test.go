package collector

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

func TestMain(m *testing.M) { lab.Main(m) }

// settings are the options of a handler and of the prober behind it.
type settings struct {
	Options // the Prober is set by newHandler

	config      *config.Config // nil: the built-in modules
	dialDNS     func(ctx context.Context, network, address string) (net.Conn, error)
	maxInFlight int
}

// A handler is a Handler and the parts behind it.
type handler struct {
	*Handler
	prober *probe.Prober
	shaker *shaker.Shaker
}

// newHandler returns a handler with a Shaker of its own.
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
	s.Prober = probe.New(probe.Options{
		Shaker:      engine,
		Config:      s.config,
		DialDNS:     s.dialDNS,
		MaxInFlight: s.maxInFlight,
	})
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

// checkResponse checks the status and the body of the response to a request for a path.
func checkResponse(t testing.TB, path string, w *httptest.ResponseRecorder, status int, body string) {
	t.Helper()
	if w.Code != status || w.Body.String() != body {
		t.Errorf("GET %s = %d %q, want %d %q", path, w.Code, w.Body, status, body)
	}
}

// checkStatus checks the status of the response to a request for a path.
func checkStatus(t testing.TB, path string, w *httptest.ResponseRecorder, status int) {
	t.Helper()
	if w.Code != status {
		t.Errorf("GET %s = %d %q, want %d", path, w.Code, w.Body, status)
	}
}

// checkValue checks the value of a metric with one series. The name is for the message.
func checkValue(t testing.TB, name string, metric prometheus.Collector, want float64) {
	t.Helper()
	if got := testutil.ToFloat64(metric); got != want {
		t.Errorf("%s is %v, want %v", name, got, want)
	}
}

// checkInFlight checks how many handshakes are in flight.
func checkInFlight(t testing.TB, h *handler, when string, want int64) {
	t.Helper()
	if got := h.prober.InFlight(); got != want {
		t.Errorf("%s, %d handshakes are in flight, want %d", when, got, want)
	}
}

// probeInBackground requests a probe of a silent target and returns a function that ends the request.
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

// listen listens on an address until the test ends, and returns the address with its port.
func listen(t testing.TB, address string) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}
