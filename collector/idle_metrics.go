package collector

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/idle"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// The metrics of /probe about idle timeouts, in the order in which they are written.
var (
	probeIdleSurvived = &metric{name: "probe_idle_survived",
		help: "1 if the connection that was idle for so many seconds could be used afterwards, 0 if it was lost. " +
			"Absent for a step that could not be measured.",
		labels: []string{"idle"}}
	probeIdleResultInfo = &metric{name: "probe_idle_result_info",
		help: "How the connection that was idle for so many seconds ended (open if it survived), " +
			"and the kernel's errno.",
		labels: []string{"idle", "result", "errno"}}
	probeIdleSurvivedSeconds = &metric{name: "probe_idle_survived_seconds",
		help: "Longest time that a connection was idle and survived, 0 if none did."}
	probeIdleLostSeconds = &metric{name: "probe_idle_lost_seconds",
		help: "Shortest time after which an idle connection was lost, absent if all survived."}
	probeIdleConsistent = &metric{name: "probe_idle_consistent",
		help: "1 if no connection survived for longer than another one that was lost, 0 otherwise."}
	probeIdleTold = &metric{name: "probe_idle_told_seconds",
		help: "Age of the first connection that a FIN or RST ended while it was idle, absent if there was none."}
	probeIdleControlAlive = &metric{name: "probe_idle_control_alive",
		help: "1 if the control connection, which is never idle, was still established at the end of the round, " +
			"0 otherwise."}
	probeIdleControlAge = &metric{name: "probe_idle_control_age_seconds",
		help: "Age of the control connection at its end, or at the end of the round if it was alive."}
	probeIdleControlResultInfo = &metric{name: "probe_idle_control_result_info",
		help:   "How the control connection ended (open if it was alive), and the kernel's errno.",
		labels: []string{"result", "errno"}}
	probeIdleRounds = &metric{name: "probe_idle_rounds_total",
		help: "Total number of complete rounds of measurements."}
	probeIdleRound = &metric{name: "probe_idle_round_timestamp_seconds",
		help: "When the last complete round ended."}
	probeIdleSkipped = &metric{name: "probe_idle_skipped_total",
		help: "Total number of connections that showed nothing about the idle timeout, by reason: checked late " +
			"because of the exporter's host (late), not idle because of the peer (busy), path interrupted meanwhile " +
			"(interrupted), not established (not_connected), or a local error (fault).",
		labels: []string{"reason"}}
	probeIdleRegistered = &metric{name: "probe_idle_registered_timestamp_seconds",
		help: "When the target was registered. The counters count from then on."}
)

// addIdle adds the metrics about the idle timeout of the path to a target.
func (s *sheet) addIdle(i *idle.Snapshot) {
	s.created.Seconds, s.created.Nanos = i.Registered.Unix(), int32(i.Registered.Nanosecond())
	if i.Rounds > 0 {
		s.addBracket(i)
	}
	s.counter(probeIdleRounds, i.Rounds)
	if i.Rounds > 0 {
		s.gauge(probeIdleRound, seconds(i.Round))
	}
	for reason, n := range i.Skipped {
		s.counter(probeIdleSkipped, n, idle.Reason(reason).String())
	}
	s.gauge(probeIdleRegistered, seconds(i.Registered))
}

// addBracket adds what the rounds have measured.
func (s *sheet) addBracket(i *idle.Snapshot) {
	measured := slices.DeleteFunc(slices.Clone(i.Findings), func(f idle.Finding) bool { return f.Kind == idle.Skipped })
	for _, f := range measured {
		s.gauge(probeIdleSurvived, boolean(f.Kind == idle.Survived), stepLabel(&f))
	}
	for _, f := range measured {
		s.gauge(probeIdleResultInfo, 1, stepLabel(&f), f.Outcome.String(), shaker.ErrnoName(f.Errno))
	}
	s.gauge(probeIdleSurvivedSeconds, i.Survived.Seconds())
	if i.Lost > 0 {
		s.gauge(probeIdleLostSeconds, i.Lost.Seconds())
	}
	s.gauge(probeIdleConsistent, boolean(i.Consistent))
	if i.Told > 0 {
		s.gauge(probeIdleTold, i.Told.Seconds())
	}
	if c := i.Control; c != nil {
		s.gauge(probeIdleControlAlive, boolean(c.Alive()))
		s.gauge(probeIdleControlAge, c.Age.Seconds())
		s.gauge(probeIdleControlResultInfo, 1, c.Outcome.String(), shaker.ErrnoName(c.Errno))
	}
}

// stepLabel returns the step of a finding, in seconds.
func stepLabel(f *idle.Finding) string { return strconv.FormatFloat(f.Step.Seconds(), 'g', -1, 64) }

// CountFault counts a local error in the background. It is for [idle.Options].
func (h *Handler) CountFault(err error) { h.metrics.countFault(err) }

// writeIdleDebug writes what was measured, and the module. The metrics follow it.
func writeIdleDebug(w io.Writer, answer answer) {
	r, s := answer.Report, answer.idle
	at := logTo(w)
	if s != nil {
		fmt.Fprintf(w, "# The idle timeout is measured since %s. Complete rounds: %d\n\n",
			s.Registered.UTC().Format(time.RFC3339), s.Rounds)
	}
	fmt.Fprintf(w, "# Log\n\n")
	at(0, "connections to %s with module %s, timeout %v", r.Text, config.Name(r.ModuleName), r.Timeout)
	writeResolution(at, r)
	if h := &r.Handshake; h.Outcome == shaker.Open {
		at(r.At, "connected to %v after %v", h.Peer, h.Handshake)
	} else if h.Outcome != 0 {
		at(r.At, "%v", h.Err())
	}
	if r.Err != nil {
		at(r.At, "%s: %v", r.Name, r.Err)
	}
	if r.Result == "" {
		at(r.Duration, "no result yet: no round is complete")
	} else {
		at(r.Duration, "the result is %s", strings.TrimSpace(r.Result+" "+r.Errno))
	}
	if s != nil && s.Rounds > 0 {
		fmt.Fprintf(w, "\n# The last round with all steps, and the bracket since\n\n")
		for _, f := range s.Findings {
			at(f.Step, "%s", describeFinding(&f))
		}
		if c := s.Control; c != nil {
			at(c.Age, "control connection: %s", strings.TrimSpace(c.Outcome.String()+" "+shaker.ErrnoName(c.Errno)))
		}
		if s.Lost > 0 {
			at(s.Lost, "idle timeout: more than %v, at most %v", s.Survived, s.Lost)
		} else {
			at(s.Survived, "idle timeout: more than %v", s.Survived)
		}
	}
	writeModule(w, r)
}

// describeFinding says what a connection has shown.
func describeFinding(f *idle.Finding) string {
	switch end := strings.TrimSpace(f.Outcome.String() + " " + shaker.ErrnoName(f.Errno)); f.Kind {
	case idle.Survived:
		return fmt.Sprintf("survived: idle for %v", f.Idle)
	case idle.Lost:
		return fmt.Sprintf("lost: idle for %v, %s", f.Idle, end)
	case idle.Told:
		return fmt.Sprintf("lost: ended by the other side after %v, %s", f.Idle, end)
	default:
		return "not measured: " + f.Skipped.String()
	}
}
