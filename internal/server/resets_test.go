package server

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// RSTs that do not arrive are logged once, and once when they arrive again. A few that are lost are not, nor are few
// handshakes.
func TestResetWatch(t *testing.T) {
	const bad, good = "The RSTs of this host do not arrive", "The RSTs of this host arrive again"
	var log strings.Builder
	w := resetWatch{logger: slog.New(slog.NewTextHandler(&log, nil))}
	for i, step := range []struct {
		name   string
		resets shaker.Resets
		logged string
	}{
		{name: "few handshakes", resets: shaker.Resets{Checked: 9, Missing: 9}},
		{name: "still few", resets: shaker.Resets{Checked: 12, Missing: 10}},
		{name: "enough handshakes", resets: shaker.Resets{Checked: 12, Missing: 10}, logged: bad},
		{name: "many just now", resets: shaker.Resets{Checked: 112, Missing: 10}},
		{name: "their RSTs are missing", resets: shaker.Resets{Checked: 112, Missing: 110}},
		{name: "many more", resets: shaker.Resets{Checked: 212, Missing: 110}},
		{name: "a quarter is missing", resets: shaker.Resets{Checked: 212, Missing: 135}, logged: good},
		{name: "many more again", resets: shaker.Resets{Checked: 312, Missing: 135}},
		{name: "more than a quarter", resets: shaker.Resets{Checked: 312, Missing: 161}, logged: bad},
		{name: "nothing happens", resets: shaker.Resets{Checked: 312, Missing: 161}},
	} {
		log.Reset()
		w.look(step.resets)
		if !strings.Contains(log.String(), step.logged) || (step.logged == "") != (log.Len() == 0) {
			t.Errorf("step %d, %s: %+v logs %q, want %q", i, step.name, step.resets, log.String(), step.logged)
		}
		if step.logged != "" && w.bad.Load() != (step.logged == bad) {
			t.Errorf("step %d, %s: bad is %t after logging %q", i, step.name, w.bad.Load(), step.logged)
		}
	}
}
