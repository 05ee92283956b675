package pages

import (
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

var pictures = flag.String("pictures", "", "directory into which TestLooks puts pictures of the page")

// A site serves the pages.
type site struct {
	url    string
	tracks atomic.Pointer[[]collector.Track]
	broken atomic.Bool // answers with an error instead
	served atomic.Int64
}

// serve serves the pages with the tracks for the rest of the test.
func serve(t *testing.T, tracks ...collector.Track) *site {
	t.Helper()
	lab.Need(t)
	s := &site{}
	s.tracks.Store(&tracks)
	p := New(Options{
		Tracks:  func(target, module string) []collector.Track { return slices.Clone(*s.tracks.Load()) },
		Modules: func() []string { return []string{"tcp_connect", "tcp_connect_ip4", hostileModule} },
		Version: "1.0.0",
		Logger:  slog.New(slog.DiscardHandler),
	})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /below/{$}", func(w http.ResponseWriter, r *http.Request) {
		s.served.Add(1)
		if s.broken.Load() {
			http.Error(w, "broken", http.StatusBadGateway)
			return
		}
		p.Home(w, r)
	})
	mux.HandleFunc("GET /below/logs", p.Logs)
	mux.HandleFunc("GET /below/probe", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.RawQuery) })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s.url = server.URL + "/below/"
	return s
}

// quiet fails the test if the page has complained.
func quiet(t *testing.T, b *lab.Browser) {
	t.Helper()
	for _, complaint := range b.Complaints() {
		t.Error(complaint)
	}
}

// look lets the page be seen on a screen so wide, light or dark.
func look(b *lab.Browser, scheme string, width, height int) {
	b.Do("Emulation.setEmulatedMedia", map[string]any{
		"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	b.Do("Emulation.setDeviceMetricsOverride", map[string]any{
		"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}, nil)
}

// sticksOut is what does not fit into what it is in, or into the page.
const sticksOut = `[document.documentElement, ...document.querySelectorAll("td, tbody th, input, select, button")]
	.filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === "visible" ||
		e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML).join("\n")`

// tooPale is the texts of the page whose contrast is below 4.5, as WCAG 2 (AA) has it.
const tooPale = `(() => {
	const rgb = color => color.match(/[\d.]+/g).map(Number);
	const luminance = color => rgb(color).slice(0, 3).map(c => c / 255)
		.map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
		.reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
	const behind = element => {
		const color = getComputedStyle(element).backgroundColor;
		return rgb(color)[3] === 0 ? behind(element.parentElement) : color;
	};
	const pale = [];
	for (const element of document.querySelectorAll("body *:not(script, title, option)")) {
		if (![...element.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && !element.placeholder) continue;
		const style = getComputedStyle(element, element.placeholder ? "::placeholder" : null);
		const [dark, light] = [luminance(style.color), luminance(behind(element))].sort((a, b) => a - b);
		const contrast = (light + .05) / (dark + .05);
		if (contrast < 4.5) pale.push(contrast.toFixed(2) + " " + element.outerHTML);
	}
	return pale.join("\n");
})()`

// On screens of all sizes, by day and by night: nothing sticks out, and all can be read.
// README's picture, docs/page.png, is the page-light.png of
//
//	go test ./internal/pages -run TestLooks -pictures /tmp
func TestLooks(t *testing.T) {
	s := serve(t, fleet()...)
	b := lab.NewBrowser(t)
	for _, scheme := range []string{"light", "dark"} {
		for _, screen := range []struct {
			name          string
			width, height int
		}{{"page", 1200, 740}, {"small", 1154, 740}, {"tablet", 800, 1100}, {"phone", 360, 740}} {
			name := screen.name + "-" + scheme
			look(b, scheme, screen.width, screen.height)
			b.Open(s.url)
			if sticksOut := b.Eval(sticksOut); sticksOut != "" {
				t.Errorf("%s: these stick out:\n%v", name, sticksOut)
			}
			if pale := b.Eval(tooPale); pale != "" {
				t.Errorf("%s: these are too pale:\n%v", name, pale)
			}
			if *pictures != "" {
				if err := os.WriteFile(filepath.Join(*pictures, name+".png"), b.Screenshot(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		if page := b.Eval("getComputedStyle(document.body).backgroundColor"); (page == "rgb(246, 247, 249)") != (scheme == "light") {
			t.Errorf("%s: the page is %v", scheme, page)
		}
	}
	quiet(t, b)
}

// Whatever a target or a module is called, a browser shows it as text and probes just that.
func TestHostileNamesInBrowser(t *testing.T) {
	hostile := track(hostileTarget, "or", time.Second)
	hostile.Module = hostileModule
	long := track(strings.Repeat("long", 15)+".example:65535", "o", time.Second)
	long.Module = long.Target
	s := serve(t, hostile, long)
	b := lab.NewBrowser(t)
	for _, width := range []int{1154, 360} { // the narrowest table and the narrowest cards
		look(b, "light", width, 740)
		b.Open(s.url)
		if sticksOut := b.Eval(sticksOut); sticksOut != "" {
			t.Errorf("%d pixels wide, these stick out:\n%v", width, sticksOut)
		}
	}
	if got := b.Eval(`document.querySelector(".target a").textContent`); got != hostileTarget {
		t.Errorf("the target is %q", got)
	}
	if got := b.Eval(`document.querySelector("td.module").textContent`); got != hostileModule {
		t.Errorf("the module is %q", got)
	}
	if got := b.Eval(`document.querySelectorAll("img, main script, iframe").length`); got != 0.0 {
		t.Errorf("there are %v elements that a name has made", got)
	}
	quiet(t, b)
	b.Leave(`document.querySelector(".target a").click()`)
	b.Arrive("/below/probe")
	query, err := url.ParseQuery(b.Eval("document.body.textContent").(string))
	if err != nil || query.Get("target") != hostileTarget || query.Get("module") != hostileModule || query.Get("debug") != "true" {
		t.Errorf("the link asks for %v, %v", query, err)
	}
	// The control case: what a name must not do is blocked if it does, and is heard of.
	b.Open(s.url)
	b.Complaints()
	b.Eval(`document.body.append(Object.assign(document.createElement("script"), {textContent: "alert(1)"}))`)
	b.Eval(`document.body.insertAdjacentHTML("beforeend", "<img src=x onerror=alert(1)>")`)
	if complaints := strings.Join(b.Complaints(), "\n"); !strings.Contains(complaints, "Content Security Policy") || strings.Contains(complaints, "Dialog") {
		t.Errorf("a script in the page: %s", complaints)
	}
}

// Without JavaScript everything is there, and the form works.
func TestWithoutJavaScript(t *testing.T) {
	s := serve(t, fleet()...)
	b := lab.NewBrowser(t)
	b.Do("Emulation.setScriptExecutionDisabled", map[string]any{"value": true}, nil)
	b.Open(s.url)
	if rows := b.Eval(`document.querySelectorAll("tbody tr").length`); rows != float64(len(fleet())) {
		t.Errorf("%v rows", rows)
	}
	if hidden := b.Eval(`getComputedStyle(document.getElementById("filter")).display`); hidden != "none" {
		t.Error("there is a filter, which needs JavaScript")
	}
	b.Eval(`document.getElementById("target").focus()`)
	quiet(t, b)
	b.Type("[::1]:80\n")
	b.Arrive("/below/probe")
	if query := b.Eval("document.body.textContent"); query != "target=%5B%3A%3A1%5D%3A80&module=tcp_connect&debug=true" {
		t.Errorf("the form asks for %v", query)
	}
}

// The page keeps itself up to date and out of the way.
func TestRefresh(t *testing.T) {
	s := serve(t, fleet()...)
	b := lab.NewBrowser(t)
	look(b, "light", 1000, 400)
	b.Do("Page.addScriptToEvaluateOnNewDocument", map[string]any{
		"source": "const inRealTime = setInterval; setInterval = (f, ms) => inRealTime(f, ms / 20)"}, nil)
	b.Open(s.url)
	b.Eval(`document.getElementById("target").value = "half a na"`)
	b.Eval(`document.getElementById("target").focus()`)
	b.Eval(`document.getElementById("target").setSelectionRange(2, 4)`)
	b.Eval(`window.scrollTo(0, 200)`)
	b.Eval(`window.same = true`)

	t.Log("By itself, after a while.")
	down := track("down.example:1", "or", 0)
	now := time.Now().Add(-time.Second)
	down.Changed, down.Records[1].Time = now, now
	tracks := append(fleet(), down)
	s.tracks.Store(&tracks)
	b.Eventually(`document.querySelector("tbody .target a").textContent === "down.example:1"`)
	if got := b.Eval(`document.querySelector("tbody .verdict").textContent.trim() + ", " + document.title`); got != "refused, 6 failing, 7 succeeding · shaker_exporter" {
		t.Errorf("the page says: %v", got)
	}
	if got := b.Eval(`[same, scrollY, document.activeElement.id, document.activeElement.value,
		document.activeElement.selectionStart, document.activeElement.selectionEnd].join()`); got != "true,200,target,half a na,2,4" {
		t.Errorf("what was being done is now: %v", got)
	}
	quiet(t, b)

	// From here on the page is told that it is seen again, so that it does not wait.
	const seen = `document.dispatchEvent(new Event("visibilitychange"))`

	t.Log("A link that has the focus keeps it, and the filter stays.")
	b.Eval(`(filter.value = "prod REFUSED", filter.dispatchEvent(new Event("input")))`)
	const shown = `[...document.querySelectorAll("tbody tr")].filter(row => !row.hidden).length`
	if got := b.Eval(shown); got != 2.0 {
		t.Errorf("the filter shows %v rows", got)
	}
	tracks = fleet()
	s.tracks.Store(&tracks)
	b.Eval(seen)
	b.Eventually(`document.title.startsWith("5 failing")`)
	b.Eventually(shown + " === 2")
	b.Eval(`(filter.value = "", filter.dispatchEvent(new Event("input")))`)
	if got := b.Eval(shown); got != float64(len(tracks)) {
		t.Errorf("without the filter there are %v rows", got)
	}
	b.Eval(`document.querySelector(".target a").focus()`)
	link := b.Eval(`document.activeElement.href`)
	b.Eval(`window.old = document.activeElement`)
	b.Eval(seen)
	b.Eventually(`!old.isConnected`)
	if got := b.Eval(`document.activeElement.href`); got != link {
		t.Errorf("the focus is on %v, was on %v", got, link)
	}

	t.Log("An exporter that does not answer is told of, until it does.")
	s.broken.Store(true)
	b.Eval(seen)
	b.Eventually(`state.textContent.startsWith("The exporter does not answer. This is as of ")`)
	if got := b.Eval(shown); got != float64(len(tracks)) {
		t.Errorf("of an exporter that does not answer %v rows are left", got)
	}
	s.broken.Store(false)
	b.Eval(seen)
	b.Eventually(`state.textContent === ""`)
	for _, complaint := range b.Complaints() {
		if !strings.Contains(complaint, "502 (Bad Gateway)") {
			t.Error(complaint)
		}
	}

	t.Log("A page that nobody sees asks for nothing.")
	b.Eval(`Object.defineProperty(document, "hidden", {value: true, configurable: true})`)
	before := s.served.Load()
	b.Eval(`refresh()`)
	b.Eval(seen)
	if got := s.served.Load(); got != before {
		t.Errorf("it was served %d times more", got-before)
	}
	b.Eval(`Object.defineProperty(document, "hidden", {value: false, configurable: true})`)
	b.Eval(`refresh()`)
	if s.served.Load() == before {
		t.Error("nor does one that somebody sees")
	}
	quiet(t, b)
}
