package config

import (
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

const (
	// firstRetransmission is when the kernel retransmits a lost SYN for the first time.
	firstRetransmission = time.Second

	// maxOverlap is how many handshakes with one target may wait for a reply at the same time. It is a limit of package
	// shaker.
	maxOverlap = 64

	// maxWatchedTimeout is the maximum timeout of a watched module.
	maxWatchedTimeout = time.Minute

	// longestTurn is how long all flows of a watched module may take for one handshake each without a warning.
	longestTurn = 5 * time.Minute

	// leastIntervals is the minimum number of intervals until a target expires.
	leastIntervals = 3
)

// readWatch reads the section watch. Unlike the section tcp, it must have a value: a key without one may be meant to
// start the handshakes in the background, or to leave them out.
func readWatch(v value, w *Watch) {
	entries, ok := v.entries(wantKeys(watchKeys) + ", or {} for their defaults")
	if !ok {
		return
	}
	*w = defaultWatch()
	given := readEntries(entries, w, watchKeys)
	if least := leastIntervals * w.Interval; w.Expire < least {
		v := given["expire"]
		v.refuse("is %s, want at least %s, %d times watch.interval", v.quote(), showDuration(least), leastIntervals)
	}
}

// checkWatch checks the keys of a watched module together. Its arguments are the keys that the module has, and those
// of its section tcp. Defaults are never a problem.
func (m *Module) checkWatch(module, tcp map[string]value) {
	timeout := module["timeout"]
	switch most := min(maxOverlap*m.Watch.Interval, maxWatchedTimeout); {
	case m.Timeout > most:
		timeout.refuse("is %s, want at most %s: a watched module waits at most %d intervals and at most %s",
			timeout.quote(), showDuration(most), maxOverlap, showDuration(maxWatchedTimeout))
	case m.Timeout > firstRetransmission:
		timeout.warn("is %s, but the kernel retransmits a lost SYN after %s: "+
			"use at most %s to count each lost SYN of a watched module as a timeout",
			timeout.quote(), showDuration(firstRetransmission), showDuration(firstRetransmission))
	}
	if m.TCP.Addresses == All {
		tcp["addresses"].refuse("is all, want first: a watched module probes one address of each name")
	}
	if m.TCP.Path == Always {
		tcp["path"].refuse("is always, want on_failure or never: a watched module traces the path only when " +
			"a target begins to fail")
	}
	if m.TCP.Close == FIN {
		tcp["close"].refuse("is fin, want reset: with a watched module, the application would see a connection " +
			"in each interval")
	}
	m.checkOverlap(tcp)
	if turn := time.Duration(m.TCP.Flows) * m.Watch.Interval; turn > longestTurn {
		v := tcp["flows"]
		v.warn("is %s, and the flows take turns of %s: a flow that fails is noticed only after so long. "+
			"Use fewer flows or a shorter watch.interval for turns of at most %s",
			v.quote(), showDuration(turn), showDuration(longestTurn))
	}
}

// checkOverlap warns if the module has too few source ports, or flows, for the handshakes with a silent target, which
// overlap. Its argument is the keys that the section tcp has.
func (m *Module) checkOverlap(tcp map[string]value) {
	const text = "is %s, but up to %d handshakes with a silent target overlap, each with a port of its own: " +
		"use at least %d %s or a shorter timeout, otherwise handshakes are skipped"
	need := int(m.Timeout/m.Watch.Interval) + 1 // a handshake may end while the next one begins
	ports := m.TCP.SourcePorts
	switch have := int(ports.Last) - int(ports.First) + 1; {
	case m.TCP.Flows > 0:
		if v := tcp["flows"]; int(m.TCP.Flows) < need {
			v.warn(text, v.quote(), need, need, "flows")
		}
	case ports != (shaker.PortRange{}) && have < need:
		v := tcp["source_ports"]
		v.warn(text, v.quote(), need, need, "ports")
	}
}
