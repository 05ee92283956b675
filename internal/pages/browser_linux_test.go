package pages

import (
	"flag"
	"fmt"
	"iter"
	"log/slog"
	"maps"
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

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/hold"
	"github.com/shaker-exporter/shaker_exporter/internal/idle"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/browser"
	"github.com/shaker-exporter/shaker_exporter/internal/watch"
)

var pictures = flag.String("pictures", "", "directory for the screenshots that TestLooks takes")

// A site serves the status page and /logs below a path prefix.
type site struct {
	url     string
	tracks  atomic.Pointer[[]history.Track]
	watched atomic.Pointer[[]*watch.Status]
	held    atomic.Pointer[[]*hold.Status]
	idle    atomic.Pointer[[]*idle.Status]
	broken  atomic.Bool  // the status page is answered with an error
	served  atomic.Int64 // requests for the status page
}

// serve starts a site that shows the tracks until the end of the test.
func serve(t *testing.T, tracks ...history.Track) *site {
	t.Helper()
	lab.Need(t)
	s := &site{}
	s.show(tracks...)
	s.watch()
	s.hold()
	s.measure()
	p := New(Options{
		Tracks: func(target, module string) []history.Track {
			return slices.DeleteFunc(slices.Clone(*s.tracks.Load()), func(t history.Track) bool {
				return target != "" && t.Target != target || module != "" && t.Module != module
			})
		},
		Watched: func() iter.Seq[*watch.Status] { return slices.Values(*s.watched.Load()) },
		Held:    func() iter.Seq[*hold.Status] { return slices.Values(*s.held.Load()) },
		Idle:    func() iter.Seq[*idle.Status] { return slices.Values(*s.idle.Load()) },
		Modules: func() []string { return []string{"tcp_connect", "tcp_connect_ip4", hostileModule} },
		Version: "1.0.0",
		Engine:  "socket",
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

// show replaces the tracks.
func (s *site) show(tracks ...history.Track) { s.tracks.Store(&tracks) }

// watch replaces the watched targets.
func (s *site) watch(watched ...*watch.Status) { s.watched.Store(&watched) }

// hold replaces the held targets.
func (s *site) hold(held ...*hold.Status) { s.held.Store(&held) }

// measure replaces the targets whose idle timeout is measured.
func (s *site) measure(idle ...*idle.Status) { s.idle.Store(&idle) }

// noComplaints fails the test if the browser reported an error.
func noComplaints(t *testing.T, b *browser.Browser) {
	t.Helper()
	for _, complaint := range b.Complaints() {
		t.Error(complaint)
	}
}

// setScreen sets the browser's color scheme and the size of its screen.
func setScreen(b *browser.Browser, scheme string, width, height int) {
	b.Do("Emulation.setEmulatedMedia", map[string]any{
		"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	b.Do("Emulation.setDeviceMetricsOverride", map[string]any{
		"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}, nil)
}

// overflowing is a script that returns the elements that overflow their container or the page, and the
// cells that overlap another cell. In the table layout, an explanation may reach below the latency, and
// paths and the facts about a live target up to the module's cell.
const overflowing = `(() => {
	const right = e => e.getBoundingClientRect().right;
	const boundary = part => {
		const cell = part.closest("td");
		const next = part.matches(".paths, .facts") ? ".module" :
			part.matches("main:not(.log) .why") ? ".recent" : null;
		return next && getComputedStyle(cell).display === "table-cell" ?
			cell.closest("tr").querySelector(next).getBoundingClientRect().left : right(cell);
	};
	const overlap = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 &&
		a.top < b.bottom - 1 && b.top < a.bottom - 1;
	const overlapsAnother = cell => [...cell.parentElement.children].some(other => other !== cell &&
		overlap(cell.getBoundingClientRect(), other.getBoundingClientRect()));
	const boxes = document.querySelectorAll(
		"td, tbody th, input, select, button, .why, .paths, .paths *, .facts, .facts *");
	return [document.documentElement, ...boxes]
		.filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === "visible" &&
			getComputedStyle(e).display !== "inline" && !e.querySelector(".paths, .why, .facts") ||
			right(e) > innerWidth)
		.concat([...document.querySelectorAll("td > *, .paths, .facts")].filter(part => right(part) > boundary(part)))
		.concat([...document.querySelectorAll("tbody th, td")].filter(overlapsAnother))
		.map(e => e.outerHTML).join("\n");
})()`

// sideBySide is a script that reports whether the last good path is to the right of the current one,
// not below it.
const sideBySide = `(() => {
	const [now, good] = [...document.querySelectorAll(".paths:has(:nth-child(2 of div)) div")]
		.map(e => e.getBoundingClientRect());
	return now.right < good.left && now.top === good.top;
})()`

// lowContrast is a script that returns the elements whose text has a contrast below 4.5, the limit of
// WCAG 2 (AA).
const lowContrast = `(() => {
	const rgb = color => color.match(/[\d.]+/g).map(Number);
	const luminance = color => rgb(color).slice(0, 3).map(c => c / 255)
		.map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
		.reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
	const behind = element => {
		const color = getComputedStyle(element).backgroundColor;
		return rgb(color)[3] === 0 ? behind(element.parentElement) : color;
	};
	const low = [];
	for (const element of document.querySelectorAll("body *:not(script, title, option)")) {
		if (![...element.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && !element.placeholder) continue;
		const style = getComputedStyle(element, element.placeholder ? "::placeholder" : null);
		const [dark, light] = [luminance(style.color), luminance(behind(element))].sort((a, b) => a - b);
		const contrast = (light + .05) / (dark + .05);
		if (contrast < 4.5) low.push(contrast.toFixed(2) + " " + element.outerHTML);
	}
	return low.join("\n");
})()`

// A screen is one of those on which the pages are looked at.
type screen struct {
	name, scheme  string
	width, height int
}

// screens are screens of all sizes, in light and dark mode.
func screens() (all []screen) {
	for _, scheme := range []string{"light", "dark"} {
		all = append(all,
			screen{name: "page-" + scheme, scheme: scheme, width: 1200, height: 740},
			screen{name: "small-" + scheme, scheme: scheme, width: 1154, height: 740},
			screen{name: "tablet-" + scheme, scheme: scheme, width: 800, height: 1100},
			screen{name: "phone-" + scheme, scheme: scheme, width: 360, height: 740})
	}
	return all
}

// takePicture writes a picture of the page, if pictures are wanted.
func takePicture(t *testing.T, b *browser.Browser, name string) {
	t.Helper()
	if *pictures == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(*pictures, name+".png"), b.Screenshot(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// checkLooks checks that nothing on the page overflows, and that all text has enough contrast.
func checkLooks(t *testing.T, b *browser.Browser, name string) {
	t.Helper()
	if elements := b.Eval(overflowing); elements != "" {
		t.Errorf("on screen %s, these elements overflow, want none:\n%v", name, elements)
	}
	if elements := b.Eval(lowContrast); elements != "" {
		t.Errorf("on screen %s, these texts have a contrast below 4.5, want none:\n%v", name, elements)
	}
}

const openDetails = `document.querySelectorAll("details").forEach(details => details.open = true)`

// On screens of all sizes, in light and dark mode, nothing overflows and all text has enough contrast.
// The README's screenshot, docs/page.png, is the page-light.png of
//
//	go test ./internal/pages -run TestLooks -pictures /tmp
func TestLooks(t *testing.T) {
	s := serve(t, fleet()...)
	s.watch(watchedFleet()...)
	b := browser.New(t)
	for _, screen := range screens() {
		setScreen(b, screen.scheme, screen.width, screen.height)
		b.Open(s.url)
		takePicture(t, b, screen.name)
		b.Eval(openDetails)
		takePicture(t, b, screen.name+"-paths")
		checkLooks(t, b, screen.name)
		if got, want := b.Eval(sideBySide), screen.width >= 500; got != want {
			t.Errorf("on screen %s, the last good path is to the right of the current one: %v, want %t",
				screen.name, got, want)
		}
		for _, query := range []string{"", "?target=mail.example.org:25&module=tcp_connect"} {
			b.Open(s.url + "logs" + query)
			name := fmt.Sprintf("%s-logs%.7s", screen.name, query)
			takePicture(t, b, name)
			checkLooks(t, b, name)
		}
		want := map[string]string{"light": "rgb(246, 247, 249)", "dark": "rgb(15, 18, 22)"}[screen.scheme]
		if got := b.Eval("getComputedStyle(document.body).backgroundColor"); got != want {
			t.Errorf("in %s mode, the background is %v, want %s", screen.scheme, got, want)
		}
	}
	noComplaints(t, b)
}

// The same is true for targets to which the exporter holds connections.
func TestLooksOfConnections(t *testing.T) {
	s := serve(t)
	s.hold(heldFleet(time.Now())...)
	s.measure(idleFleet(time.Now())...)
	b := browser.New(t)
	for _, screen := range screens() {
		setScreen(b, screen.scheme, screen.width, screen.height)
		b.Open(s.url)
		b.Eval(openDetails)
		takePicture(t, b, "connections-"+screen.name)
		checkLooks(t, b, screen.name)
	}
	noComplaints(t, b)
}

// The same is true for targets with flows, and each cell of a strip is visible.
func TestLooksOfFlows(t *testing.T) {
	at := func(target, results string, flows *history.Flows) history.Track {
		tr := track(target, results, 0)
		for i := range tr.Records { // the time of the pages of a site is that of the machine
			tr.Records[i].Time = time.Now()
		}
		tr.Last().Flows = flows
		return tr
	}
	const address = "2001:db8:1234:5678:9abc:def0:1234:5678"
	s := serve(t,
		at("shop.example:443", "ot", partedFlows(strings.Repeat("oootooro", 8), address, address)),
		at("["+address+"]:443", "ot", partedFlows("tooo", "192.0.2.7", "")),
		at("good.example:443", "oo", flowsOf(strings.Repeat("o", 16))))
	b := browser.New(t)
	for _, screen := range screens() {
		setScreen(b, screen.scheme, screen.width, screen.height)
		b.Open(s.url)
		takePicture(t, b, "flows-"+screen.name)
		checkLooks(t, b, screen.name)
		const visible = `[...document.querySelectorAll(".flows i")].filter(e => e.clientWidth >= 3 &&
			e.clientHeight >= 5 && getComputedStyle(e).backgroundColor !== "rgba(0, 0, 0, 0)").length`
		if got := b.Eval(visible); got != 84.0 {
			t.Errorf("on screen %s, %v cells of flows are visible, want 84", screen.name, got)
		}
	}
	noComplaints(t, b)
}

// A refresh keeps the list of well-known timeouts open.
func TestRefreshOfIdle(t *testing.T) {
	s := serve(t)
	s.measure(idleFleet(time.Now())...)
	b := browser.New(t)
	b.Open(s.url)
	const summary = `document.querySelector("details[open] summary")?.textContent`
	if got := b.Eval(summary); got != nil {
		t.Errorf("at first the list %v is open, want none", got)
	}
	b.Eval(`document.querySelector("details").open = true`)
	want := b.Eval(summary)
	b.Eval(`window.old = document.querySelector("main")`)
	b.Eval(`refresh()`)
	b.Eventually(`!old.isConnected`)
	if got := b.Eval(summary); got != want || want == nil {
		t.Errorf("after a refresh the list %v is open, want still %v", got, want)
	}
	noComplaints(t, b)
}

// A browser shows hostile names of targets and modules as text, and probes exactly them.
func TestHostileNamesInBrowser(t *testing.T) {
	hostile := track(hostileTarget, "or", time.Second)
	hostile.Module = hostileModule
	long := track(strings.Repeat("long", 15)+".example:65535", "o", time.Second)
	long.Module = long.Target
	s := serve(t, hostile, long)
	b := browser.New(t)
	for _, width := range []int{1154, 360} { // the narrowest table, and narrow cards
		setScreen(b, "light", width, 740)
		b.Open(s.url)
		if elements := b.Eval(overflowing); elements != "" {
			t.Errorf("on a screen of %d pixels, these elements overflow, want none:\n%v", width, elements)
		}
	}
	if got := b.Eval(`document.querySelector(".target a").textContent`); got != hostileTarget {
		t.Errorf("the page shows the target %q, want %q", got, hostileTarget)
	}
	if got := b.Eval(`document.querySelector("td.module").textContent`); got != hostileModule {
		t.Errorf("the page shows the module %q, want %q", got, hostileModule)
	}
	if got := b.Eval(`document.querySelector("#module option:last-child").value`); got != hostileModule {
		t.Errorf("the form probes with module %q, want %q", got, hostileModule)
	}
	if got := b.Eval(`document.querySelectorAll("img, main script, iframe").length`); got != 0.0 {
		t.Errorf("names created %v elements, want 0", got)
	}
	noComplaints(t, b)
	b.Leave(`document.querySelector(".target a").click()`)
	b.Arrive("/below/probe")
	query, err := url.ParseQuery(b.Eval("document.body.textContent").(string))
	want := url.Values{"target": {hostileTarget}, "module": {hostileModule}, "debug": {"true"}}
	if err != nil || !maps.EqualFunc(query, want, slices.Equal) {
		t.Errorf("the link requests %v (error %v), want %v", query, err, want)
	}
	// The control case: if a name did create a script, the policy would block it and the browser report it.
	b.Open(s.url)
	b.Complaints()
	b.Eval(`document.body.append(Object.assign(document.createElement("script"), {textContent: "alert(1)"}))`)
	b.Eval(`document.body.insertAdjacentHTML("beforeend", "<img src=x onerror=alert(1)>")`)
	complaints := strings.Join(b.Complaints(), "\n")
	if !strings.Contains(complaints, "Content Security Policy") || strings.Contains(complaints, "Dialog") {
		t.Errorf("the browser reported for a script in the page: %s\nwant a policy violation and no dialog", complaints)
	}
}

// Without JavaScript, the page is complete, and the filter and the form work.
func TestWithoutJavaScript(t *testing.T) {
	s := serve(t, fleet()...)
	b := browser.New(t)
	b.Do("Emulation.setScriptExecutionDisabled", map[string]any{"value": true}, nil)
	b.Open(s.url)
	if rows := b.Eval(`document.querySelectorAll("tbody tr").length`); rows != float64(len(fleet())) {
		t.Errorf("the page has %v rows, want %d", rows, len(fleet()))
	}
	b.Eval(`document.getElementById("filter").focus()`)
	b.Type("prod REFUSED\n")
	b.Eventually(`location.search === "?filter=prod+REFUSED" && document.readyState === "complete"`)
	const want = "2 prod REFUSED"
	got := b.Eval(`document.querySelectorAll("tbody tr").length + " " + document.getElementById("filter").value`)
	if got != want {
		t.Errorf("the filtered page has %v, want %s: rows and filter", got, want)
	}
	b.Eval(`document.getElementById("target").focus()`)
	noComplaints(t, b)
	b.Type("[::1]:80\n")
	b.Arrive("/below/probe")
	const wantQuery = "target=%5B%3A%3A1%5D%3A80&module=tcp_connect&debug=true"
	if query := b.Eval("document.body.textContent"); query != wantQuery {
		t.Errorf("the form requests %v, want %s", query, wantQuery)
	}
}

// The page refreshes itself without disturbing its user.
func TestRefresh(t *testing.T) {
	s := serve(t, fleet()...)
	b := browser.New(t)
	setScreen(b, "light", 1000, 400)
	b.Do("Page.addScriptToEvaluateOnNewDocument", map[string]any{
		"source": "const realSetInterval = setInterval; setInterval = (f, ms) => realSetInterval(f, ms / 20)"}, nil)
	b.Open(s.url)
	b.Eval(`document.getElementById("target").value = "half a na"`)
	b.Eval(`document.getElementById("target").focus()`)
	b.Eval(`document.getElementById("target").setSelectionRange(2, 4)`)
	b.Eval(`window.scrollTo(0, 200)`)
	b.Eval(`window.same = true`)

	t.Log("The page refreshes after its period.")
	down := track("down.example:1", "or", 0)
	now := time.Now().Add(-time.Second)
	down.Since, down.Records[1].Time = now, now
	s.show(append(fleet(), down)...)
	b.Eventually(`document.querySelector("tbody .target a").textContent === "down.example:1"`)
	const wantText = "refused, 6 failing, 7 succeeding · shaker_exporter"
	got := b.Eval(`document.querySelector("tbody .verdict").textContent.trim() + ", " + document.title`)
	if got != wantText {
		t.Errorf("the refreshed page has the first verdict and the title %q, want %q", got, wantText)
	}
	const wantState = "true,200,target,half a na,2,4"
	got = b.Eval(`[same, scrollY, document.activeElement.id, document.activeElement.value,
		document.activeElement.selectionStart, document.activeElement.selectionEnd].join()`)
	if got != wantState {
		t.Errorf("after a refresh, window, scroll position, focus, input and selection are %v, want %s", got, wantState)
	}
	noComplaints(t, b)

	// From here on, visibility events trigger the refreshes, so that the test does not wait for the period.
	const becomeVisible = `document.dispatchEvent(new Event("visibilitychange"))`

	t.Log("A refresh does not move the focus from a link.")
	const shown = `document.querySelectorAll("tbody tr").length`
	s.show(fleet()...)
	b.Eval(becomeVisible)
	b.Eventually(`document.title.startsWith("5 failing")`)
	b.Eval(`document.querySelector(".target a").focus()`)
	link := b.Eval(`document.activeElement.href`)
	b.Eval(`window.old = document.activeElement`)
	b.Eval(becomeVisible)
	b.Eventually(`!old.isConnected`)
	if got := b.Eval(`document.activeElement.href`); got != link {
		t.Errorf("after a refresh the focus is on %v, want %v", got, link)
	}

	t.Log("A refresh keeps open paths open and other paths closed, and does not move the focus.")
	const openPaths = `[...document.querySelectorAll("details[open]")]
		.map(d => d.closest("tr").querySelector("a").textContent).join()`
	if got := b.Eval(openPaths); got != "" {
		t.Errorf("the paths of %v are open at first, want none", got)
	}
	b.Eval(`[...document.querySelectorAll("tr")].find(row => row.textContent.includes("mail.example.org"))
		.querySelector("summary").focus()`)
	b.Eval(`document.activeElement.click()`)
	b.Eval(`window.old = document.activeElement`)
	s.show(append(fleet(), down)...) // adds a row above
	b.Eval(becomeVisible)
	b.Eventually(`!old.isConnected && document.querySelector("tbody .target a").textContent === "down.example:1"`)
	const wantPaths = "mail.example.org:25 true"
	got = b.Eval(openPaths + ` + " " + (document.activeElement === document.querySelector("details[open] summary"))`)
	if got != wantPaths {
		t.Errorf("after a refresh, the open paths, and whether the first has the focus, are %v, want %s",
			got, wantPaths)
	}
	s.show(fleet()...)
	b.Eval(becomeVisible)
	b.Eventually(`document.title.startsWith("5 failing")`)

	t.Log("A refresh waits while text is selected, and says so.")
	const rows = `document.querySelectorAll("tbody tr").length`
	selected := func() any { return b.Eval(`[getSelection().toString(), ` + rows + `, title()].join()`) }
	b.Eval(`title = () => document.title.split(",")[0]`)
	b.Eval(`getSelection().selectAllChildren(document.querySelector(".target a"))`)
	before := selected()
	if before != "orders-db-2.prod.example:5432,13,5 failing" {
		t.Fatalf("before the refresh the selection, rows and title are %v, want those of 13 targets", before)
	}
	s.show(append(fleet(), down)...)
	b.Eval(`refresh()`)
	b.Eventually(`state.textContent.startsWith("Paused while text is selected. Last update: ")`)
	if got := selected(); got != before {
		t.Errorf("after a refresh with a selection, it and the page are %v, want %v", got, before)
	}
	b.Eval(`getSelection().removeAllRanges()`)
	b.Eventually(rows + ` === 14 && state.textContent === ""`)

	t.Log("A selection that begins during a refresh is kept, too.")
	s.show(fleet()...)
	b.Eval(`(realFetch = fetch, fetch = async (...args) => {
		const response = await realFetch(...args);
		getSelection().selectAllChildren(document.querySelector(".target a"));
		return response;
	}, 0)`)
	b.Eval(`refresh()`)
	b.Eval(`(fetch = realFetch, 0)`)
	b.Eventually(`state.textContent.startsWith("Paused while text is selected.")`)
	if got := selected(); got != "down.example:1,14,6 failing" {
		t.Errorf("after a refresh during which text was selected, the selection and the page are %v, "+
			"want those of before", got)
	}

	t.Log("A selection outside of the targets does not matter, and a new filter ends one of them.")
	b.Eval(`getSelection().selectAllChildren(document.querySelector("h1"))`)
	b.Eventually(rows + ` === 13 && state.textContent === ""`)
	b.Eval(`refresh()`)
	const heading = "shaker_exporter 1.0.0 · engine socket"
	if got := b.Eval(`getSelection().toString().trim() + state.textContent`); got != heading {
		t.Errorf("after a refresh with a selected heading, selection and state are %v, want only the selection", got)
	}
	b.Eval(`getSelection().selectAllChildren(document.querySelector(".target a"))`)
	b.Eval(`(filter.value = "mail", applyFilter())`)
	b.Eventually(rows + ` === 1 && state.textContent === ""`)
	b.Eval(`(filter.value = "", applyFilter())`)
	b.Eventually(rows + ` === 13`)

	t.Log("The page says that the exporter does not respond, until it does.")
	s.broken.Store(true)
	b.Eval(becomeVisible)
	b.Eventually(`state.textContent.startsWith("The exporter does not respond. Last update: ")`)
	if got := b.Eval(shown); got != float64(len(fleet())) {
		t.Errorf("while the exporter does not respond, the page has %v rows, want still %d", got, len(fleet()))
	}
	s.broken.Store(false)
	b.Eval(becomeVisible)
	b.Eventually(`state.textContent === ""`)
	for _, complaint := range b.Complaints() {
		if !strings.Contains(complaint, "502 (Bad Gateway)") {
			t.Error(complaint)
		}
	}

	t.Log("A hidden page does not refresh.")
	b.Eval(`Object.defineProperty(document, "hidden", {value: true, configurable: true})`)
	served := s.served.Load()
	b.Eval(`refresh()`)
	b.Eval(becomeVisible)
	if got := s.served.Load(); got != served {
		t.Errorf("the hidden page sent %d requests, want 0", got-served)
	}
	b.Eval(`Object.defineProperty(document, "hidden", {value: false, configurable: true})`)
	b.Eval(`refresh()`)
	if s.served.Load() == served {
		t.Error("the visible page sent no request, want one")
	}
	noComplaints(t, b)
}

// The filter is applied while the user types, and survives refreshes and reloads.
func TestFilterInBrowser(t *testing.T) {
	s := serve(t, fleet()...)
	b := browser.New(t)
	b.Open(s.url)
	b.Eval(`window.same = true`)
	const shown = `document.querySelectorAll("tbody tr").length`
	const becomeVisible = `document.dispatchEvent(new Event("visibilitychange"))`
	state := func() any { // of window, URL, input and focus
		return b.Eval(`[window.same, location.search, filter.value, document.activeElement.id].join()`)
	}

	b.Eval(`filter.focus()`)
	b.Type("prod REFUSED")
	b.Eventually(shown + " === 2")
	if got := state(); got != "true,?filter=prod+REFUSED,prod REFUSED,filter" {
		t.Errorf("after typing, the state is %v, want true,?filter=prod+REFUSED,prod REFUSED,filter", got)
	}

	t.Log("The filter survives a refresh and a reload.")
	down := track("down.prod.example:1", "or", 0)
	down.Last().Time = time.Now()
	tracks := append(fleet(), down, track("up.prod.example:1", "o", 0))
	s.show(tracks...)
	b.Eval(becomeVisible)
	b.Eventually(shown + " === 3")
	b.Leave(`location.reload()`)
	b.Eventually(`!window.same && document.readyState === "complete"`)
	if got := b.Eval(shown); got != 3.0 {
		t.Errorf("after a reload, the page has %v rows, want 3", got)
	}
	if got := state(); got != ",?filter=prod+REFUSED,prod REFUSED," {
		t.Errorf("after a reload, the state is %v, want ,?filter=prod+REFUSED,prod REFUSED,", got)
	}

	t.Log("The Enter key does not load another page, and an empty filter shows all targets.")
	b.Eval(`(same = true, filter.value = "nowhere", filter.focus())`)
	b.Type("\n")
	b.Eventually(`document.querySelector("main > p")?.textContent.startsWith("No target matches the filter.")`)
	if got := state(); got != "true,?filter=nowhere,nowhere,filter" {
		t.Errorf("after the Enter key, the state is %v, want true,?filter=nowhere,nowhere,filter", got)
	}
	b.Eval(`(filter.value = " ", filter.dispatchEvent(new Event("input")))`)
	b.Eventually(fmt.Sprintf("%s === %d", shown, len(tracks)))
	if got := state(); got != "true,, ,filter" {
		t.Errorf("with an empty filter, the state is %v, want true,, ,filter", got)
	}

	t.Log("The page says what is wrong with a filter.")
	b.Eval(`(filter.value = "a ".repeat(17), applyFilter())`)
	b.Eventually(`state.textContent.startsWith("filter has 17 words, want at most 16. Last update: ")`)
	for _, complaint := range b.Complaints() {
		if !strings.Contains(complaint, "400 (Bad Request)") {
			t.Error(complaint)
		}
	}

	t.Log("The filter keeps the order.")
	b.Leave(`location.search = "?sort=latency"`)
	b.Eventually(`document.querySelector(".order [aria-current]")?.textContent === "slowest first"`)
	b.Eval(`(same = true, filter.focus())`)
	b.Type("prod")
	b.Eventually(`location.search === "?sort=latency&filter=prod" && ` + shown + ` === 8`)
	const first = `document.querySelector("tbody .target a").textContent`
	if got := b.Eval(first); got != "orders-db-1.prod.example:5432" {
		t.Errorf("with sort=latency and the filter prod, the first target is %v, want the slowest one, "+
			"orders-db-1.prod.example:5432", got)
	}

	t.Log("A late response to an earlier filter is not shown.")
	b.Eval(`(realFetch = fetch, fetch = async (...args) => {
		const response = await realFetch(...args), text = await response.text();
		if (args[0].endsWith("=late")) await new Promise(resolve => release = resolve);
		return {ok: response.ok, text: async () => text};
	}, 0)`)
	b.Eval(`(filter.value = "late", applyFilter())`)
	b.Eventually(`typeof release === "function"`)
	b.Eval(`(filter.value = "prod refused", applyFilter())`)
	b.Eventually(shown + " === 3")
	b.Eval(`new Promise(resolve => { release(); setTimeout(resolve) })`)
	if got := b.Eval(shown); got != 3.0 {
		t.Errorf("after the late response, the page has %v rows, want 3", got)
	}

	t.Log("The filter is hidden while the history is empty.")
	const hidden = `getComputedStyle(search).display === "none"`
	if got := b.Eval(hidden); got != false {
		t.Errorf("the filter is hidden although there are targets: %v, want false", got)
	}
	s.show()
	b.Eval(becomeVisible)
	b.Eventually(hidden)
	noComplaints(t, b)
}
