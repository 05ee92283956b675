package endtoend

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/browser"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
)

// A page of another site cannot make a browser reload the configuration or load probes. A link on it works.
func TestPageOfAnotherSite(t *testing.T) {
	const (
		probe  = "http://localhost:10115" + ownPort
		reload = "http://localhost:10115/-/reload"
		probes = `shaker_probes_total{module="first"}`
		loaded = "Configuration reloaded"
	)
	p := exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", goodConfig))
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, `<a href="`+probe+`&module=first">probe</a> <form method="POST" action="`+reload+`"></form>`)
	}))
	defer site.Close()
	b := browser.New(t)
	b.Open(site.URL) // at 127.0.0.1, which is another site than localhost
	b.Eval(fmt.Sprintf(`
		settled = 0;
		one = () => settled++;
		load = (name, url) => {
			const element = document.createElement(name);
			element.onload = element.onerror = one;
			element.src = url;
			document.body.append(element);
		};
		load("img", %[1]q);
		load("script", %[1]q);
		load("iframe", %[1]q);
		fetch(%[1]q).finally(one).catch(() => {});
		fetch(%[1]q, {mode: "no-cors"}).finally(one).catch(() => {});
		fetch(%[2]q, {method: "POST", mode: "no-cors"}).finally(one).catch(() => {});
		fetch(%[2]q, {method: "PUT"}).finally(one).catch(() => {});
		0`, probe+"&module=first", reload))
	b.Eventually("settled === 7")
	if got := exporter.Metric(t, probes); got != 0 {
		t.Errorf("%s = %d after a page of another site loaded probes, want 0", probes, got)
	}
	b.Leave(`document.querySelector("form").submit()`)
	b.Arrive("/-/reload")
	if log := p.Output(); strings.Contains(log, loaded) {
		t.Errorf("a page of another site reloaded the configuration, the log is %s\nwant no %q", log, loaded)
	}
	b.Open(site.URL)
	b.Leave(`document.querySelector("a").click()`)
	b.Arrive("/probe")
	if text := b.Eval("document.body.textContent").(string); !strings.Contains(text, "\nprobe_success 1\n") {
		t.Errorf("a link of another site leads to %s\nwant probe_success 1 in it", text)
	}
	if got := exporter.Metric(t, probes); got != 1 {
		t.Errorf("%s = %d after a user followed a link of another site, want 1", probes, got)
	}
}
