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
	"github.com/shaker-exporter/shaker_exporter/internal/lab/browser"
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
	s.show(tracks...)
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

// show changes the tracks.
func (s *site) show(tracks ...collector.Track) { s.tracks.Store(&tracks) }

// quiet fails the test if the page has complained.
func quiet(t *testing.T, b *browser.Browser) {
	t.Helper()
	for _, complaint := range b.Complaints() {
		t.Error(complaint)
	}
}

// look lets the page be seen on a screen so wide, light or dark.
func look(b *browser.Browser, scheme string, width, height int) {
	b.Do("Emulation.setEmulatedMedia", map[string]any{
		"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	b.Do("Emulation.setDeviceMetricsOverride", map[string]any{
		"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}, nil)
}

// sticksOut is what does not fit into what it is in, or into the page. Where rows are wide, a
// path may reach below the cells up to the module's.
const sticksOut = `[document.documentElement, ...document.querySelectorAll("td, tbody th, input, select, button, .paths, .paths *")]
	.filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === "visible" &&
		getComputedStyle(e).display !== "inline" && !e.querySelector(".paths") ||
		e.getBoundingClientRect().right > innerWidth ||
		e.matches(".paths") && e.getBoundingClientRect().right > (getComputedStyle(e.closest("td")).display === "table-cell" ?
			e.closest("tr").querySelector(".module").getBoundingClientRect().left : e.closest("td").getBoundingClientRect().right))
	.map(e => e.outerHTML).join("\n")`

// goodIsBeside tells whether the last good path is beside the present one, and not below it.
const goodIsBeside = `(() => {
	const [now, good] = [...document.querySelectorAll(".paths:has(:nth-child(2 of div)) div")].map(e => e.getBoundingClientRect());
	return now.right < good.left && now.top === good.top;
})()`

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
	b := browser.New(t)
	picture := func(name string) {
		if *pictures == "" {
			return
		}
		if err := os.WriteFile(filepath.Join(*pictures, name+".png"), b.Screenshot(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, scheme := range []string{"light", "dark"} {
		for _, screen := range []struct {
			name          string
			width, height int
		}{{"page", 1200, 740}, {"small", 1154, 740}, {"tablet", 800, 1100}, {"phone", 360, 740}} {
			name := screen.name + "-" + scheme
			look(b, scheme, screen.width, screen.height)
			b.Open(s.url)
			picture(name)
			b.Eval(`document.querySelectorAll("details").forEach(details => details.open = true)`)
			picture(name + "-paths")
			if sticksOut := b.Eval(sticksOut); sticksOut != "" {
				t.Errorf("%s: these stick out:\n%v", name, sticksOut)
			}
			if beside := b.Eval(goodIsBeside); beside != (screen.name != "phone") {
				t.Errorf("%s: the last good path is beside the present one: %v", name, beside)
			}
			if pale := b.Eval(tooPale); pale != "" {
				t.Errorf("%s: these are too pale:\n%v", name, pale)
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
	b := browser.New(t)
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
	if got := b.Eval(`document.querySelector("#module option:last-child").value`); got != hostileModule {
		t.Errorf("the form probes by the module %q", got)
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
	b := browser.New(t)
	b.Do("Emulation.setScriptExecutionDisabled", map[string]any{"value": true}, nil)
	b.Open(s.url)
	if rows := b.Eval(`document.querySelectorAll("tbody tr").length`); rows != float64(len(fleet())) {
		t.Errorf("%v rows", rows)
	}
	b.Eval(`document.getElementById("filter").focus()`)
	b.Type("prod REFUSED\n")
	b.Eventually(`location.search === "?filter=prod+REFUSED" && document.readyState === "complete"`)
	if got := b.Eval(`document.querySelectorAll("tbody tr").length + " " + document.getElementById("filter").value`); got != "2 prod REFUSED" {
		t.Errorf("filtered, the page has %v", got)
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
	b := browser.New(t)
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
	s.show(append(fleet(), down)...)
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

	t.Log("A link that has the focus keeps it.")
	const shown = `document.querySelectorAll("tbody tr").length`
	s.show(fleet()...)
	b.Eval(seen)
	b.Eventually(`document.title.startsWith("5 failing")`)
	b.Eval(`document.querySelector(".target a").focus()`)
	link := b.Eval(`document.activeElement.href`)
	b.Eval(`window.old = document.activeElement`)
	b.Eval(seen)
	b.Eventually(`!old.isConnected`)
	if got := b.Eval(`document.activeElement.href`); got != link {
		t.Errorf("the focus is on %v, was on %v", got, link)
	}

	t.Log("A path that is open stays open, no other opens, and it keeps the focus.")
	const paths = `[...document.querySelectorAll("details[open]")].map(d => d.closest("tr").querySelector("a").textContent).join()`
	if got := b.Eval(paths); got != "" {
		t.Errorf("these paths are open from the start: %v", got)
	}
	b.Eval(`[...document.querySelectorAll("tr")].find(row => row.textContent.includes("mail.example.org")).querySelector("summary").focus()`)
	b.Eval(`document.activeElement.click()`)
	b.Eval(`window.old = document.activeElement`)
	s.show(append(fleet(), down)...) // above it
	b.Eval(seen)
	b.Eventually(`!old.isConnected && document.querySelector("tbody .target a").textContent === "down.example:1"`)
	if got := b.Eval(paths + ` + " " + (document.activeElement === document.querySelector("details[open] summary"))`); got != "mail.example.org:25 true" {
		t.Errorf("after a refresh, these paths are open, and one has the focus: %v", got)
	}
	s.show(fleet()...)
	b.Eval(seen)
	b.Eventually(`document.title.startsWith("5 failing")`)

	t.Log("An exporter that does not answer is told of, until it does.")
	s.broken.Store(true)
	b.Eval(seen)
	b.Eventually(`state.textContent.startsWith("The exporter does not answer. This is as of ")`)
	if got := b.Eval(shown); got != float64(len(fleet())) {
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

// The filter acts while one types, and stays.
func TestFilterInBrowser(t *testing.T) {
	s := serve(t, fleet()...)
	b := browser.New(t)
	b.Open(s.url)
	b.Eval(`window.same = true`)
	const shown = `document.querySelectorAll("tbody tr").length`
	const seen = `document.dispatchEvent(new Event("visibilitychange"))`
	now := func() any {
		return b.Eval(`[window.same, location.search, filter.value, document.activeElement.id].join()`)
	}

	b.Eval(`filter.focus()`)
	b.Type("prod REFUSED")
	b.Eventually(shown + " === 2")
	if got := now(); got != "true,?filter=prod+REFUSED,prod REFUSED,filter" {
		t.Errorf("while one types: %v", got)
	}

	t.Log("A refresh keeps it, and so does a reload.")
	down := track("down.prod.example:1", "or", 0)
	down.Last().Time = time.Now()
	tracks := append(fleet(), down, track("up.prod.example:1", "o", 0))
	s.show(tracks...)
	b.Eval(seen)
	b.Eventually(shown + " === 3")
	b.Leave(`location.reload()`)
	b.Eventually(`!window.same && document.readyState === "complete"`)
	if got := b.Eval(shown); got != 3.0 {
		t.Errorf("after a reload there are %v rows", got)
	}
	if got := now(); got != ",?filter=prod+REFUSED,prod REFUSED," {
		t.Errorf("after a reload: %v", got)
	}

	t.Log("The Enter key leads nowhere, and an empty filter shows all.")
	b.Eval(`(same = true, filter.value = "nowhere", filter.focus())`)
	b.Type("\n")
	b.Eventually(`document.querySelector("main > p")?.textContent === "No target matches the filter."`)
	if got := now(); got != "true,?filter=nowhere,nowhere,filter" {
		t.Errorf("after the Enter key: %v", got)
	}
	b.Eval(`(filter.value = " ", filter.dispatchEvent(new Event("input")))`)
	b.Eventually(fmt.Sprintf("%s === %d", shown, len(tracks)))
	if got := now(); got != "true,, ,filter" {
		t.Errorf("without the filter: %v", got)
	}

	t.Log("An answer that comes late, to a filter that was, is not shown.")
	b.Eval(`(inTime = fetch, fetch = async (...args) => {
		const response = await inTime(...args), text = await response.text();
		if (args[0].endsWith("=late")) await new Promise(resolve => release = resolve);
		return {ok: response.ok, text: async () => text};
	}, 0)`)
	b.Eval(`(filter.value = "late", find())`)
	b.Eventually(`typeof release === "function"`)
	b.Eval(`(filter.value = "prod refused", find())`)
	b.Eventually(shown + " === 3")
	b.Eval(`new Promise(resolve => { release(); setTimeout(resolve) })`)
	if got := b.Eval(shown); got != 3.0 {
		t.Errorf("a late answer shows %v rows", got)
	}

	t.Log("There is none where there is nothing to filter.")
	const hidden = `getComputedStyle(search).display === "none"`
	if got := b.Eval(hidden); got != false {
		t.Error("the filter is hidden")
	}
	s.show()
	b.Eval(seen)
	b.Eventually(hidden)
	quiet(t, b)
}
