package examples

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

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// exporter returns the exporter, built as its users build it, as a program with the arguments.
func exporter(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	lab.Need(t)
	program := filepath.Join(t.TempDir(), "shaker_exporter")
	build := exec.Command(lab.Program(t, "go", "golang-go"), "build", "-o", program, "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return exec.Command(program, args...)
}

// startExporter starts the exporter on a port of localhost for the rest of the test.
func startExporter(t testing.TB, port int, args ...string) *lab.Process {
	t.Helper()
	address := fmt.Sprintf("--web.listen-address=127.0.0.1:%d", port)
	p := lab.Start(t, exporter(t, append([]string{address}, args...)...))
	p.Listening(port)
	return p
}

// get returns what is at a URL.
func get(t testing.TB, url string) string {
	t.Helper()
	defer http.DefaultClient.CloseIdleConnections()
	response, err := http.Get(url)
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

func read(t testing.TB, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// writeFile writes a file and returns its path.
func writeFile(t testing.TB, dir, name, content string) string {
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

var duration = regexp.MustCompile(`\b\d+[smhd]\b`)

// faster returns a configuration or rules in which every minute is a second.
func faster(text string) string {
	return duration.ReplaceAllStringFunc(text, func(text string) string {
		d, err := model.ParseDuration(text)
		if err != nil {
			return text
		}
		return (model.Duration(time.Duration(d) / 60)).String()
	})
}
