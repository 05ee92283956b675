package documents

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"unicode"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// The pages whose every snippet these tests try.
const (
	blackboxPage = "docs/from-blackbox_exporter.md"
	libraryPage  = "docs/from-tcp-shaker.md"
	synackPage   = "docs/what-a-syn-ack-proves.md"
	halfOpenPage = "docs/half-open.md"
	faqPage      = "docs/faq.md"
)

var docsPages = []string{blackboxPage, libraryPage, synackPage, halfOpenPage, faqPage}

// A snippet is a block of a page that is set off by ```.
type snippet struct{ page, text string }

var fence = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")

// snippets returns the blocks of the pages in one of the languages, in their order.
func snippets(t *testing.T, language string, pages ...string) []snippet {
	t.Helper()
	var found []snippet
	for _, page := range pages {
		for _, block := range fence.FindAllStringSubmatch(lab.Read(t, page), -1) {
			if block[1] == language {
				found = append(found, snippet{page, block[2]})
			}
		}
	}
	return found
}

// snippetWith returns the first block of a page in a language that has a text in it.
func snippetWith(t *testing.T, page, language, with string) string {
	t.Helper()
	for _, s := range snippets(t, language, page) {
		if strings.Contains(s.text, with) {
			return s.text
		}
	}
	t.Fatalf("%s has no %s block with %q", page, language, with)
	return ""
}

// rows returns the rows of the table of a page whose first column has that head: the other
// cells of each, without their backquotes, by the first one.
func rows(t *testing.T, page, head string) map[string][]string {
	t.Helper()
	_, table, found := strings.Cut(lab.Read(t, page), "\n| "+head+" |")
	if !found {
		t.Fatalf("%s has no table of %q", page, head)
	}
	table, _, _ = strings.Cut(table, "\n\n")
	rows := make(map[string][]string)
	for _, line := range strings.Split(table, "\n")[2:] { // without the rest of the head, and the line below it
		cells := strings.Split(strings.ReplaceAll(strings.Trim(line, "|"), "`", ""), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows[cells[0]] = cells[1:]
	}
	return rows
}

// compareRows compares a page's table with what was measured.
func compareRows(t *testing.T, page, head string, measured map[string][]string) {
	t.Helper()
	table := rows(t, page, head)
	for name, got := range measured {
		if want, ok := table[name]; !ok {
			t.Errorf("%s has no row | %s | %s |", page, name, strings.Join(got, " | "))
		} else if !slices.Equal(got, want) {
			t.Errorf("%s: %s: measured %q, the page has %q", page, name, got, want)
		}
	}
	if os.Getenv("SHAKER_TEST_ALL") != "1" || strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
		return // some were skipped, or are not wanted
	}
	for name := range table {
		if _, ok := measured[name]; !ok {
			t.Errorf("%s: the row %q was not measured", page, name)
		}
	}
}

// Links from README.md and the pages to files and headings lead there.
func TestDocsLinks(t *testing.T) {
	links := 0
	for _, page := range allPages(t) {
		broken, n := brokenLinks(os.DirFS("."), page)
		links += n
		for _, link := range broken {
			t.Errorf("%s: %s", page, link)
		}
	}
	if links < 20 {
		t.Errorf("only %d links were found", links)
	}
}

// allPages returns README.md and all that is in docs, whoever tries the snippets.
func allPages(t *testing.T) []string {
	t.Helper()
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	return append(pages, "README.md")
}

// The control: a broken link is found, and a good one is not taken for one.
func TestDocsBrokenLinks(t *testing.T) {
	files := fstest.MapFS{
		"a.go": {Data: []byte("package a")},
		"docs/page.md": {Data: []byte("# The page\n## `code`, and: more_of-it?\n## Twice\n## Twice\n" +
			"[](../a.go) [](https://example.com/b) [](#the-page) [](#code-and-more_of-it) [](#twice-1) [](page.md#twice)\n" +
			"`[](b)`\n```text\n[](c)\n# No heading\n```\n" +
			"[](b.go) [](#no-heading) [](#twice-2) [](../a.go#the-page) [](../../a.go) ![](b.png)\n")},
	}
	want := []string{"b.go", "#no-heading", "#twice-2", "../a.go#the-page", "../../a.go", "b.png"}
	if got, n := brokenLinks(files, "docs/page.md"); !slices.Equal(got, want) || n != 11 {
		t.Errorf("of %d links %q are broken, want %q of 11", n, got, want)
	}
}

var (
	code    = regexp.MustCompile("`[^`\n]*`")
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#{1,6} (.*)$`)
)

// brokenLinks returns the links of a page that lead to no file, or to no heading of it, and
// how many it looked at. It does not look at other hosts.
func brokenLinks(files fs.FS, page string) (broken []string, n int) {
	text, err := fs.ReadFile(files, page)
	if err != nil {
		return []string{err.Error()}, 0
	}
	prose := code.ReplaceAllString(fence.ReplaceAllString(string(text), ""), "")
	for _, found := range link.FindAllStringSubmatch(prose, -1) {
		if strings.Contains(found[1], "://") {
			continue
		}
		n++
		name, anchor, hasAnchor := strings.Cut(found[1], "#")
		target := page
		if name != "" {
			target = path.Join(path.Dir(page), name)
		}
		info, err := fs.Stat(files, target)
		if err != nil || hasAnchor && (info.IsDir() || !slices.Contains(anchors(files, target), anchor)) {
			broken = append(broken, found[1])
		}
	}
	return broken, n
}

// anchors returns the anchors that GitHub gives to the headings of a page.
func anchors(files fs.FS, page string) []string {
	text, err := fs.ReadFile(files, page)
	if err != nil || path.Ext(page) != ".md" {
		return nil
	}
	var anchors []string
	times := make(map[string]int)
	for _, found := range heading.FindAllStringSubmatch(fence.ReplaceAllString(string(text), ""), -1) {
		anchor := strings.Map(func(c rune) rune {
			switch {
			case c == ' ':
				return '-'
			case unicode.IsLetter(c), unicode.IsDigit(c), c == '-', c == '_':
				return unicode.ToLower(c)
			}
			return -1
		}, found[1])
		if n := times[anchor]; n > 0 {
			anchors = append(anchors, fmt.Sprintf("%s-%d", anchor, n))
		} else {
			anchors = append(anchors, anchor)
		}
		times[anchor]++
	}
	return anchors
}

// The YAML of the pages is what it is for: this exporter takes its configurations, and
// Prometheus its own and its rules. What a page shows as wrong is a transcript instead.
func TestDocsYAML(t *testing.T) {
	lab.Need(t)
	kinds := make(map[string]int)
	for _, s := range snippets(t, "yaml", docsPages...) {
		kind, err := tryYAML(t, s.text)
		kinds[kind]++
		if err != nil {
			t.Errorf("%s: %s: %v\n%s", s.page, kind, err, s.text)
		}
	}
	for _, kind := range []string{"exporter", "prometheus", "rules"} {
		if kinds[kind] == 0 {
			t.Errorf("no YAML of the kind %s was tried, only %v", kind, kinds)
		}
	}
}

// The control: YAML that is wrong is refused, whatever it is for.
func TestDocsWrongYAML(t *testing.T) {
	for wrong, want := range map[string]string{
		"modules: {a: {prober: http}}":                                       "exporter",
		"scrape_configs: [{job_name: a, scrape_interval: soon}]":             "prometheus",
		"groups: [{name: a, rules: [{alert: A, expr: 'probe_success =='}]}]": "rules",
		"something: else": "",
	} {
		if kind, err := tryYAML(t, wrong); kind != want || err == nil {
			t.Errorf("%s: %q, %v", wrong, kind, err)
		}
	}
}

// tryYAML says what a text in YAML is for, and what is wrong with it.
func tryYAML(t *testing.T, text string) (kind string, err error) {
	t.Helper()
	has := func(key string) bool { return regexp.MustCompile(`(?m)^` + key + `:`).MatchString(text) }
	switch {
	case has("modules"), has("targets"):
		_, warnings, err := config.Parse("page.yml", []byte(text))
		if err == nil && warnings != nil { // an address or an interface that this host has not
			t.Log(warnings)
		}
		return "exporter", err
	case has("scrape_configs"):
		return "prometheus", checkText(t, "config", text)
	case has("groups"):
		return "rules", checkText(t, "rules", text)
	}
	return "", errors.New("it is not known what this is for")
}

// checkText has promtool check a text as what it is.
func checkText(t *testing.T, as, text string) error {
	t.Helper()
	if out, err := process.Promtool(t, "check", as, lab.Write(t, t.TempDir(), "page.yml", text)); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// Prometheus can parse the PromQL of the pages.
func TestDocsPromQL(t *testing.T) {
	queries := 0
	for _, s := range snippets(t, "promql", docsPages...) {
		for expression := range strings.SplitSeq(s.text, "\n\n") {
			queries++
			if err := tryPromQL(t, expression); err != nil {
				t.Errorf("%s: %v\n%s", s.page, err, expression)
			}
		}
	}
	if queries < 5 {
		t.Errorf("only %d expressions were found", queries)
	}
	if err := tryPromQL(t, "# The control\nrate(probe_success)"); err == nil {
		t.Error("promtool takes anything")
	}
}

func tryPromQL(t *testing.T, expression string) error {
	t.Helper()
	text, err := json.Marshal(map[string]any{"groups": []any{map[string]any{ // JSON is YAML
		"name": "page", "rules": []any{map[string]any{"record": "page", "expr": expression}}}}})
	if err != nil {
		t.Fatal(err)
	}
	return checkText(t, "rules", string(text))
}

// The pages name no metric that is not in the tables of docs/metrics.md, which are compared with what is
// exported.
func TestDocsMetrics(t *testing.T) {
	known := []string{
		"shaker_exporter",                                             // this program
		"shaker_handshake_seconds_bucket",                             // of a histogram
		"probe_failed_due_to_regex", "probe_ssl_earliest_cert_expiry", // blackbox_exporter's
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `((?:probe|shaker)_[a-z_]+)").FindAllStringSubmatch(lab.Read(t, "docs/metrics.md"), -1) {
		known = append(known, row[1])
	}
	named := 0
	for _, page := range docsPages {
		for _, name := range regexp.MustCompile(`\b(?:probe|shaker)_[a-z_]+`).FindAllString(lab.Read(t, page), -1) {
			named++
			if !slices.Contains(known, name) {
				t.Errorf("%s: there is no %s", page, name)
			}
		}
	}
	if named < 50 {
		t.Errorf("only %d metrics are named", named)
	}
}

// The tests and benchmarks that the pages tell one to run are there.
func TestDocsGoTest(t *testing.T) {
	commands := regexp.MustCompile("go (-C test )?test[^\n`|)]*")
	selected := regexp.MustCompile(` -(run|bench|fuzz) '?([A-Z]\w*)`)
	named := 0
	for _, page := range allPages(t) {
		for _, command := range commands.FindAllString(lab.Read(t, page), -1) {
			for _, found := range selected.FindAllStringSubmatch(command, -1) {
				named++
				if !hasTest(t, found[1], found[2], strings.Fields(command)) {
					t.Errorf("%s: nothing is selected by %s", page, command)
				}
			}
		}
	}
	if named < 10 {
		t.Errorf("only %d were found", named)
	}
	if hasTest(t, "run", "DocsGoTestThatIsNotThere", []string{"."}) { // the control
		t.Error("everything is there")
	}
}

// hasTest tells whether a package among the arguments has a test, or whatever the flag
// selects, with that in its name.
func hasTest(t *testing.T, flag, name string, arguments []string) bool {
	t.Helper()
	kind := map[string]string{"run": "Test", "bench": "Benchmark", "fuzz": "Fuzz"}[flag]
	there := regexp.MustCompile(`(?m)^func ` + kind + `\w*` + strings.TrimPrefix(name, kind))
	module := "."
	if slices.Contains(arguments, "-C") {
		module = "test"
	}
	for _, argument := range arguments {
		if argument != "." && !strings.HasPrefix(argument, "./") {
			continue
		}
		files, err := filepath.Glob(filepath.Join(module, strings.Replace(argument, "...", "*", 1), "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(files, func(file string) bool { return there.MatchString(lab.Read(t, file)) }) {
			return true
		}
	}
	return false
}

// The transcripts of a migration are what is said.
func TestDocsTranscripts(t *testing.T) {
	exporter.Start(t)
	tried := 0
	for _, s := range snippets(t, "console", blackboxPage, faqPage) {
		tried += tryTranscript(t, s)
	}
	if tried < 2 {
		t.Errorf("only %d commands were tried", tried)
	}
}

// tryTranscript runs the commands of a transcript and compares what they print. A file that
// is shown by cat is written instead. Tests are left to TestDocsGoTest.
func tryTranscript(t *testing.T, s snippet) (tried int) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(exporter.Command(t).Path, filepath.Join(dir, "shaker_exporter")); err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split("\n"+s.text, "\n$ ")[1:] {
		command, want, _ := strings.Cut(part, "\n")
		want = strings.TrimSuffix(want, "\n")
		if file, ok := strings.CutPrefix(command, "cat "); ok {
			lab.Write(t, dir, file, want+"\n")
			continue
		}
		if strings.HasPrefix(command, "go test ") || strings.HasPrefix(command, "go -C test test ") {
			continue
		}
		tried++
		cmd := exec.Command("sh", "-c", command)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		out, _ := cmd.CombinedOutput()
		if got := strings.TrimSuffix(string(out), "\n"); exporter.Steady(got) != exporter.Steady(want) {
			t.Errorf("%s: %s\nprints\n%s\nthe page has\n%s", s.page, command, got, want)
		}
	}
	return tried
}

// What a page shows in place of tcp-shaker compiles, and prints what is said.
func TestDocsLibrary(t *testing.T) {
	lab.Need(t)
	program := snippetWith(t, libraryPage, "go", "shaker.New(")
	want := snippetWith(t, libraryPage, "text", "127.0.0.1")
	if got := runGo(t, program); got != want {
		t.Errorf("%s: it prints\n%s\nthe page has\n%s", libraryPage, got, want)
	}
	// The names that the prose and the tables have are there, too.
	names := 0
	for _, found := range regexp.MustCompile("`shaker\\.([A-Z]\\w*(?:\\.[A-Z]\\w*)?)").FindAllStringSubmatch(lab.Read(t, libraryPage), -1) {
		names++
		if out, err := exec.Command("go", "doc", "./shaker", found[1]).CombinedOutput(); err != nil {
			t.Errorf("%s: shaker.%s: %s", libraryPage, found[1], out)
		}
	}
	if names < 5 {
		t.Errorf("only %d names were found", names)
	}
}

// runGo runs a Go program as one of this module, and returns what it prints.
func runGo(t *testing.T, source string) string {
	t.Helper()
	directory, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(directory, "page", "main.go"): lab.Write(t, t.TempDir(), "main.go", source)}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(lab.Program(t, "go", "golang-go"), "run",
		"-overlay="+lab.Write(t, t.TempDir(), "overlay.json", string(overlay)), "./page").CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	return string(out)
}
