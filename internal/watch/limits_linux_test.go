package watch

import (
	"errors"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Handshakes of silent targets take the descriptors of probes, three handshakes those of one. Without sockets they take
// only their memory, unless a module needs sockets nevertheless.
func TestSilentTargets(t *testing.T) {
	lab.Need(t)
	ports := config.TCP{SourcePorts: shaker.PortRange{First: 40000, Last: 40999}}
	for _, c := range []struct {
		name  string
		raw   *shaker.Raw
		tcp   config.TCP
		most  int // handshakes
		error string
	}{
		{name: "sockets", most: 48,
			error: "target not watched: watched targets that are silent could have 49 handshakes in flight " +
				"(limit: 48, 1.5 times --probe.max-in-flight)"},
		{name: "raw", raw: &shaker.Raw{}, most: 768,
			error: "target not watched: watched targets that are silent could have 769 handshakes in flight " +
				"(limit: 768, 24 times --probe.max-in-flight)"},
		{name: "raw, with sockets for source_ports", raw: &shaker.Raw{}, tcp: ports, most: 48,
			error: "target not watched: watched targets that are silent could have 49 handshakes in flight " +
				"(limit: 48, 1.5 times --probe.max-in-flight)"},
		{name: "raw, with flows", raw: &shaker.Raw{}, tcp: config.TCP{Flows: 4, Close: config.Reset}, most: 768,
			error: "target not watched: watched targets that are silent could have 769 handshakes in flight " +
				"(limit: 768, 24 times --probe.max-in-flight)"},
		{name: "raw, with sockets for flows that do not fit into the ports of the engine", raw: &shaker.Raw{},
			tcp: config.TCP{Flows: 4, FlowsBefore: 128, Close: config.Reset}, most: 48,
			error: "target not watched: watched targets that are silent could have 49 handshakes in flight " +
				"(limit: 48, 1.5 times --probe.max-in-flight)"},
	} {
		engine, err := shaker.New(&shaker.Config{Raw: c.raw})
		if err != nil {
			t.Fatal(err)
		}
		prober := probe.New(probe.Options{Shaker: engine, Config: config.Default(), MaxInFlight: 32})
		l := limits{prober: prober}
		m := &config.Module{Timeout: time.Second, Watch: config.Watch{Interval: time.Second}, TCP: c.tcp}
		for i := range c.most {
			if err := l.Permit(m); err != nil {
				t.Fatalf("%s: Permit for target %d: %v, want no error for %d targets", c.name, i+1, err, c.most)
			}
			l.Count(m, 1)
		}
		if got := prober.Reserved(); got != 16 {
			t.Errorf("%s: %d targets reserve %d probes, want 16, half of the limit", c.name, c.most, got)
		}
		if err := l.Permit(m); !errors.Is(err, ErrLimit) || err.Error() != c.error {
			t.Errorf("%s: Permit for target %d: %v, want %s", c.name, c.most+1, err, c.error)
		}
		l.Count(m, -c.most)
		if got := prober.Reserved(); got != 0 {
			t.Errorf("%s: without targets, %d probes are reserved, want 0", c.name, got)
		}
		engine.Close()
	}
}
