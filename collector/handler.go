package collector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/hold"
	"github.com/shaker-exporter/shaker_exporter/internal/idle"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/internal/watch"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Options configure a [Handler]. Prober and Logger are required.
type Options struct {
	Prober *probe.Prober
	Logger *slog.Logger

	// Shaker is the Prober's engine, for metrics about it; nil leaves them out.
	Shaker *shaker.Shaker

	// FailureLevel is the log level of failed probes. A failed probe is a measurement, not an
	// error of the exporter.
	FailureLevel slog.Level

	// History keeps the results for the status page; nil keeps none.
	History *history.History

	// TimeoutOffset is subtracted from Prometheus' scrape timeout, so that the response arrives
	// in time.
	TimeoutOffset time.Duration
}

// AnswerTime is how long a caller may take to read the response of a probe.
const AnswerTime = 5 * time.Second

// A Handler serves /probe, and collects the exporter's own metrics about it.
type Handler struct {
	options Options
	watcher *watch.Watcher // nil before Watch is called
	holder  *hold.Holder   // nil before Hold is called
	meter   *idle.Meter    // nil before MeasureIdle is called

	metrics    *metrics
	engine     *engineMetrics
	watch      *watchMetrics
	hold       *holdMetrics
	registered *registrationMetrics

	faultLogged atomic.Int64               // Unix time, in seconds, at which a fault was last logged
	exposition  atomic.Pointer[exposition] // last negotiated one
}

var (
	_ http.Handler         = (*Handler)(nil)
	_ prometheus.Collector = (*Handler)(nil)
)

// New returns a Handler.
func New(options Options) *Handler {
	if options.History == nil {
		options.History = history.New(0)
	}
	return &Handler{
		options: options, metrics: newMetrics(options.Prober), engine: newEngineMetrics(options.Shaker),
		watch: newWatchMetrics(), hold: newHoldMetrics(), registered: newRegistrationMetrics(),
	}
}

// Watch makes the Handler serve watched modules from a Watcher. Without it, every scrape is a probe. It must be
// called before the first request.
func (h *Handler) Watch(w *watch.Watcher) { h.watcher = w }

// Hold makes the Handler serve modules with prober hold from a Holder. Without it, they are an unknown module. It must
// be called before the first request.
func (h *Handler) Hold(holder *hold.Holder) { h.holder = holder }

// MeasureIdle makes the Handler serve modules with prober idle from a Meter. Without it, they are an unknown module. It
// must be called before the first request.
func (h *Handler) MeasureIdle(m *idle.Meter) { h.meter = m }

// Describe implements prometheus.Collector.
func (h *Handler) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range h.metrics.all() {
		c.Describe(ch)
	}
	h.engine.describe(ch)
	h.watch.describe(ch)
	h.hold.describe(ch)
	h.registered.describe(ch)
}

// Collect implements prometheus.Collector.
func (h *Handler) Collect(ch chan<- prometheus.Metric) {
	conf := h.options.Prober.Config()
	h.metrics.initialize(conf)
	for _, c := range h.metrics.all() {
		c.Collect(ch)
	}
	h.engine.collect(ch)
	var all []registry.Module
	held := make(map[string]int)
	if h.watcher != nil {
		modules := withConfigured(h.watcher.Modules(), conf, config.Module.Watched)
		h.watch.collect(ch, h.watcher, modules)
		all = append(all, modules...)
	}
	if h.meter != nil {
		modules := withConfigured(h.meter.Modules(), conf, config.Module.MeasuresIdle)
		connections := h.meter.Connections()
		for _, module := range modules {
			held[module.Name] += connections[module.Name]
		}
		all = append(all, modules...)
	}
	if h.holder != nil {
		modules := withConfigured(h.holder.Modules(), conf, config.Module.Held)
		for _, module := range modules {
			held[module.Name] += module.Registered
		}
		all = append(all, modules...)
		h.hold.collect(ch, held, h.holder.MaxConnections())
	}
	h.registered.collect(ch, all)
}

// ServeHTTP performs one probe and responds with its metrics.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	req, debug, err := parseRequest(r, h.options.Prober.Config(), h.options.TimeoutOffset)
	if err != nil {
		h.reject(w, r, http.StatusBadRequest, mistakeOf(err), err)
		return
	}
	// httptest.ResponseRecorder does not support deadlines; ignore the error.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(req.Timeout + AnswerTime))
	answer, err := h.probe(r, req, debug)
	if err != nil {
		h.fail(w, r, req, err)
		return
	}
	if report := answer.Report; answer.Probed {
		h.metrics.count(report)
		h.options.History.Add(req.Text, req.ModuleName, report.Record(), report.Path)
		if !report.Success() {
			h.logFailure(r.Context(), report)
		}
	}
	h.answer(w, r, answer, debug)
}

// An answer is the answer to a request.
type answer struct {
	watch.Answer
	hold *hold.Snapshot // what is known about a held connection, nil if there is none
	idle *idle.Snapshot // what was measured of idle connections, nil if there are none
}

// probe performs a probe, or answers from memory if the target is watched, a connection to it is held, or its idle
// timeout is measured. A request with debug=true and HEAD are not from Prometheus: they do not make the exporter watch
// a target.
func (h *Handler) probe(r *http.Request, req *probe.Request, debug bool) (answer, error) {
	switch {
	case req.Module.Held() && h.holder == nil, req.Module.MeasuresIdle() && h.meter == nil:
		return answer{}, fmt.Errorf("%w: there is nothing that serves prober %s", probe.ErrModule, req.Module.Prober)
	case req.Module.Held():
		held, err := h.holder.Scrape(r.Context(), req, clientOf(r))
		return answer{Answer: watch.Answer{Report: held.Report}, hold: held.Hold}, err
	case req.Module.MeasuresIdle():
		measured, err := h.meter.Scrape(r.Context(), req, clientOf(r))
		if err != nil {
			return answer{}, err
		}
		// If the name has no address, this is the result, and nothing runs in the background.
		resolved := measured.Idle == nil && measured.Result != ""
		return answer{Answer: watch.Answer{Report: measured.Report, Probed: resolved}, idle: measured.Idle}, nil
	case req.Module.Watched() && h.watcher != nil && (debug || r.Method == http.MethodHead):
		watched, err := h.watcher.Inspect(r.Context(), req)
		return answer{Answer: watched}, err
	case req.Module.Watched() && h.watcher != nil:
		watched, err := h.watcher.Scrape(r.Context(), req, clientOf(r))
		return answer{Answer: watched}, err
	}
	report, err := h.options.Prober.Probe(r.Context(), req)
	return answer{Answer: watch.Answer{Report: report, Probed: true}}, err
}

// logFailure logs a probe whose result is not valid for the module.
func (h *Handler) logFailure(ctx context.Context, r *probe.Report) {
	h.logProbe(ctx, "Probe failed", r)
}

// LogChange logs that a watched target begins to fail, with its flows that fail, that other flows fail now, or that it
// has recovered. It is for [watch.Options].
func (h *Handler) LogChange(r *probe.Report) {
	text := "Watched target fails"
	if r.Success() {
		text = "Watched target has recovered"
	}
	h.logProbe(context.Background(), text, r)
}

// LogParted logs where the paths of flows to a watched target part, which is known some time after LogChange. It is for
// [watch.Options].
func (h *Handler) LogParted(r *probe.Report) {
	h.logProbe(context.Background(), "Paths to watched target part", r)
}

// LogHeld logs that a held target begins to fail, or has recovered. It is for [hold.Options].
func (h *Handler) LogHeld(r *probe.Report) {
	text := "Held target fails"
	if r.Success() {
		text = "Held target has recovered"
	}
	h.logProbe(context.Background(), text, r)
}

// LogIdleChange logs that the connects to a target whose idle timeout is measured begin to fail, or have recovered. It
// is for [idle.Options].
func (h *Handler) LogIdleChange(r *probe.Report) {
	text := "Connections for idle timeouts fail"
	if r.Success() {
		text = "Connections for idle timeouts have recovered"
	}
	h.logProbe(context.Background(), text, r)
}

// logProbe logs a probe at the level of failures.
func (h *Handler) logProbe(ctx context.Context, text string, r *probe.Report) {
	level := h.options.FailureLevel
	if !h.options.Logger.Enabled(ctx, level) {
		return
	}
	attributes := []any{"target", r.Text, "module", r.ModuleName, "result", r.Result, "errno", r.Errno,
		"duration_seconds", r.Duration.Seconds()}
	if r.Err != nil {
		attributes = append(attributes, "err", r.Err)
	}
	if addr := r.Handshake.Peer.Addr(); addr.IsValid() {
		attributes = append(attributes, "address", addr)
	}
	if icmp := r.Handshake.ICMP; icmp.From.IsValid() {
		attributes = append(attributes, "icmp", icmp, "icmp_from", icmp.From)
	}
	failed := r.FailedFlows(&r.Verdict)
	if r.Flows != nil {
		attributes = append(attributes, "flows", len(r.Flows), "flows_failed", len(failed))
	}
	if p := r.Parting; p != nil && p.Shared.From.IsValid() {
		attributes = append(attributes, "flow_path_shared_hop", p.Shared.From)
	}
	if p := r.Parting; p != nil && p.Failed.From.IsValid() {
		attributes = append(attributes, "flow_path_failed_hop", p.Failed.From)
	}
	if len(failed) > 0 {
		attributes = append(attributes, "failed_source_ports", r.HistoryFlows(&r.Verdict).FailedPorts())
	}
	h.options.Logger.Log(ctx, level, text, attributes...)
}

// fail responds to a request whose probe ended without a verdict.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, req *probe.Request, err error) {
	switch {
	case errors.Is(err, context.Canceled): // the caller is gone
		h.reject(w, r, http.StatusServiceUnavailable, callerGone, err)
	case errors.Is(err, probe.ErrInFlight):
		w.Header().Set("Retry-After", "1")
		w.Header().Set("Connection", "close") // an idle connection takes half of the memory of a probe
		h.reject(w, r, http.StatusServiceUnavailable, inFlightLimit, err)
	case errors.Is(err, watch.ErrStale): // the errors of the handshakes are counted as faults
		h.reject(w, r, http.StatusServiceUnavailable, watchStale, err)
	case errors.Is(err, watch.ErrLimit):
		w.Header().Set("Retry-After", "60")
		h.reject(w, r, http.StatusServiceUnavailable, watchLimit, err)
	case errors.Is(err, hold.ErrFault) && !errors.Is(err, shaker.ErrClosed): // the connect was counted as a fault
		h.reject(w, r, http.StatusServiceUnavailable, holdFault, err)
	case errors.Is(err, hold.ErrLimit):
		w.Header().Set("Retry-After", "60")
		h.reject(w, r, http.StatusServiceUnavailable, holdLimit, err)
	case !errors.Is(err, shaker.ErrClosed) && (errors.Is(err, hold.ErrPending) || errors.Is(err, hold.ErrStopped)):
		w.Header().Set("Retry-After", "1")
		h.reject(w, r, http.StatusServiceUnavailable, holdPending, err)
	case errors.Is(err, idle.ErrStale) && !errors.Is(err, shaker.ErrClosed): // the error was counted as a fault
		h.reject(w, r, http.StatusServiceUnavailable, idleStale, err)
	case errors.Is(err, idle.ErrLimit):
		w.Header().Set("Retry-After", "60")
		h.reject(w, r, http.StatusServiceUnavailable, idleLimit, err)
	case errors.Is(err, probe.ErrAddresses): // without Retry-After: a later probe has the same result
		h.reject(w, r, http.StatusServiceUnavailable, tooManyAddrs, err)
	case errors.Is(err, shaker.ErrClosed):
		h.reject(w, r, http.StatusServiceUnavailable, shuttingDown, err)
	case errors.Is(err, shaker.ErrUnsent):
		h.reject(w, r, http.StatusServiceUnavailable, tooLate, err)
	case errors.Is(err, probe.ErrDenied):
		h.reject(w, r, http.StatusForbidden, denied, err)
	case errors.Is(err, probe.ErrModule):
		h.reject(w, r, http.StatusBadRequest, unknownModule, err)
	case errors.Is(err, shaker.ErrTarget):
		h.reject(w, r, http.StatusBadRequest, badTarget, err)
	default:
		h.metrics.countFault(err)
		// One line per second is enough: the counter has all of them.
		if now := time.Now().Unix(); h.faultLogged.Swap(now) != now {
			h.options.Logger.Warn("Probe not performed", "target", req.Text, "module", req.ModuleName, "err", err)
		}
		http.Error(w, "probe not performed, target state unknown: "+err.Error(), http.StatusServiceUnavailable)
	}
}

// mistakeOf returns the reason why a request is rejected that has an error of its caller.
func mistakeOf(err error) string {
	switch {
	case errors.Is(err, probe.ErrTarget):
		return badTarget
	case errors.Is(err, probe.ErrModule):
		return unknownModule
	}
	return badRequest
}

// reject responds to a request whose probe is not performed or not finished, and counts it by reason. It logs the
// request at level debug, for the operator who looks for its sender.
func (h *Handler) reject(w http.ResponseWriter, r *http.Request, status int, reason string, err error) {
	h.metrics.rejected.WithLabelValues(reason).Inc()
	h.options.Logger.Debug("Probe rejected", "reason", reason, "status", status, "client", r.RemoteAddr,
		"query", probe.Shorten(r.URL.RawQuery), "err", err)
	http.Error(w, err.Error(), status)
}

// A response is the memory in which the response to a probe is built.
type response struct {
	sheet sheet
	body  bytes.Buffer
}

// responses are those that are not in use. Without reuse, they would be most of the garbage of a probe.
var responses = sync.Pool{New: func() any { return new(response) }}

// answer writes the metrics of a probe, preceded by its log if debug is true.
func (h *Handler) answer(w http.ResponseWriter, r *http.Request, answer answer, debug bool) {
	response := responses.Get().(*response)
	defer responses.Put(response)
	body := &response.body
	body.Reset()
	exposition := h.negotiate(r.Header)
	contentType := string(exposition.format)
	if debug {
		exposition, contentType = plainText, "text/plain; charset=utf-8"
		writeDebug(body, answer)
	}
	response.sheet.fill(answer.Report)
	if answer.Watch != nil {
		response.sheet.addWatch(answer.Watch)
		defer answer.Watch.Release()
	}
	if answer.hold != nil {
		response.sheet.addHold(answer.hold)
	}
	if answer.idle != nil {
		response.sheet.addIdle(answer.idle)
	}
	if err := exposition.write(body, response.sheet.families); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Vary", "Accept") // see negotiate
	w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
	w.Write(body.Bytes())
}
