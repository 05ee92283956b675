package endtoend

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

const (
	goodConfig  = "modules:\n  first: {prober: tcp, timeout: 2s}\n"
	otherConfig = "modules:\n  second: {prober: tcp, timeout: 3s}\n"
	badConfig   = "modules:\n  third:\n    prober: tcp\n    tcp: {dscp: 64}\n"
)

// reload requests a reload and returns status and body.
func reload(t *testing.T, method string) (int, string) {
	t.Helper()
	return exporter.Do(t, exporter.NewRequest(t, method, exporter.Port, "/-/reload"))
}

// activeModules returns the names of the modules of the active configuration.
func activeModules(t *testing.T) string {
	t.Helper()
	_, body := exporter.Get(t, "/config")
	var names []string
	for _, match := range regexp.MustCompile(`(?m)^  (\w+):$`).FindAllStringSubmatch(body, -1) {
		names = append(names, match[1])
	}
	return strings.Join(names, " ")
}

// POST, PUT and SIGHUP reload the configuration file. An invalid file changes nothing: the current
// configuration stays active, and the response, the log and the metrics report the error.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	file := lab.Write(t, dir, "shaker.yml", goodConfig)
	p := exporter.Start(t, "--config.file="+file)
	// check compares the active modules and the metric of success with what is wanted, and returns the
	// timestamp of the last successful reload.
	check := func(when, modules, successful string) (timestamp string) {
		t.Helper()
		if got := activeModules(t); got != modules {
			t.Errorf("%s the active modules are %q, want %q", when, got, modules)
		}
		metrics := exporter.Metrics(t)
		const name = "shaker_exporter_config_last_reload_successful"
		if got := metrics[name]; got != successful {
			t.Errorf("%s %s = %q, want %s", when, name, got, successful)
		}
		timestamp, ok := metrics["shaker_exporter_config_last_reload_success_timestamp_seconds"]
		if !ok {
			t.Fatalf("%s /metrics has no timestamp of the last successful reload", when)
		}
		return timestamp
	}
	started := check("at the start", "first", "1")
	if t.Failed() {
		t.FailNow()
	}

	lab.Write(t, dir, "shaker.yml", badConfig)
	const reason = "shaker.yml:4: module third: tcp.dscp is 64, want 0 to 63"
	if status, body := reload(t, "POST"); status != 500 || !strings.Contains(body, reason) {
		t.Errorf("POST /-/reload of an invalid file = %d %s\nwant 500 and %q in it", status, body, reason)
	}
	if got := check("after an invalid file", "first", "0"); got != started {
		t.Errorf("after an invalid file the timestamp of the last successful reload is %s, want still %s", got, started)
	}
	if log := p.Output(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, reason) {
		t.Errorf("after an invalid file the log is %s\nwant level=ERROR and %q in it", log, reason)
	}

	lab.Write(t, dir, "shaker.yml", otherConfig)
	if status, body := reload(t, "PUT"); status != 200 {
		t.Errorf("PUT /-/reload of a valid file = %d %s, want 200", status, body)
	}
	if got := check("after a valid file", "second", "1"); got == started {
		t.Errorf("after a valid file the timestamp of the last successful reload is still %s, want a later one", got)
	}

	lab.Write(t, dir, "shaker.yml", goodConfig)
	p.Signal(syscall.SIGHUP)
	lab.Eventually(t, "SIGHUP reloads the file", func() bool { return activeModules(t) == "first" })
	os.Remove(file)
	p.Signal(syscall.SIGHUP)
	lab.Eventually(t, "the metrics report that the file is missing", func() bool {
		return exporter.Metrics(t)["shaker_exporter_config_last_reload_successful"] == "0"
	})
	check("without the file", "first", "0")
	if status, body := reload(t, "GET"); status != 405 {
		t.Errorf("GET /-/reload = %d %s, want 405", status, body)
	}
}

// A file of blackbox_exporter loads as it is. The log lists what is left to that exporter, at the start and after a
// reload, and so does the answer to a probe with such a module.
func TestForeignModules(t *testing.T) {
	dir := t.TempDir()
	const ours = "modules:\n  first: {prober: tcp}\n"
	file := lab.Write(t, dir, "blackbox.yml", ours+"  http_2xx: {prober: http}\n  \"a\\nb\": {prober: icmp}\n")
	p := exporter.Start(t, "--config.file="+file)
	checkLog := func(when, modules string) {
		t.Helper()
		want := `msg="Modules left to blackbox_exporter" modules=` + modules + "\n"
		if log := p.Output(); strings.Count(log, want) != 1 {
			t.Errorf("%s the log is %s\nwant %q in it, once", when, log, want)
		}
	}
	checkLog("at the start", `"\"a\\nb\", http_2xx"`)
	status, body := exporter.Get(t, "/probe?module=http_2xx&target=localhost:1")
	const want = `module "http_2xx" is left to blackbox_exporter, because its prober is http: ` +
		"this exporter performs only TCP handshakes\n"
	if status != 400 || body != want {
		t.Errorf("GET /probe with a module for blackbox_exporter = %d %s\nwant 400 %s", status, body, want)
	}
	lab.Write(t, dir, "blackbox.yml", ours+"  grpc: {prober: grpc}\n")
	if status, body := reload(t, "POST"); status != 200 {
		t.Errorf("POST /-/reload of a file of blackbox_exporter = %d %s, want 200", status, body)
	}
	checkLog("after the reload", "grpc")
	lab.Write(t, dir, "blackbox.yml", ours) // the control case
	reload(t, "POST")
	if log := p.Output(); strings.Count(log, "Modules left to blackbox_exporter") != 2 {
		t.Errorf("after the reload of a file without such modules, the log is %s\nwant no further list of them", log)
	}
}

// No probe fails because of a reload, and the exporter probes with each of the configurations.
func TestReloadUnderLoad(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.0/24", simnet.SYNACK().Between(0, 20*time.Millisecond))
	dir := t.TempDir()
	file := lab.Write(t, dir, "shaker.yml", "")
	config := func(timeout string) {
		// Replace the file as a whole: the exporter may be reading it.
		lab.Write(t, dir, "new.yml", "modules: {tcp_connect: {prober: tcp, timeout: "+timeout+"}}\n")
		if err := os.Rename(dir+"/new.yml", file); err != nil {
			t.Errorf("replace the configuration file: %v", err)
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
				const url = "http://localhost:10115/probe?target=192.0.2.1:80"
				response, err := client.Get(url)
				if err != nil {
					t.Errorf("during reloads: %v, want a response", err)
					return
				}
				body, err := io.ReadAll(response.Body)
				response.Body.Close()
				const want = "probe_success 1\n"
				if err != nil || response.StatusCode != 200 || !strings.Contains(string(body), want) {
					t.Errorf("during reloads, GET %s = %s, %v, %s\nwant 200 and %q in it",
						url, response.Status, err, body, want)
					return
				}
				seen.Store(timeout.FindString(string(body)), true)
				probes.Add(1)
			}
		})
	}
	lab.Eventually(t, "100 reloads and 3000 probes have ended", func() bool {
		config([]string{"1s", "2s", "3s"}[reloads.Load()%3])
		if status, body := reload(t, "POST"); status != 200 {
			t.Errorf("POST /-/reload of a valid file = %d %s, want 200", status, body)
		}
		return reloads.Add(1) >= 100 && probes.Load() >= 3000 || t.Failed()
	})
	close(stop)
	callers.Wait()
	for _, want := range []string{"1", "2", "3"} {
		if _, ok := seen.Load("probe_timeout_seconds " + want); !ok {
			t.Errorf("no probe had a timeout of %s s, want some with each configuration", want)
		}
	}
}

// SIGHUP while the exporter reads its configuration file at the start does not end it: it reloads the file as soon as
// it runs.
func TestHangupAtTheStart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "shaker.yml")
	if err := unix.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	writer, err := os.OpenFile(file, os.O_RDWR, 0) // the exporter reads until it is closed
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	p := process.Start(t, exporter.Command(t, "--config.file="+file))
	lab.Eventually(t, "the exporter reads the file", func() bool {
		open, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.PID()))
		return slices.ContainsFunc(open, func(fd string) bool { name, _ := os.Readlink(fd); return name == file })
	})
	p.Signal(syscall.SIGHUP)
	if _, err := writer.WriteString(goodConfig); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	p.Listening(exporter.Port)
	if got := activeModules(t); got != "first" {
		t.Errorf("after SIGHUP during the start, the active modules are %q, want first", got)
	}
	lab.Eventually(t, "the exporter has reloaded the file, which is empty now", func() bool {
		return exporter.Metrics(t)["shaker_exporter_config_last_reload_successful"] == "0"
	})
}
