package endtoend

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

const (
	goodConfig  = "modules:\n  first: {prober: tcp, timeout: 2s}\n"
	otherConfig = "modules:\n  second: {prober: tcp, timeout: 3s}\n"
	badConfig   = "modules:\n  third:\n    prober: tcp\n    tcp: {dscp: 64}\n"
)

// reload asks for a reload and returns status and body.
func reload(t *testing.T, method string) (int, string) {
	t.Helper()
	return exporter.Do(t, exporter.NewRequest(t, method, 10115, "/-/reload"))
}

// inForce returns the modules' names by /config.
func inForce(t *testing.T) string {
	t.Helper()
	_, body := exporter.Get(t, "/config")
	var names []string
	for _, match := range regexp.MustCompile(`(?m)^  (\w+):$`).FindAllStringSubmatch(body, -1) {
		names = append(names, match[1])
	}
	return strings.Join(names, " ")
}

// ownMetric returns a value of /metrics, as text.
func ownMetric(t *testing.T, name string) string {
	t.Helper()
	_, body := exporter.Get(t, "/metrics")
	match := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (.*)$`).FindStringSubmatch(body)
	if match == nil {
		t.Fatalf("no %s", name)
	}
	return match[1]
}

// A configuration is put in force by POST, PUT and SIGHUP. One that is refused changes
// nothing, and can be seen everywhere.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	file := lab.Write(t, dir, "shaker.yml", goodConfig)
	p := exporter.Start(t, "--config.file="+file)
	const successful, when = "shaker_exporter_config_last_reload_successful", "shaker_exporter_config_last_reload_success_timestamp_seconds"
	if got := inForce(t); got != "first" || ownMetric(t, successful) != "1" {
		t.Fatalf("at the start: %s", got)
	}

	lab.Write(t, dir, "shaker.yml", badConfig)
	before := ownMetric(t, when)
	const why = "shaker.yml:4: module third: tcp.dscp is 64, want 0 to 63"
	if status, body := reload(t, "POST"); status != 500 || !strings.Contains(body, why) {
		t.Errorf("a wrong configuration: %d %s", status, body)
	}
	if got := inForce(t); got != "first" || ownMetric(t, successful) != "0" || ownMetric(t, when) != before {
		t.Errorf("after a wrong configuration %s is in force", got)
	}
	if !strings.Contains(p.Output(), "level=ERROR") || !strings.Contains(p.Output(), why) {
		t.Errorf("logged %s", p.Output())
	}

	lab.Write(t, dir, "shaker.yml", otherConfig)
	if status, body := reload(t, "PUT"); status != 200 {
		t.Errorf("a right configuration: %d %s", status, body)
	}
	if got := inForce(t); got != "second" || ownMetric(t, successful) != "1" || ownMetric(t, when) == before {
		t.Errorf("after a right configuration %s is in force", got)
	}

	lab.Write(t, dir, "shaker.yml", goodConfig)
	p.Signal(syscall.SIGHUP)
	lab.Eventually(t, "SIGHUP puts the configuration in force", func() bool { return inForce(t) == "first" })
	os.Remove(file)
	p.Signal(syscall.SIGHUP)
	lab.Eventually(t, "that the file is gone is told", func() bool { return ownMetric(t, successful) == "0" })
	if got := inForce(t); got != "first" {
		t.Errorf("without the file %s is in force", got)
	}
	if status, _ := reload(t, "GET"); status != 405 {
		t.Errorf("GET: %d", status)
	}
}

// Reloads under load cost no probe, and each of the configurations comes into force.
func TestReloadUnderLoad(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.0/24", simnet.SYNACK().Between(0, 20*time.Millisecond))
	dir := t.TempDir()
	file := lab.Write(t, dir, "shaker.yml", "")
	config := func(timeout string) {
		// Not in place: the exporter may be reading it.
		lab.Write(t, dir, "new.yml", "modules: {tcp_connect: {prober: tcp, timeout: "+timeout+"}}\n")
		if err := os.Rename(dir+"/new.yml", file); err != nil {
			t.Error(err)
		}
	}
	config("1s")
	exporter.Start(t, "--config.file="+file)
	var probes, reloads atomic.Int64
	var seen sync.Map
	stop := make(chan struct{})
	var callers sync.WaitGroup
	timeout := regexp.MustCompile(`(?m)^probe_timeout_seconds (.*)$`)
	for range 32 {
		callers.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				response, err := client.Get("http://localhost:10115/probe?target=192.0.2.1:80")
				if err != nil {
					t.Error(err)
					return
				}
				body, err := io.ReadAll(response.Body)
				response.Body.Close()
				if err != nil || response.StatusCode != 200 || !strings.Contains(string(body), "probe_success 1\n") {
					t.Errorf("%s %v %s", response.Status, err, body)
					return
				}
				seen.Store(timeout.FindString(string(body)), true)
				probes.Add(1)
			}
		})
	}
	lab.Eventually(t, "there were many probes and reloads", func() bool {
		config([]string{"1s", "2s", "3s"}[reloads.Load()%3])
		if status, body := reload(t, "POST"); status != 200 {
			t.Errorf("reload: %d %s", status, body)
		}
		return reloads.Add(1) >= 100 && probes.Load() >= 3000 || t.Failed()
	})
	close(stop)
	callers.Wait()
	for _, want := range []string{"1", "2", "3"} {
		if _, ok := seen.Load("probe_timeout_seconds " + want); !ok {
			t.Errorf("no probe with a timeout of %s s", want)
		}
	}
}

// What --config.check says.
func TestConfigCheck(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--config.check", "--config.file=" + lab.Write(t, dir, "good.yml", goodConfig)}, 0, dir + "/good.yml is valid. Its modules: first\n"},
		{[]string{"--config.check", "--config.file=" + lab.Write(t, dir, "bad.yml", badConfig)}, 1,
			"shaker_exporter: " + dir + "/bad.yml:4: module third: tcp.dscp is 64, want 0 to 63\n"},
		{[]string{"--config.file=" + dir + "/bad.yml"}, 1, "shaker_exporter: " + dir + "/bad.yml:4: module third: tcp.dscp is 64, want 0 to 63\n"},
		{[]string{"--config.check", "--config.file=" + dir + "/absent.yml"}, 1, "shaker_exporter: open " + dir + "/absent.yml: no such file or directory\n"},
		{[]string{"--config.check"}, 2, "shaker_exporter: --config.check requires --config.file\n"},
	} {
		cmd := exporter.Command(t, c.args...)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != c.code || string(out) != c.want {
			t.Errorf("%v: %d %s", c.args, code, out)
		}
	}
}
