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

// A Prometheus is Debian's.
type Prometheus struct {
	*Process
	url string
}

// StartPrometheus starts a Prometheus with a configuration file, on a port of all addresses,
// for the rest of the test. What it stores is gone with it.
func StartPrometheus(t testing.TB, port int, configFile string, args ...string) *Prometheus {
	t.Helper()
	return ServePrometheus(t, PrometheusCommand(t, port, configFile, args...), fmt.Sprintf("localhost:%d", port))
}

// PrometheusCommand returns what starts such a Prometheus.
func PrometheusCommand(t testing.TB, port int, configFile string, args ...string) *exec.Cmd {
	t.Helper()
	lab.Need(t)
	return exec.Command(lab.Program(t, "prometheus", "prometheus"), append([]string{"--config.file=" + configFile,
		"--storage.tsdb.path=" + t.TempDir(), fmt.Sprintf("--web.listen-address=:%d", port)}, args...)...)
}

// ServePrometheus starts a Prometheus that listens at an address and waits until it is ready.
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

// A Sample is one of an instant vector.
type Sample struct {
	Labels map[string]string
	Value  float64
}

// Promtool runs promtool.
func Promtool(t testing.TB, args ...string) (output string, err error) {
	t.Helper()
	out, err := exec.Command(lab.Program(t, "promtool", "prometheus"), args...).CombinedOutput()
	return string(out), err
}

// API asks for something of the API, such as "rules", and reads the data of the answer.
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
		p.t.Fatalf("%s: %s, %v", path, answer.Error, err)
	}
}

// Query returns the instant vector that an expression of PromQL is now.
func (p *Prometheus) Query(expression string) (samples []Sample) {
	p.t.Helper()
	var vector struct {
		Result []struct {
			Metric map[string]string
			Value  [2]any // time, and the value as text
		}
	}
	p.API("query?query="+url.QueryEscape(expression), &vector)
	for _, series := range vector.Result {
		value, err := strconv.ParseFloat(series.Value[1].(string), 64)
		if err != nil {
			p.t.Fatal(err)
		}
		samples = append(samples, Sample{series.Metric, value})
	}
	return samples
}

// StartBlackbox starts Debian's blackbox_exporter on its default port, with a configuration file, for
// the rest of the test.
func StartBlackbox(t testing.TB, configFile string) {
	t.Helper()
	program := lab.Program(t, "prometheus-blackbox-exporter", "prometheus-blackbox-exporter")
	Start(t, exec.Command(program, "--config.file="+configFile)).Listening(9115)
}
