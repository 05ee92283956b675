package collector

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Options are what a Prober works with. Shaker, Config and Logger are required.
type Options struct {
	Shaker *shaker.Shaker
	Config *config.Config
	Logger *slog.Logger

	// DialDNS opens connections to DNS servers; nil means that of a net.Dialer.
	DialDNS func(ctx context.Context, network, address string) (net.Conn, error)

	// TimeoutOffset is taken off Prometheus' scrape timeout, for the answer's way back.
	TimeoutOffset time.Duration

	// MaxInFlight limits how many probes run at once; 0 means no limit.
	MaxInFlight int
}

// A Prober answers /probe, and collects the exporter's own metrics about it.
type Prober struct {
	options  Options
	metrics  *metrics
	inFlight atomic.Int64

	faultLogged atomic.Int64               // the second (Unix time) in which a fault was last logged
	exposition  atomic.Pointer[exposition] // that was last negotiated
}

var (
	_ http.Handler         = (*Prober)(nil)
	_ prometheus.Collector = (*Prober)(nil)
)

// NewProber returns a Prober.
func NewProber(options Options) *Prober {
	if options.DialDNS == nil {
		options.DialDNS = (&net.Dialer{}).DialContext
	}
	readNameFiles()
	p := &Prober{options: options}
	p.metrics = newMetrics(p.options.Config, func() float64 { return float64(p.inFlight.Load()) })
	return p
}

// Describe implements prometheus.Collector.
func (p *Prober) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range p.metrics.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (p *Prober) Collect(ch chan<- prometheus.Metric) {
	for _, c := range p.metrics.all() {
		c.Collect(ch)
	}
}

// ServeHTTP makes one probe and answers with its metrics.
func (p *Prober) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	req, err := parseRequest(r, p.options.Config, p.options.TimeoutOffset)
	if err != nil {
		p.reject(w, http.StatusBadRequest, badRequest, err)
		return
	}
	report, err := p.probe(r.Context(), req, start)
	if err != nil {
		p.fail(w, req, err)
		return
	}
	p.metrics.count(report)
	p.answer(w, r, report)
}

// admit adds a probe to those in flight, unless there are as many as may be.
func (p *Prober) admit() bool {
	for {
		n := p.inFlight.Load()
		if p.options.MaxInFlight > 0 && n >= int64(p.options.MaxInFlight) {
			return false
		}
		if p.inFlight.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// errInFlight says that as many probes as may be in flight are.
var errInFlight = errors.New("no more probes may be in flight (--probe.max-in-flight)")

// probe resolves the target's name, if it is one, and shakes hands. An error says that
// there is no verdict.
func (p *Prober) probe(ctx context.Context, req *request, start time.Time) (*report, error) {
	if !p.admit() {
		return nil, errInFlight
	}
	defer p.inFlight.Add(-1)
	report := &report{request: req}
	deadline := start.Add(req.timeout)
	addr := req.addr
	if !addr.IsValid() {
		var err error
		if report.resolution, err = resolve(ctx, p.options.DialDNS, req.name, req.moduleData.TCP, deadline); err != nil {
			return nil, err
		}
		addr = report.resolution.addr
		report.result = report.resolution.result
	}
	if addr.IsValid() {
		var err error
		report.handshake, err = p.options.Shaker.Shake(ctx, netip.AddrPortFrom(addr, req.port),
			&shaker.Options{Timeout: max(1, time.Until(deadline))})
		if err != nil {
			return nil, err
		}
		report.result = report.handshake.Outcome.String()
		report.errno = shaker.ErrnoName(report.handshake.Errno)
	}
	report.duration = time.Since(start)
	return report, nil
}

// fail answers a request whose probe ended without a verdict.
func (p *Prober) fail(w http.ResponseWriter, req *request, err error) {
	switch {
	case errors.Is(err, context.Canceled): // nobody is there to read the answer
		p.reject(w, http.StatusServiceUnavailable, callerGone, err)
	case errors.Is(err, errInFlight):
		w.Header().Set("Retry-After", "1")
		p.reject(w, http.StatusServiceUnavailable, inFlightLimit, err)
	case errors.Is(err, shaker.ErrClosed):
		p.reject(w, http.StatusServiceUnavailable, shuttingDown, err)
	case errors.Is(err, shaker.ErrUnsent):
		p.reject(w, http.StatusServiceUnavailable, tooLate, err)
	case errors.Is(err, shaker.ErrTarget):
		p.reject(w, http.StatusBadRequest, badRequest, err)
	default:
		var errno syscall.Errno
		errors.As(err, &errno)
		p.metrics.faults.WithLabelValues(shaker.ErrnoName(errno)).Inc()
		// One line in a second says enough: all of them are counted.
		if now := time.Now().Unix(); p.faultLogged.Swap(now) != now {
			p.options.Logger.Warn("Cannot probe", "target", req.text, "module", req.module, "err", err)
		}
		http.Error(w, "this prober is in trouble, not the target: "+err.Error(), http.StatusServiceUnavailable)
	}
}

// reject answers a request for a probe that is not made, and counts it by reason.
func (p *Prober) reject(w http.ResponseWriter, status int, reason string, err error) {
	p.metrics.rejected.WithLabelValues(reason).Inc()
	http.Error(w, err.Error(), status)
}

// bodies are buffers for answers, which would be a third of what a probe leaves as garbage.
var bodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// answer writes the metrics of a probe, or its story if asked for.
func (p *Prober) answer(w http.ResponseWriter, r *http.Request, report *report) {
	body := bodies.Get().(*bytes.Buffer)
	defer func() { body.Reset(); bodies.Put(body) }()
	exposition := p.negotiate(r.Header)
	contentType := string(exposition.format)
	if report.debug {
		exposition, contentType = plainText, "text/plain; charset=utf-8"
		report.writeStory(body)
	}
	if err := exposition.write(body, report.families()); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
	w.Write(body.Bytes())
}
