package documents

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
)

const (
	readme            = "README.md"
	blackboxPage      = "docs/from-blackbox_exporter.md"
	configurationPage = "docs/configuration.md"
	discoveryPage     = "docs/discovery.md"
	elsewherePage     = "docs/elsewhere.md"
	faqPage           = "docs/faq.md"
	halfOpenPage      = "docs/half-open.md"
	holdPage          = "docs/hold.md"
	idlePage          = "docs/idle.md"
	libraryPage       = "docs/from-tcp-shaker.md"
	metricsPage       = "docs/metrics.md"
	operationPage     = "docs/operation.md"
	pathPage          = "docs/path.md"
	synackPage        = "docs/what-a-syn-ack-proves.md"
	watchPage         = "docs/watch.md"
	flowsPage         = "docs/flows.md"
)

// triedPages are the pages whose YAML, PromQL and metric names are all tested.
var triedPages = []string{
	blackboxPage, libraryPage, synackPage, halfOpenPage, holdPage, idlePage, flowsPage, faqPage, discoveryPage,
	elsewherePage,
}

// allPages returns the Markdown files of the repository's root and of docs.
func allPages(t *testing.T) []string {
	t.Helper()
	return append(lab.Files(t, "*.md"), lab.Files(t, "docs/*.md")...)
}

// A snippet is the text of a fenced code block of a page.
type snippet struct{ page, text string }

var fence = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")

// snippets returns the code blocks of the pages in a language, in their order.
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

// snippetWith returns the first code block of a page in a language that contains a text.
func snippetWith(t *testing.T, page, language, with string) string {
	t.Helper()
	for _, s := range snippets(t, language, page) {
		if strings.Contains(s.text, with) {
			return s.text
		}
	}
	t.Fatalf("%s has no %s block that contains %q", page, language, with)
	return ""
}

// rows returns the rows of the first table of a page whose first column has the heading. It maps the first
// cell of each row to the other cells, without backquotes.
func rows(t *testing.T, page, heading string) map[string][]string {
	t.Helper()
	_, table, found := strings.Cut(lab.Read(t, page), "\n| "+heading+" |")
	if !found {
		t.Fatalf("%s has no table with the first column %q", page, heading)
	}
	table, _, _ = strings.Cut(table, "\n\n")
	rows := make(map[string][]string)
	for _, line := range strings.Split(table, "\n")[2:] { // without the other headings, and the line below them
		cells := strings.Split(strings.ReplaceAll(strings.Trim(line, "|"), "`", ""), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows[cells[0]] = cells[1:]
	}
	return rows
}

// compareRows compares the rows of a table with the measured rows. If all tests run, every row of the table
// must have been measured.
func compareRows(t *testing.T, page, heading string, measured map[string][]string) {
	t.Helper()
	table := rows(t, page, heading)
	for name, got := range measured {
		if documented, ok := table[name]; !ok {
			t.Errorf("%s has no row | %s | %s |, which was measured", page, name, strings.Join(got, " | "))
		} else if !slices.Equal(got, documented) {
			t.Errorf("%s: row %q: measured %q, the page has %q", page, name, got, documented)
		}
	}
	if os.Getenv("SHAKER_TEST_ALL") != "1" || strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
		return // some subtests may have been skipped, or were not selected
	}
	for name := range table {
		if _, ok := measured[name]; !ok {
			t.Errorf("%s: row %q was not measured", page, name)
		}
	}
}

// A command is a command of a transcript, with the output that the page shows.
type command struct{ line, output string }

// commands returns the commands of a transcript.
func commands(transcript string) (found []command) {
	for _, part := range strings.Split("\n"+transcript, "\n$ ")[1:] {
		line, output, _ := strings.Cut(part, "\n")
		found = append(found, command{line, strings.TrimSuffix(output, "\n")})
	}
	return found
}

// tried reports whether tryTranscript runs the command and compares its output. It does not run the go tool:
// TestDocsGoTest checks the tests that these commands select.
func (c command) tried() bool {
	return !strings.HasPrefix(c.line, "cat ") && !strings.HasPrefix(c.line, "go ")
}

// tryTranscript runs the commands of a transcript and compares their output with the page. It writes the
// file that a cat command shows. steady replaces what differs from run to run.
func tryTranscript(t *testing.T, s snippet, steady func(string) string) {
	t.Helper()
	shell := lab.Program(t, "sh", "dash")
	dir := t.TempDir()
	if err := os.Symlink(exporter.Command(t).Path, filepath.Join(dir, "shaker_exporter")); err != nil {
		t.Fatal(err)
	}
	for _, c := range commands(s.text) {
		if file, ok := strings.CutPrefix(c.line, "cat "); ok {
			lab.Write(t, dir, file, c.output+"\n")
			continue
		}
		if !c.tried() {
			continue
		}
		if strings.HasPrefix(c.line, "curl ") {
			lab.Program(t, "curl", "curl")
		}
		if strings.Contains(c.line, "| grep ") {
			lab.Program(t, "grep", "grep")
		}
		cmd := exec.Command(shell, "-c", c.line)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		out, _ := cmd.CombinedOutput()
		if got := strings.TrimSuffix(string(out), "\n"); steady(got) != steady(c.output) {
			t.Errorf("%s: $ %s\nprints\n%s\nthe page has\n%s", s.page, c.line, got, c.output)
		}
	}
}
