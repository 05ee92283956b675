package process

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"strconv"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// A Prometheus is a running Prometheus server.
type Prometheus struct {
	*Process
	url string
}

// A Major is a major version of Prometheus. The examples work with all of them.
type Major int

const (
	Prometheus2 Major = 2 // of Debian
	Prometheus3 Major = 3 // built by `make programs`
)

// EachPrometheus runs a test with each major version of Prometheus. With the race detector, which affects only the
// exporter, one version is enough.
func EachPrometheus(t *testing.T, test func(t *testing.T, major Major)) {
	majors := []Major{Prometheus2, Prometheus3}
	if lab.Race {
		majors = []Major{Prometheus3}
	}
	for _, major := range majors {
		t.Run(fmt.Sprintf("Prometheus %d", major), func(t *testing.T) { test(t, major) })
	}
}

// program returns the path of a program that belongs to Prometheus.
func (m Major) program(t testing.TB, name string) string {
	t.Helper()
	if m == Prometheus3 {
		return lab.GoProgram(t, name)
	}
	return lab.Program(t, name, "prometheus")
}

// Command returns the command that starts a Prometheus with a configuration file. It listens on the port on
// all addresses, and stores its data in a temporary directory.
func (m Major) Command(t testing.TB, port int, configFile string, args ...string) *exec.Cmd {
	t.Helper()
	lab.Need(t)
	args = append([]string{
		"--config.file=" + configFile,
		"--storage.tsdb.path=" + t.TempDir(),
		fmt.Sprintf("--web.listen-address=:%d", port),
	}, args...)
	return exec.Command(m.program(t, "prometheus"), args...)
}

// Start starts such a Prometheus and waits until it is ready. It runs until the test ends.
func (m Major) Start(t testing.TB, port int, configFile string, args ...string) *Prometheus {
	t.Helper()
	return ServePrometheus(t, m.Command(t, port, configFile, args...), fmt.Sprintf("localhost:%d", port))
}

// Promtool runs promtool and returns what it prints.
func (m Major) Promtool(t testing.TB, args ...string) (output string, err error) {
	t.Helper()
	out, err := exec.Command(m.program(t, "promtool"), args...).CombinedOutput()
	return string(out), err
}

// StartPrometheus starts a Prometheus 2.
func StartPrometheus(t testing.TB, port int, configFile string, args ...string) *Prometheus {
	t.Helper()
	return Prometheus2.Start(t, port, configFile, args...)
}

// Promtool runs the promtool of Prometheus 2.
func Promtool(t testing.TB, args ...string) (output string, err error) {
	t.Helper()
	return Prometheus2.Promtool(t, args...)
}

// ServePrometheus starts a Prometheus by a command and waits until it is ready. The address, host:port, is
// one on which it listens.
func ServePrometheus(t testing.TB, cmd *exec.Cmd, address string) *Prometheus {
	t.Helper()
	p := &Prometheus{Start(t, cmd), "http://" + address}
	lab.Eventually(t, "Prometheus is ready", func() bool {
		response, err := lab.Client.Get(p.url + "/-/ready")
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	return p
}

// A Sample is one sample of an instant vector.
type Sample struct {
	Labels map[string]string
	Value  float64
}

// API requests a path of Prometheus' HTTP API, such as "rules", and decodes the data of the response.
func (p *Prometheus) API(path string, data any) {
	p.t.Helper()
	response, err := lab.Client.Get(p.url + "/api/v1/" + path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer response.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || answer.Status != "success" {
		p.t.Fatalf("GET /api/v1/%s = status %q, error %q, %v, want success", path, answer.Status, answer.Error, err)
	}
}

// Query evaluates a PromQL expression at the current time and returns the resulting instant vector.
func (p *Prometheus) Query(expression string) (samples []Sample) {
	p.t.Helper()
	var vector struct {
		Result []struct {
			Metric map[string]string
			Value  [2]any // the time as a number, the value as a string
		}
	}
	p.API("query?query="+url.QueryEscape(expression), &vector)
	for _, series := range vector.Result {
		value, err := strconv.ParseFloat(series.Value[1].(string), 64)
		if err != nil {
			p.t.Fatalf("the value of %v: %v", series.Metric, err)
		}
		samples = append(samples, Sample{series.Metric, value})
	}
	return samples
}

// StartBlackbox starts Debian's blackbox_exporter with a configuration file. It listens on its default port
// until the test ends.
func StartBlackbox(t testing.TB, configFile string) {
	t.Helper()
	program := lab.Program(t, "prometheus-blackbox-exporter", "prometheus-blackbox-exporter")
	Start(t, exec.Command(program, "--config.file="+configFile)).Listening(9115)
}
