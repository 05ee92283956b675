package config

import (
	"fmt"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Idle describes how the idle prober measures the idle timeout of a path.
type Idle struct {
	// Steps are how long the connections of a round are idle: 1 to 16 steps in ascending order, each of whole
	// seconds, 1 s to 24 h.
	Steps []time.Duration

	Probe IdleProbe

	// Control is the interval of the keepalives of the control connection, in whole seconds, 1 s to the first of
	// Steps. 0: there is no control connection.
	Control time.Duration

	Expire time.Duration // a target that is not scraped for this long is forgotten, 1 min to 24 h
}

// An IdleProbe is how a connection that was idle is checked, with keepalives.
type IdleProbe struct {
	Interval time.Duration // between two keepalives, in whole seconds, 1 s to 32767 s
	Count    int           // of keepalives without a reply until the connection is lost, 1 to 127
}

// defaultIdle returns the values of the keys that a section idle leaves out.
func defaultIdle() Idle {
	idle := Idle{
		Probe:  IdleProbe{Interval: 2 * time.Second, Count: 3},
		Expire: 30 * time.Minute,
	}
	for _, seconds := range []time.Duration{50, 100, 220, 330, 500, 1000, 1700, 3400} {
		idle.Steps = append(idle.Steps, seconds*time.Second)
	}
	idle.Control = defaultControl(idle.Steps)
	return idle
}

// defaultControl returns the default of the key control: 15 s, or half of the first step if that is shorter.
func defaultControl(steps []time.Duration) time.Duration {
	half := (steps[0] / 2).Truncate(time.Second)
	return min(15*time.Second, max(half, time.Second))
}

// readIdle reads the section idle. The prober shows that idle timeouts are measured: without a value, the section has
// its defaults.
func readIdle(v value, i *Idle) {
	if isNull(v.Node) { // all its keys are commented out
		return
	}
	const absent = -1
	steps := i.Steps
	i.Steps, i.Control = nil, absent
	given := readMapping(v, i, idleKeys)
	if i.Steps == nil {
		if _, refused := given["steps"]; refused {
			return
		}
		i.Steps = steps
	}
	control, hasControl := given["control"]
	switch {
	case !hasControl:
		i.Control = defaultControl(i.Steps)
	case i.Control > i.Steps[0]:
		control.refuse("is %s, want at most %s, the first step: the control connection must not be idle for as long "+
			"as another one", control.quote(), showDuration(i.Steps[0]))
	}
}

// Limits of steps.
const (
	mostSteps    = 16
	shortestIdle = time.Second
	longestIdle  = 24 * time.Hour
)

func readSteps(v value, into *[]time.Duration) {
	want := fmt.Sprintf("a list of 1 to %d durations, such as [50s, 350s]", mostSteps)
	items, ok := v.items(want)
	if !ok {
		return
	}
	if n := len(items); n < 1 || n > mostSteps {
		v.refuse("has %d steps, want %s", n, want)
		return
	}
	var steps []time.Duration
	var last value
	for _, item := range items {
		var step time.Duration
		if item.seconds(&step, shortestIdle, longestIdle); step == 0 { // refused
			continue
		}
		if len(steps) > 0 && step <= steps[len(steps)-1] {
			item.path = v.path
			item.refuse("has %s after %s, want the steps in ascending order", item.quote(), last.quote())
		}
		steps, last = append(steps, step), item
	}
	*into = steps
}

func readIdleProbe(v value, p *IdleProbe) {
	if !isNull(v.Node) { // all its keys are commented out
		readMapping(v, p, idleProbeKeys)
	}
}

// readControl reads control. Unlike other durations, it may be 0.
func readControl(v value, control *time.Duration) {
	want := "0 for none, or " + wantSeconds(time.Second, maxKeepAlive)
	v.durationThat(want, control, func(d time.Duration) bool {
		return d == 0 || inSeconds(d, time.Second, maxKeepAlive)
	})
}

// checkIdle checks the keys of a module with prober idle together. The argument has the keys of its section tcp.
func (m *Module) checkIdle(tcp map[string]value) {
	ports := m.TCP.SourcePorts
	if ports == (shaker.PortRange{}) {
		return
	}
	need := len(m.Idle.Steps)
	if m.Idle.Control > 0 {
		need++
	}
	if have := int(ports.Last) - int(ports.First) + 1; have < need {
		v := tcp["source_ports"]
		v.refuse("is %s, want at least %d ports: this is how many connections a round has, one for each step and the "+
			"control connection", v.quote(), need)
	}
}
