// Package pages shows a person what targets answered lately: as a page that says it at a
// glance, and as plain text that says all of it.
//
// The page is complete without JavaScript, which only keeps it up to date and filters while
// one types, and comes in one piece: its Content-Security-Policy allows what is embedded in it
// and nothing else. All its URLs are relative, so that it works below any prefix and behind any
// proxy. Whatever a target or a module is called, it stays text.
package pages

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"log/slog"
	"net/http"
	"time"

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

// Options are what the pages are made from. All of them are required, but Lost.
type Options struct {
	// Tracks returns the history of the targets and modules that are the given ones, ""
	// for all, in any order: that of a collector.History.
	Tracks func(target, module string) []collector.Track

	// Lost returns when a target was last forgotten for want of room, zero if none was.
	Lost func() time.Time

	// Modules returns the names of the modules in force, in the order to show them in.
	Modules func() []string

	Version string // of the exporter
	Logger  *slog.Logger
}

// Pages answers for the page of targets, and for their history.
type Pages struct {
	options Options
	page    *template.Template
	now     func() time.Time
}

// New returns the Pages.
func New(options Options) *Pages { return &Pages{options, parse(pageHTML), time.Now} }

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string
)

// parse parses the text of the page.
func parse(text string) *template.Template {
	return template.Must(template.New("page").Funcs(template.FuncMap{"words": words, "exact": exact}).Parse(text))
}

// contentSecurityPolicy names the style and the script of the page by their hashes.
var contentSecurityPolicy = "default-src 'none'; style-src " + hash(pageCSS) + "; script-src " + hash(pageJS) +
	"; img-src data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// Home answers with the page of targets, or of those in which each word of the query's filter
// is found.
func (p *Pages) Home(w http.ResponseWriter, r *http.Request) {
	var body bytes.Buffer
	now := p.now()
	err := p.page.Execute(&body, struct {
		Style         template.CSS
		Script        template.JS
		Version       string
		Modules       []string
		DefaultModule string
		Missing       bool // targets of late
		*overview
	}{
		template.CSS(pageCSS), template.JS(pageJS),
		p.options.Version, p.options.Modules(), config.DefaultModule,
		p.options.Lost != nil && now.Sub(p.options.Lost()) < lately,
		newOverview(p.options.Tracks("", ""), r.URL.Query().Get("filter"), now),
	})
	if err != nil {
		p.options.Logger.Error("Cannot show the page", "err", err)
		http.Error(w, "the page cannot be shown, the exporter's log says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Security-Policy", contentSecurityPolicy)
	p.send(w, "text/html; charset=utf-8", &body)
}

// send answers with what has been written to its end.
func (p *Pages) send(w http.ResponseWriter, contentType string, body *bytes.Buffer) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if _, err := body.WriteTo(w); err != nil {
		p.options.Logger.Debug("Cannot answer", "err", err)
	}
}
