package endtoend

import (
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

func TestProbeFlags(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	exporter.Start(t, "--timeout-offset=1.5", "--probe.max-in-flight=1")
	if _, body := exporter.Scrape(t, 10115, "/probe?target=localhost:1", "4"); !strings.Contains(body, "probe_timeout_seconds 2.5\n") {
		t.Errorf("--timeout-offset: %s", body)
	}
	if _, body := exporter.Get(t, "/metrics"); !strings.Contains(body, "\nshaker_probes_in_flight_limit 1\n") {
		t.Errorf("--probe.max-in-flight is no metric: %s", body)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		exporter.Get(t, "/probe?target=192.0.2.1:443")
	}()
	wire.Await(1)
	if status, body := exporter.Get(t, "/probe?target=localhost:1"); status != 503 {
		t.Errorf("--probe.max-in-flight: %d %s", status, body)
	}
	<-done
}

func TestWrongCommandLines(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--timeout-offset=NaN"}, "--timeout-offset is NaN, want 0 to 3600 seconds"},
		{[]string{"--timeout-offset=-1"}, "--timeout-offset is -1, want 0 to 3600 seconds"},
		{[]string{"--probe.max-in-flight=-1"}, "--probe.max-in-flight is -1, want 0 or more"},
		{[]string{"--history.limit=x"}, `--history.limit is "x": `},
		{[]string{"--history.limit=-1"}, "--history.limit is -1, want 0 or more"},
		{[]string{"--log.prober=warn"}, `--log.prober is "warn": `},
		{[]string{"--web.external-url=shaker"}, `--web.external-url is "shaker", want a URL such as https://example.com/shaker/`},
		{[]string{"--web.route-prefix=a b"}, `--web.route-prefix is "/a b", want a path such as /shaker`},
		{[]string{"--web.config.file=/absent"}, "open /absent: no such file or directory"},
		{[]string{"localhost:443"}, `unexpected localhost:443 (did you mean "shaker_exporter probe localhost:443"?)`},
		{[]string{"--no-such-flag"}, "unknown long flag '--no-such-flag'"},
		{[]string{"--web.listen-address=nowhere"}, "missing port in address"},
	} {
		out, err := exporter.Command(t, c.args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%v: %v, %s", c.args, err, out)
		}
	}
}
