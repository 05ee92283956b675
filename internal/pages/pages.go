// Package pages serves the status page, an overview of all targets and their latest results, and
// /logs, a list of these results as HTML or plain text.
//
// The status page is complete without JavaScript. Its script refreshes the page, and filters while
// the user types. The page is self-contained: its Content-Security-Policy allows only the embedded
// style, script and icon. All URLs are relative, so the page works under any path prefix and behind
// any proxy. Names of targets and modules are always escaped.
package pages

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"iter"
	"log/slog"
	"net/http"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/hold"
	"github.com/shaker-exporter/shaker_exporter/internal/idle"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/internal/watch"
)

// Options configure Pages. All fields except Watched, Held, Idle, Lost and ResetsMissing are required.
type Options struct {
	// Tracks returns the history of one target, or of all targets if target is "", limited to one
	// module unless module is "", in any order. See history.History.
	Tracks func(target, module string) []history.Track

	// Watched returns the watched targets. See watch.Watcher.Targets.
	Watched func() iter.Seq[*watch.Status]

	// Held returns the held targets. See hold.Holder.Targets.
	Held func() iter.Seq[*hold.Status]

	// Idle returns the targets whose idle timeout is measured. See idle.Meter.Targets.
	Idle func() iter.Seq[*idle.Status]

	// Lost returns when the history last dropped a target because it was full, zero if it never
	// did. See history.History.
	Lost func() time.Time

	// Modules returns the names of the modules of the active configuration, in display order.
	Modules func() []string

	// ResetsMissing reports whether the RSTs of this host do not arrive. See shaker.Resets.
	ResetsMissing func() bool

	Version string // of the exporter
	Engine  string // how the exporter sends SYNs: the value of --probe.engine
	Logger  *slog.Logger
}

// Pages serves the status page and /logs.
type Pages struct {
	options Options
	page    *template.Template // the status page
	logs    *template.Template
	now     func() time.Time
}

// New returns Pages with the given options.
func New(options Options) *Pages {
	if options.Watched == nil {
		options.Watched = none[watch.Status]
	}
	if options.Held == nil {
		options.Held = none[hold.Status]
	}
	if options.Idle == nil {
		options.Idle = none[idle.Status]
	}
	return &Pages{options: options, page: parse(pageHTML), logs: parse(logsHTML), now: time.Now}
}

// none returns no target.
func none[S any]() iter.Seq[*S] { return func(func(*S) bool) {} }

var (
	//go:embed page.html
	pageHTML string
	//go:embed logs.html
	logsHTML string
	//go:embed layout.html
	layoutHTML string // what both pages have in common
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string
)

// parse parses the template of a page.
func parse(text string) *template.Template {
	funcs := template.FuncMap{
		"words": words, "timestamp": timestamp, "milliseconds": probe.Milliseconds,
		"style":  func() template.CSS { return template.CSS(pageCSS) },
		"script": func() template.JS { return template.JS(pageJS) },
	}
	return template.Must(template.Must(template.New("page").Funcs(funcs).Parse(layoutHTML)).Parse(text))
}

// contentSecurityPolicy allows the page's style and script by their hashes.
var contentSecurityPolicy = "default-src 'none'; style-src " + hash(pageCSS) + "; script-src " + hash(pageJS) +
	"; img-src data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// Home serves the status page. If the query has a filter, the page shows only the targets that
// match each of the filter's words. With sort=latency, the slowest targets come first.
func (p *Pages) Home(w http.ResponseWriter, r *http.Request) {
	v, err := parseView(r.URL.RawQuery)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	now := p.now()
	p.sendHTML(w, p.page, struct {
		Version       string
		Engine        string
		Modules       []string
		DefaultModule string
		Missing       bool // whether the history has recently dropped a target because it was full
		ResetsMissing bool
		*overview
	}{
		p.options.Version, p.options.Engine, p.options.Modules(), config.DefaultModule,
		p.options.Lost != nil && now.Sub(p.options.Lost()) < recently,
		p.options.ResetsMissing != nil && p.options.ResetsMissing(),
		newOverview(p.options.Tracks("", ""), p.live(now), v, now),
	})
}

// live returns the entries of the targets that the exporter deals with between scrapes.
func (p *Pages) live(now time.Time) iter.Seq[entry] {
	return func(yield func(entry) bool) {
		for s := range p.options.Watched() {
			if !yield(newWatchedEntry(s)) {
				return
			}
		}
		for s := range p.options.Held() {
			if !yield(newHeldEntry(s, now)) {
				return
			}
		}
		for s := range p.options.Idle() {
			if !yield(newIdleEntry(s)) {
				return
			}
		}
	}
}

// sendHTML sends a page.
func (p *Pages) sendHTML(w http.ResponseWriter, page *template.Template, data any) {
	var body bytes.Buffer
	if err := page.Execute(&body, data); err != nil {
		p.options.Logger.Error("Cannot render the page", "err", err)
		http.Error(w, "cannot render the page, see the exporter's log", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Security-Policy", contentSecurityPolicy)
	p.send(w, "text/html; charset=utf-8", &body)
}

// send sends a complete response body.
func (p *Pages) send(w http.ResponseWriter, contentType string, body *bytes.Buffer) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if _, err := body.WriteTo(w); err != nil {
		p.options.Logger.Debug("Cannot send the response", "err", err)
	}
}
