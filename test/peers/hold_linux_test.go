package peers

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
)

// MariaDB ends a silent connection after 10 s and counts an error, and it blocks a host after 100 errors. A prober that
// reconnects a second later has 327 connections in an hour, and is blocked within 20 minutes.
//
// Here, 0.1 s stands for these 11 s, so that an hour takes 33 s. Module asks sends a heartbeat that MariaDB does not
// understand: MariaDB ends the connection at once, but its greeting looks like an answer. Module silent waits until
// MariaDB ends the connection, after 2 s. Both modules ask for a delay of 0.1 s at most. Nevertheless, MariaDB has not
// blocked this host after the hour. The control: MariaDB blocks this host after 327 connections without delays.
func TestHoldIsNotBlockedByMariaDB(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	const (
		plain = int(time.Hour / (11 * time.Second))
		hour  = time.Duration(plain) * 100 * time.Millisecond
	)
	lab.NeedRoot(t)
	addServerAddress(t)
	m := startMariaDB(t, "--connect-timeout=2")
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", `
modules:
  asks:
    prober: hold
    hold: {heartbeat: {interval: 1s, timeout: 500ms, send: "PING\r\n"}, reconnect: {min: 100ms, max: 100ms}}
  silent:
    prober: hold
    hold: {reconnect: {min: 100ms, max: 100ms}}
`))
	const ends = "probe_hold_lifetime_seconds_count"
	var asks, silent map[string]float64
	scrape := func() {
		t.Helper()
		asks = seriesOf(t, "asks", addressOf(mariaDBPort))
		silent = seriesOf(t, "silent", addressOf(mariaDBPort))
	}
	began := time.Now()
	lab.Eventually(t, "an hour of the test's time is over", func() bool {
		scrape()
		return time.Since(began) > hour
	})
	if asks[ends] < 10 || silent[ends] < 5 || asks["probe_hold_heartbeat_seconds_count"] < 10 {
		t.Errorf("MariaDB has ended %v connections of the module asks after %v answers, and %v of the module silent, "+
			"want at least 10, 10 and 5", asks[ends], asks["probe_hold_heartbeat_seconds_count"], silent[ends])
	}
	least := asks[ends] + silent[ends]
	var counted int
	lab.Eventually(t, "MariaDB has counted the connections that it has ended", func() bool {
		counted = m.connectErrors()
		return float64(counted) >= least || counted >= 100 // then MariaDB blocks this host and counts no more
	})
	scrape()
	if most := asks[ends] + silent[ends]; float64(counted) > most+1 || counted >= 90 {
		t.Errorf("MariaDB has counted %d errors, and has ended %v to %v connections, want one error for each, "+
			"and less than 90", counted, least, most)
	}
	if text := m.greeting(); strings.Contains(text, mariaDBBlocked) {
		t.Errorf("after an hour the greeting of MariaDB is %q, want one that does not block this host", text)
	}

	for range plain {
		connect(t, mariaDBPort)
	}
	m.awaitBlocked()
}

// seriesOf scrapes a target and returns the values by name and labels.
func seriesOf(t *testing.T, module, target string) map[string]float64 {
	t.Helper()
	path := fmt.Sprintf("/probe?module=%s&target=%s", module, target)
	status, body := exporter.Get(t, path)
	if status != http.StatusOK {
		t.Fatalf("GET %s = %d %s, want 200", path, status, body)
	}
	series := make(map[string]float64)
	for line := range strings.Lines(body) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if number, err := strconv.ParseFloat(value, 64); err == nil {
			series[name] = number
		}
	}
	return series
}
