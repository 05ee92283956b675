package endtoend

import (
	"net"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/browser"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
)

// A person looks at the page, probes a port by hand, comes back, reads its history, and
// sees it go down without doing anything.
func TestPage(t *testing.T) {
	const hostile = `<img src=x onerror="document.title='owned'">`
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", `
modules:
  tcp_connect_ip4: {prober: tcp, tcp: {preferred_ip_protocol: ip4}}
  '`+strings.ReplaceAll(hostile, "'", "''")+`': {prober: tcp}
`))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	target := listener.Addr().String()
	const home = "http://localhost:10115/"
	b := browser.New(t)
	quiet := func() {
		t.Helper()
		for _, complaint := range b.Complaints() {
			// A page that is bare text cannot name an icon.
			if !strings.Contains(complaint, home+"favicon.ico") {
				t.Error(complaint)
			}
		}
	}
	b.Open(home)
	if got := b.Eval(`document.querySelector("h2").textContent`); got != "The history is empty" {
		t.Errorf("at first the page says: %v", got)
	}
	for _, path := range b.Eval(`[...document.querySelectorAll("nav a")].map(a => a.pathname)`).([]any) {
		if status, _ := exporter.Get(t, path.(string)); status != 200 {
			t.Errorf("%s: %d", path, status)
		}
	}

	b.Eval(`document.getElementById("target").focus()`)
	b.Type(target)
	b.Eval(`document.getElementById("module").value = "tcp_connect_ip4"`)
	b.Leave(`document.querySelector("form button").click()`)
	b.Arrive("/probe")
	if text := b.Eval("document.body.textContent").(string); !strings.Contains(text, "probe_success 1\n") || !strings.Contains(text, "result: open; valid results: open: success\n") {
		t.Errorf("the probe says: %s", text)
	}

	b.Leave(`history.back()`)
	b.Arrive("/")
	b.Eventually(`document.querySelector("tbody .verdict")?.textContent.trim() === "open"`)
	if got := b.Eval(`document.querySelector("tbody .target a").textContent + " " + document.querySelector("td.module").textContent`); got != target+" tcp_connect_ip4" {
		t.Errorf("the row is of %v", got)
	}
	b.Leave(`document.querySelector(".probed a").click()`)
	b.Arrive("/logs")
	if lines := strings.Split(b.Eval("document.body.textContent").(string), "\n"); len(lines) != 3 || !strings.Contains(lines[1], "  true     open    -  ") {
		t.Errorf("the history is %q", lines)
	}

	exporter.Get(t, "/probe?target="+target+"&module="+url.QueryEscape(hostile))
	b.Open(home)
	if got := b.Eval(`[...document.querySelectorAll("td.module, option")].filter(e => e.textContent.trim() === ` + strconv.Quote(hostile) + `).length`); got != 2.0 {
		t.Errorf("a hostile name is text in %v places, want a row and the form", got)
	}
	b.Eval(`window.same = true`)
	listener.Close()
	exporter.Get(t, "/probe?module=tcp_connect_ip4&target="+target)
	b.Eventually(`document.querySelector("tbody .verdict").textContent.trim() === "refused"`)
	if got := b.Eval(`same && document.querySelector(".why").textContent + ", " + document.title`); got != "nothing listens on this port (ECONNREFUSED), 1 failing, 1 succeeding · shaker_exporter" {
		t.Errorf("of a target that went down the page says: %v", got)
	}
	quiet()
}
