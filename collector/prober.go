package collector

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
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

	// FailureLevel is the level at which failed probes are logged. They are what the
	// exporter is there to find, no trouble of its own.
	FailureLevel slog.Level

	// History keeps what /probe found out; nil means that nobody does.
	History *History

	// DialDNS opens connections to DNS servers; nil means that of a net.Dialer.
	DialDNS func(ctx context.Context, network, address string) (net.Conn, error)

	// TimeoutOffset is taken off Prometheus' scrape timeout, for the answer's way back.
	TimeoutOffset time.Duration

	// MaxInFlight limits how many handshakes run at once; 0 means no limit.
	MaxInFlight int
}

// AnswerTime is how long a caller may take to read the answer to a probe.
const AnswerTime = 5 * time.Second

// A Prober answers /probe, and collects the exporter's own metrics about it.
type Prober struct {
	options  Options
	config   atomic.Pointer[config.Config]
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
	if options.History == nil {
		options.History = NewHistory(0)
	}
	readNameFiles()
	p := &Prober{options: options}
	p.metrics = newMetrics(func() float64 { return float64(p.inFlight.Load()) }, options.MaxInFlight)
	p.Configure(options.Config)
	return p
}

// Configure puts a configuration in force for the probes to come. Those that are under way
// keep theirs.
func (p *Prober) Configure(c *config.Config) {
	p.metrics.expect(c)
	p.config.Store(c)
}

// Config returns the configuration in force.
func (p *Prober) Config() *config.Config { return p.config.Load() }

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
	req, err := parseRequest(r, p.Config(), p.options.TimeoutOffset)
	if err != nil {
		p.reject(w, http.StatusBadRequest, badRequest, err)
		return
	}
	// A recorder of answers in a test has no deadlines.
	_ = http.NewResponseController(w).SetWriteDeadline(start.Add(req.timeout + AnswerTime))
	report, err := p.probe(r.Context(), req, start)
	if err != nil {
		p.fail(w, req, err)
		return
	}
	p.metrics.count(report)
	p.options.History.add(req.text, req.module, report.record(&report.verdict), report.path)
	if !report.success() {
		p.logFailure(r.Context(), report)
	}
	p.answer(w, r, report)
}

func (p *Prober) logFailure(ctx context.Context, r *Report) {
	level := p.options.FailureLevel
	if !p.options.Logger.Enabled(ctx, level) {
		return
	}
	attributes := []any{"target", r.text, "module", r.module, "result", r.result, "errno", r.errno,
		"duration_seconds", r.duration.Seconds()}
	if r.resolution.err != nil {
		attributes = append(attributes, "err", r.resolution.err)
	}
	if addr := r.handshake.Peer.Addr(); addr.IsValid() {
		attributes = append(attributes, "address", addr)
	}
	if icmp := r.handshake.ICMP; icmp.From.IsValid() {
		attributes = append(attributes, "icmp", icmp, "icmp_from", icmp.From)
	}
	p.options.Logger.Log(ctx, level, "Probe failed", attributes...)
}

// Request returns a probe of a target, host:port, by a module, with the module's timeout.
// An error is the caller's mistake.
func (p *Prober) Request(target, module string) (*Request, error) {
	return newRequest(p.Config(), target, module)
}

// admit adds n handshakes to those in flight, unless there are as many as may be.
func (p *Prober) admit(n int64) bool {
	for {
		before := p.inFlight.Load()
		if limit := int64(p.options.MaxInFlight); limit > 0 && before+n > limit {
			return false
		}
		if p.inFlight.CompareAndSwap(before, before+n) {
			return true
		}
	}
}

func (p *Prober) release(n int64) { p.inFlight.Add(-n) }

// fail answers a request whose probe ended without a verdict.
func (p *Prober) fail(w http.ResponseWriter, req *Request, err error) {
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
	case errors.Is(err, errDenied):
		p.reject(w, http.StatusForbidden, denied, err)
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
func (p *Prober) answer(w http.ResponseWriter, r *http.Request, report *Report) {
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
