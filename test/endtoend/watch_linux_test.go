package endtoend

import (
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

const watchConfig = `
modules:
  watched:
    prober: tcp
    timeout: 300ms
    watch: {interval: 100ms}
`

// watched scrapes a watched target, and returns the sum of the values of a metric.
func watched(t *testing.T, target, metric string) (sum int) {
	t.Helper()
	var body string
	lab.Eventually(t, "there is a recent handshake with "+target, func() bool {
		var status int
		status, body = exporter.Get(t, "/probe?module=watched&target="+target)
		return status == http.StatusOK
	})
	for _, found := range regexp.MustCompile(`(?m)^`+metric+`(?:\{.*\})? (\S+)$`).FindAllStringSubmatch(body, -1) {
		value, err := strconv.ParseFloat(found[1], 64)
		if err != nil {
			t.Fatalf("%s of %s: %v", metric, target, err)
		}
		sum += int(value)
	}
	return sum
}

// The exporter is stopped for 5 s. The handshakes that were due meanwhile are counted as skipped: none is lost, and
// none is made up for.
func TestWatchStopped(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	const targets = 20
	const interval = 100 * time.Millisecond
	network := simnet.NewNetwork(t)
	network.At("192.0.2.0/24", simnet.SYNACK().After(5*time.Millisecond))
	p := exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", watchConfig))
	name := func(i int) string { return fmt.Sprintf("192.0.2.%d:80", i+1) }
	began := time.Now()
	for i := range targets {
		watched(t, name(i), "probe_success")
	}
	lab.Eventually(t, "handshakes are running", func() bool {
		return watched(t, name(0), "probe_watch_handshakes_total") > 5
	})
	p.Signal(syscall.SIGSTOP)
	lab.Eventually(t, "the exporter is stopped", p.Stopped)
	stopped := time.Now()
	time.Sleep(5 * time.Second)
	p.Signal(syscall.SIGCONT)
	paused := time.Since(stopped)
	for i := range targets {
		handshakes := watched(t, name(i), "probe_watch_handshakes_total")
		skipped := watched(t, name(i), "probe_watch_skipped_total")
		due := int(time.Since(began) / interval)
		if least := int(paused/interval) - 3; skipped < least {
			t.Errorf("%s: %d skipped handshakes after a pause of %v, want %d or more", name(i), skipped, paused, least)
		}
		if sum := handshakes + skipped; sum > due+2 || sum < due-30 { // the registration takes time on a busy machine
			t.Errorf("%s: %d handshakes and %d skipped, want %d together, or a few less",
				name(i), handshakes, skipped, due)
		}
	}
	if status, body := exporter.Get(t, "/metrics"); status != 200 || !regexp.MustCompile(
		`(?m)^shaker_watched_targets\{module="watched"\} 20$`).MatchString(body) {
		t.Errorf("/metrics has no shaker_watched_targets of 20:\n%s", body)
	}
	p.Signal(syscall.SIGTERM)
	if status := p.Wait(); status != 0 {
		t.Errorf("the exporter ended with status %d, want 0", status)
	}
	sent := 0
	for segment := range network.Sent() {
		if segment.SYN {
			sent++
		}
	}
	if most := targets * (int((time.Since(began)-paused)/interval) + 3); sent > most {
		t.Errorf("%d SYNs were sent, want %d at most: those that were due during the pause are not made up for",
			sent, most)
	}
}

// A HEAD request registers a target, too. A reload keeps the counters, and a module that has gone is an unknown module.
func TestWatchReload(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.0/24", simnet.SYNACK())
	directory := t.TempDir()
	p := exporter.Start(t, "--config.file="+lab.Write(t, directory, "shaker.yml", watchConfig))
	const target = "192.0.2.1:80"
	request := exporter.NewRequest(t, http.MethodHead, 10115, "/probe?module=watched&target="+target)
	if status, body := exporter.Do(t, request); status != 200 || body != "" {
		t.Errorf("HEAD of a watched target = %d %q, want 200 without a body", status, body)
	}
	lab.Eventually(t, "the target is watched", func() bool {
		return watched(t, target, "probe_watch_handshakes_total") > 3
	})
	before := watched(t, target, "probe_watch_handshakes_total")
	reload := func(text string) {
		t.Helper()
		lab.Write(t, directory, "shaker.yml", text)
		request := exporter.NewRequest(t, http.MethodPost, 10115, "/-/reload")
		if status, body := exporter.Do(t, request); status != 200 {
			t.Fatalf("reload = %d %s, want 200", status, body)
		}
	}
	reload(watchConfig + "  other: {prober: tcp}\n")
	if after := watched(t, target, "probe_watch_handshakes_total"); after < before {
		t.Errorf("%d handshakes after a reload, want %d or more", after, before)
	}
	reload("modules: {other: {prober: tcp}}")
	if status, body := exporter.Get(t, "/probe?module=watched&target="+target); status != 400 {
		t.Errorf("a scrape with a module that has gone = %d %s, want 400", status, body)
	}
	if n := exporter.Metric(t, `shaker_watched_targets{module="watched"}`); n != 0 {
		t.Errorf("%d watched targets of a module that has gone, want 0", n)
	}
	p.Signal(syscall.SIGTERM)
	p.Wait()
}
