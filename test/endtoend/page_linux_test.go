package endtoend

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/browser"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
)

// In a browser a user opens the status page, probes a port with the form, goes back, and reads the history of
// the port. When the port is closed, the open page shows it without a reload. The browser reports no error, and
// a module name that contains HTML is shown as text.
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
	b.Open(home)
	if got := b.Eval(`document.querySelector("h2").textContent`); got != "The history is empty" {
		t.Errorf("before any probe the heading is %q, want \"The history is empty\"", got)
	}
	for _, path := range b.Eval(`[...document.querySelectorAll("nav a")].map(a => a.pathname)`).([]any) {
		if status, body := exporter.Get(t, path.(string)); status != 200 {
			t.Errorf("GET %s, a link of the page, = %d %s, want 200", path, status, body)
		}
	}

	b.Eval(`document.getElementById("target").focus()`)
	b.Type(target)
	b.Eval(`document.getElementById("module").value = "tcp_connect_ip4"`)
	b.Leave(`document.querySelector("form button").click()`)
	b.Arrive("/probe")
	text := b.Eval("document.body.textContent").(string)
	for _, want := range []string{"probe_success 1\n", "success: the result is open; valid results: open\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the form leads to %s\nwant %q in it", text, want)
		}
	}

	b.Leave(`history.back()`)
	b.Arrive("/")
	b.Eventually(`document.querySelector("tbody .verdict")?.textContent.trim() === "open"`)
	const row = `document.querySelector("tbody .target a").textContent + " " +
		document.querySelector("td.module").textContent`
	if got, want := b.Eval(row), target+" tcp_connect_ip4"; got != want {
		t.Errorf("the row has the target and module %q, want %q", got, want)
	}
	b.Leave(`document.querySelector(".probed a").click()`)
	b.Arrive("/logs")
	const results = `[...document.querySelectorAll("tbody .verdict")].map(e => e.textContent.trim()).join()`
	if got := b.Eval(results); got != "open" {
		t.Errorf("the history has the results %v, want one: open", got)
	}

	exporter.Get(t, "/probe?target="+target+"&module="+url.QueryEscape(hostile))
	b.Open(home)
	const named = `[...document.querySelectorAll("td.module, option")].filter(e => e.textContent.trim() === %q).length`
	if got := b.Eval(fmt.Sprintf(named, hostile)); got != 2.0 {
		t.Errorf("the module %s is the text of %v elements, want 2: a row and an option of the form", hostile, got)
	}
	b.Eval(`window.same = true`)
	listener.Close()
	exporter.Get(t, "/probe?module=tcp_connect_ip4&target="+target)
	b.Eventually(`document.querySelector("tbody .verdict").textContent.trim() === "refused"`)
	// The page is still the same one if its variable is.
	got := b.Eval(`same && document.querySelector(".why").textContent + ", " + document.title`)
	const want = "nothing listens on this port (ECONNREFUSED), 1 failing, 1 succeeding · shaker_exporter"
	if got != want {
		t.Errorf("after the port was closed the page has the reason and title %q, want %q", got, want)
	}
	for _, complaint := range b.Complaints() {
		// A page of plain text cannot name an icon, so the browser requests this one.
		if !strings.Contains(complaint, home+"favicon.ico") {
			t.Errorf("the browser reports %s, want no error", complaint)
		}
	}
}

// shows waits until the exporter shows texts.
func shows(t *testing.T, path string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		lab.Eventually(t, "GET "+path+" shows "+text, func() bool {
			_, body := exporter.Get(t, path)
			return strings.Contains(body, text)
		})
	}
}

// The page and /logs show a watched target with what happens between scrapes: its failures, but not its successes.
func TestPageOfWatchedTarget(t *testing.T) {
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", `
modules:
  watched: {prober: tcp, watch: {interval: 100ms}}
`))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	query := "?module=watched&target=" + listener.Addr().String()
	exporter.Get(t, "/probe"+query) // the only scrape
	shows(t, "/", " ago by ")
	shows(t, "/", "</b> succeeding</a>")
	listener.Close()
	shows(t, "/", "</b> failing</a>")
	shows(t, "/logs"+query, "ECONNREFUSED")
	_, logs := exporter.Get(t, "/logs"+query)
	if got := strings.Count(logs, " true "); got != 1 {
		t.Errorf("GET /logs%s shows %d successes, want 1, the probe of the scrape:\n%s", query, got, logs)
	}
}

// The page and /logs show a held target: its connection, how it ended, and that the port is closed.
func TestPageOfHeldTarget(t *testing.T) {
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", holdConfig))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	query := "?module=fin&target=" + listener.Addr().String()
	exporter.Get(t, "/probe"+query)
	shows(t, "/", "</b> succeeding</a>", ">connected for <b>", "no connection ended in ", " ago by ")
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	conn.Close()
	shows(t, "/", "</b> failing</a>", "ends <b class=\"some\">1 closed</b>",
		"connect failed: nothing listens on this port")
	shows(t, "/logs"+query, "closed", "ECONNREFUSED")
}

// The page shows a target whose idle timeout is measured: at first as pending, then with the application that closes
// idle connections, and busy ones, too.
func TestPageOfIdleTimeout(t *testing.T) {
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", `
modules:
  quick: {prober: idle, idle: {steps: [1s, 8s], probe: {interval: 1s, count: 1}, control: 1s}}
`))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // the test is over
			}
			time.AfterFunc(4*time.Second, func() { conn.Close() })
		}
	}()
	query := "?module=quick&target=" + listener.Addr().String()
	exporter.Get(t, "/probe"+query)
	shows(t, "/", "</b> pending</a>", "present round: ")
	shows(t, "/", "</b> succeeding</a>", "survived <b>", "told exactly, by a FIN or RST",
		"limited by an application or a proxy: the control connection ended, too, after ")
	shows(t, "/?filter=limit%3Dapplication", listener.Addr().String())
	shows(t, "/logs"+query, "open")
}
