package lab

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/prometheus/common/model"
)

// Exporter returns the exporter, built as its users build it, as a program with the arguments.
// Only what git says of it is left out: git does not tell in a clone that is someone else's.
func Exporter(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	Need(t)
	program := filepath.Join(t.TempDir(), "shaker_exporter")
	build := exec.Command(Program(t, "go", "golang-go"), "build", "-buildvcs=false", "-o", program, "github.com/shaker-exporter/shaker_exporter")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return exec.Command(program, args...)
}

// StartExporter starts the exporter on a port of localhost for the rest of the test.
func StartExporter(t testing.TB, port int, args ...string) *Process {
	t.Helper()
	p := Start(t, Exporter(t, append([]string{fmt.Sprintf("--web.listen-address=127.0.0.1:%d", port)}, args...)...))
	p.Listening(port)
	return p
}

// Promtool runs promtool.
func Promtool(t testing.TB, args ...string) (output string, err error) {
	t.Helper()
	out, err := exec.Command(Program(t, "promtool", "prometheus"), args...).CombinedOutput()
	return string(out), err
}

// Get returns what is at a URL.
func Get(t testing.TB, url string) string {
	t.Helper()
	response, err := Client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v\n%s", url, response.Status, err, body)
	}
	return string(body)
}

// Read returns what is in a file.
func Read(t testing.TB, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// Write writes a file, and the directories on the way there, and returns its path.
func Write(t testing.TB, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Files returns the paths that a pattern finds, at least one.
func Files(t testing.TB, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || found == nil {
		t.Fatalf("%s: %v, %v", pattern, found, err)
	}
	return found
}

var duration = regexp.MustCompile(`\b\d+[smhd]\b`)

// Faster returns a configuration or rules in which every minute is a second, so that a test
// need not wait for minutes.
func Faster(text string) string {
	return duration.ReplaceAllStringFunc(text, func(text string) string {
		d, err := model.ParseDuration(text)
		if err != nil {
			return text
		}
		return (model.Duration(time.Duration(d) / 60)).String()
	})
}
