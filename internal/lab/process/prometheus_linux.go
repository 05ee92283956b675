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

// StartPrometheus starts Debian's Prometheus with a configuration file and waits until it is ready. It
// listens on the port on all addresses until the test ends, and stores its data in a temporary directory.
func StartPrometheus(t testing.TB, port int, configFile string, args ...string) *Prometheus {
	t.Helper()
	return ServePrometheus(t, PrometheusCommand(t, port, configFile, args...), fmt.Sprintf("localhost:%d", port))
}

// PrometheusCommand returns the command that starts such a Prometheus.
func PrometheusCommand(t testing.TB, port int, configFile string, args ...string) *exec.Cmd {
	t.Helper()
	lab.Need(t)
	args = append([]string{
		"--config.file=" + configFile,
		"--storage.tsdb.path=" + t.TempDir(),
		fmt.Sprintf("--web.listen-address=:%d", port),
	}, args...)
	return exec.Command(lab.Program(t, "prometheus", "prometheus"), args...)
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

// Promtool runs promtool and returns what it prints.
func Promtool(t testing.TB, args ...string) (output string, err error) {
	t.Helper()
	out, err := exec.Command(lab.Program(t, "promtool", "prometheus"), args...).CombinedOutput()
	return string(out), err
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
