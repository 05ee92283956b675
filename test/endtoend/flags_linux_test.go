package endtoend

import (
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// --timeout-offset is subtracted from the scrape timeout. --probe.max-in-flight limits concurrent probes, and
// its value is a metric.
func TestProbeFlags(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	exporter.Start(t, "--timeout-offset=1.5", "--probe.max-in-flight=1")
	const (
		wantTimeout = "probe_timeout_seconds 2.5\n"
		wantLimit   = "\nshaker_probes_in_flight_limit 1\n"
	)
	_, body := exporter.Scrape(t, exporter.Port, "/probe?target=localhost:1", "4")
	if !strings.Contains(body, wantTimeout) {
		t.Errorf("with --timeout-offset=1.5 and a scrape timeout of 4 s, /probe = %s\nwant %q in it", body, wantTimeout)
	}
	if _, body := exporter.Get(t, "/metrics"); !strings.Contains(body, wantLimit) {
		t.Errorf("with --probe.max-in-flight=1, /metrics = %s\nwant %q in it", body, wantLimit)
	}
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	done := make(chan struct{})
	go func() {
		defer close(done)
		exporter.Get(t, "/probe?target=192.0.2.1:443")
	}()
	wire.Await(1)
	if status, body := exporter.Get(t, "/probe?target=localhost:1"); status != 503 {
		t.Errorf("with --probe.max-in-flight=1, a second probe = %d %s, want 503", status, body)
	}
	<-done
}

// --log.prober is the level at which failed probes are logged. With none they are not logged, whatever --log.level is.
func TestLogProber(t *testing.T) {
	for _, c := range []struct{ level, want string }{
		{level: "none", want: ""},
		{level: "debug", want: "level=DEBUG"},
		{level: "info", want: "level=INFO"},
		{level: "warn", want: "level=WARN"},
		{level: "error", want: "level=ERROR"},
	} {
		p := exporter.Start(t, "--log.level=debug", "--log.prober="+c.level)
		exporter.Get(t, "/probe?target=127.0.0.1:1")
		p.Stop()
		got := ""
		for line := range strings.Lines(p.Output()) {
			if strings.Contains(line, "Probe failed") {
				got += line
			}
		}
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) || strings.Count(got, "\n") > 1 {
			t.Errorf("with --log.prober=%s a failed probe is logged as %q, want one line with %q, or none",
				c.level, got, c.want)
		}
	}
}
