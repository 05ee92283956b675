package lab

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"strconv"
	"testing"
)

// A Prometheus is Debian's, on a port of all addresses.
type Prometheus struct {
	*Process
	url string
}

// StartPrometheus starts a Prometheus with a configuration file for the rest of the test.
// What it stores is gone with it.
func StartPrometheus(t testing.TB, port int, configFile string, args ...string) *Prometheus {
	t.Helper()
	Need(t)
	program := Program(t, "prometheus", "prometheus")
	args = append([]string{"--config.file=" + configFile, "--storage.tsdb.path=" + t.TempDir(),
		fmt.Sprintf("--web.listen-address=:%d", port)}, args...)
	p := &Prometheus{Start(t, exec.Command(program, args...)), fmt.Sprintf("http://localhost:%d", port)}
	p.Listening(port)
	return p
}

// A Sample is one of an instant vector.
type Sample struct {
	Labels map[string]string
	Value  float64
}

// noKeepAlive is a client that leaves nothing behind.
var noKeepAlive = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// Query returns the instant vector that an expression of PromQL is now. It is empty while
// Prometheus starts.
func (p *Prometheus) Query(expression string) []Sample {
	p.t.Helper()
	response, err := noKeepAlive.Get(p.url + "/api/v1/query?query=" + url.QueryEscape(expression))
	if err != nil {
		p.t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusServiceUnavailable {
		return nil
	}
	var answer struct {
		Status, Error string
		Data          struct {
			ResultType string
			Result     json.RawMessage
		}
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || answer.Status != "success" || answer.Data.ResultType != "vector" {
		p.t.Fatalf("%s: %s %s, %v", expression, answer.Data.ResultType, answer.Error, err)
	}
	var vector []struct {
		Metric map[string]string
		Value  [2]any // time, and the value as text
	}
	if err := json.Unmarshal(answer.Data.Result, &vector); err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	var samples []Sample
	for _, series := range vector {
		value, err := strconv.ParseFloat(series.Value[1].(string), 64)
		if err != nil {
			p.t.Fatal(err)
		}
		samples = append(samples, Sample{series.Metric, value})
	}
	return samples
}
