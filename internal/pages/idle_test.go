package pages

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/idle"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// idleTarget returns the status of a target whose idle timeout is in a bracket at noon. Its present round began 400 s
// before. A middlebox limits the idle time.
func idleTarget(target string, survived, lost time.Duration) *idle.Status {
	steps := []time.Duration{100 * time.Second, 500 * time.Second, 1000 * time.Second}
	s := &idle.Status{
		Target: target,
		Module: "path_idle",
		Last:   history.Record{Result: "open", Success: true, RTT: 3 * time.Millisecond},
		Since:  noon.Add(-time.Hour),
		Snapshot: idle.Snapshot{
			Registered: noon.Add(-2 * time.Hour),
			Rounds:     7,
			Round:      noon.Add(-400 * time.Second),
			Survived:   survived,
			Lost:       lost,
			Consistent: true,
			Control:    &idle.Control{Outcome: shaker.Open, Age: 1002 * time.Second},
		},
		Began:   noon.Add(-400 * time.Second),
		Steps:   steps,
		Client:  "192.0.2.77",
		Scraped: noon.Add(-10 * time.Second),
		Expires: noon.Add(1790 * time.Second),
	}
	for _, step := range steps {
		f := idle.Finding{Step: step, Idle: step, Kind: idle.Survived, Outcome: shaker.Open}
		if lost > 0 && step >= lost {
			f.Kind, f.Outcome = idle.Lost, shaker.Timeout
		}
		s.Findings = append(s.Findings, f)
	}
	return s
}

// withIdle adds targets whose idle timeout is measured to Pages.
func withIdle(p *Pages, measured ...*idle.Status) *Pages {
	p.options.Idle = func() iter.Seq[*idle.Status] { return slices.Values(measured) }
	return p
}

// A target whose idle timeout is measured is in the same table as the others, with the bracket, who limits it, the
// rounds and the scrapes.
func TestIdle(t *testing.T) {
	past := track("nat.example:443", "oo", 400*time.Second)
	past.Module = "path_idle"
	nat := idleTarget("nat.example:443", 340*time.Second, 360500*time.Millisecond)
	nat.Skipped = [5]uint64{2, 0, 1, 0, 0}
	p := withIdle(newPages(past), nat)
	body := home(t, p)
	wantText(t, textOf(body),
		"1 succeeding open",
		"open 60 min nat.example:443 survived 340 s, lost after 360 s not told: no FIN or RST arrived unasked "+
			"limited by a middlebox: the control connection was alive after 16 min "+
			"7 rounds, the last one ended 6 min ago "+
			"present round: 1 of 3 steps over, the next one (500 s) in 100 s, the last one (1000 s) in 10 min "+
			"skipped 2 late, 1 interrupted scraped 10 s ago by 192.0.2.77, expires in 29 min "+
			"well-known timeouts in the bracket: 350 s AWS Network Load Balancer and NAT gateway "+
			"240 s Azure Load Balancer: shorter 350 s AWS Network Load Balancer and NAT gateway: possible "+
			"600 s Google Cloud load balancers: longer",
		"3.00 ms idle times from 1 s to 1000000 s, logarithmic: 1 of 3 connections survived; "+
			"the ticks below are well-known timeouts 33 %",
	)
	wantText(t, body,
		`title="1 of 3">33 %</td>`,
		`<li class="possible">350`+"\u00a0"+`s AWS`,
		`href="logs?target=nat.example%3a443&amp;module=path_idle"`,
		`<path class="bracket" d="M25.3 15H25.8"/>`,
		`<path class="survived" d="M20.0 18v-6M0 18H25.3"/>`,
		`<path class="failed" d="M27.0 18v-18M30.0 18v-18"/>`,
		`<path class="known" d="M23.8 20v4M25.4 20v4`,
	)
}

// The page says who limits the idle time, and whether the upper end of the bracket is exact.
func TestLimits(t *testing.T) {
	const s = time.Second
	closed := &idle.Control{Outcome: shaker.Closed, Age: 60*s + 50*time.Millisecond}
	for name, c := range map[string]struct {
		survived, lost, told time.Duration
		control              *idle.Control
		want                 []string
	}{
		"told exactly": {
			survived: 50 * s, lost: 60*s + 60*time.Millisecond, told: 60*s + 60*time.Millisecond, control: closed,
			want: []string{
				"survived 50 s, lost after 60.1 s told exactly, by a FIN or RST " +
					"limited by an application or a proxy: " +
					"the control connection ended, too, after 60.0 s (closed) 7 rounds",
				"no well-known timeout in the bracket",
			},
		},
		"told exactly, near a well-known timeout": {
			survived: 220 * s, lost: 240*s - 100*time.Millisecond, told: 240*s - 100*time.Millisecond,
			want: []string{
				"unclear who limits it: there is no control connection",
				"well-known timeouts in the bracket: 240 s Azure Load Balancer 240 s Azure",
			},
		},
		"told exactly, and not near": {
			survived: 220 * s, lost: 245 * s, told: 245 * s, want: []string{"no well-known timeout in the bracket"},
		},
		"told, but not at the end of the bracket": {
			survived: 220 * s, lost: 245 * s, told: 500 * s,
			want: []string{
				"lost after 245 s a FIN or RST arrived unasked after 500 s",
				"well-known timeouts in the bracket: 240 s Azure",
			},
		},
		"the path was interrupted": {
			survived: 100 * s, lost: 500 * s, control: &idle.Control{Outcome: shaker.Timeout, Age: 450 * s},
			want: []string{"unclear who limits it: the control connection ended, too, after 450 s (timeout)"},
		},
		"all survived": {
			survived: 1000 * s, control: &idle.Control{Outcome: shaker.Open, Age: 1001 * s},
			want: []string{
				"survived 1000 s, none lost 7 rounds",
				"well-known timeouts that are not ruled out: 1200 s Google Cloud NAT, 3600 s Cisco FTD",
				"900 s IPVS: shorter 1200 s Google Cloud NAT: not ruled out",
			},
		},
		"all survived except the control connection": {
			survived: 1000 * s, control: closed,
			want: []string{"none lost the control connection ended after 60.0 s (closed) 7 rounds"},
		},
		"longer than any": {survived: 432001 * s, want: []string{"no well-known timeout is longer"}},
		"none survived": {
			lost: 5 * s, control: &idle.Control{Outcome: shaker.Open, Age: 1001 * s},
			want: []string{"no connection survived, lost after 5 s not told", "limited by a middlebox"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			status := idleTarget("a.example:1", c.survived, c.lost)
			status.Told, status.Control = c.told, c.control
			wantText(t, textOf(home(t, withIdle(newPages(), status))), c.want...)
		})
	}
}

// The page says which steps of the present round are over, and how long the others take.
func TestProgress(t *testing.T) {
	for _, c := range []struct {
		elapsed time.Duration
		want    string
	}{
		{
			elapsed: 0,
			want:    "present round: 0 of 3 steps over, the next one (100 s) in 100 s, the last one (1000 s) in 16 min",
		},
		{
			elapsed: 100 * time.Second,
			want:    "present round: 1 of 3 steps over, the next one (500 s) in 6 min, the last one (1000 s) in 15 min",
		},
		{elapsed: 990 * time.Second, want: "present round: 2 of 3 steps over, the next one (1000 s) in 10 s"},
		{elapsed: 1001 * time.Second, want: "present round: 3 of 3 steps over"},
	} {
		s := idleTarget("a.example:1", 0, 0)
		s.Began = noon.Add(-c.elapsed)
		if got := strings.ReplaceAll(newIdled(s, noon).Progress(), "\u00a0", " "); got != c.want {
			t.Errorf("after %v, the progress is %q, want %q", c.elapsed, got, c.want)
		}
	}
}

// Before the first round is complete, a target is pending. If its connects fail, it fails. If this host is why there is
// no recent round, the page says so. Filters find all of these.
func TestOrderOfIdle(t *testing.T) {
	unborn := func(target string) *idle.Status {
		s := idleTarget(target, 0, 0)
		s.Last, s.Since, s.Rounds, s.Round = history.Record{}, time.Time{}, 0, time.Time{}
		s.Findings, s.Control = nil, nil
		return s
	}
	refused := unborn("refused.example:1")
	refused.Last = history.Record{Result: "refused", Errno: "ECONNREFUSED"}
	refused.Since = noon.Add(-time.Minute)
	fault := idleTarget("fault.example:1", 100*time.Second, 0)
	fault.Fault = errors.New("socket: too many open files")
	stale := unborn("stale.example:1")
	stale.Fault = errors.New("socket: too many open files")
	stale.Stale = fmt.Errorf("no recent measurement: %w", stale.Fault)
	twisted := idleTarget("twisted.example:1", 100*time.Second, 500*time.Second)
	twisted.Consistent = false
	p := withIdle(newPages(track("a.example:1", "o", 0)), stale, unborn("unborn.example:1"), twisted, fault, refused)
	for query, want := range map[string][]string{
		"": {
			"refused.example:1", "a.example:1", "fault.example:1", "twisted.example:1", "unborn.example:1",
			"stale.example:1",
		},
		"filter=status%3Dpending":        {"unborn.example:1"},
		"filter=path_idle+nothing":       {"refused.example:1"},
		"filter=192.0.2.77+open":         {"fault.example:1", "twisted.example:1", "stale.example:1"},
		"filter=no+recent+measurement":   {"stale.example:1"},
		"filter=middlebox":               {"twisted.example:1"},
		"filter=limit%3Dmiddlebox":       {"twisted.example:1"},
		"filter=none":                    nil,
		"filter=limit%3Dnone":            {"fault.example:1"},
		"filter=limit%3Dapplication":     nil,
		"filter=status%3Dsucceeding+352": nil,
	} {
		if got := targets(get(p.Home, query).Body.String()); !slices.Equal(got, want) {
			t.Errorf("the page with %q has the targets %q, want %q", query, got, want)
		}
	}
	wantText(t, textOf(home(t, p)),
		"1 failing refused 3 succeeding open 1 pending 1 not probed recently no result",
		"refused 60 s refused.example:1 nothing listens on this port (ECONNREFUSED) no round is complete yet scraped",
		"no result 2 h unborn.example:1 no round is complete yet present round: 1 of 3 steps over",
		"this host could not perform the last round: socket: too many open files scraped",
		"contradictory: a connection survived for longer",
		"stale.example:1 no recent measurement: socket: too many open files no round is complete yet scraped",
	)
}

// Names of targets, and the errors of this host, are text.
func TestHostileIdle(t *testing.T) {
	hostile := idleTarget(hostileTarget, 100*time.Second, 0)
	hostile.Module, hostile.Client, hostile.Fault = hostileModule, "<i>client</i>", errors.New("<u>fault</u>")
	body := home(t, withIdle(newPages(), hostile))
	for _, wrong := range []string{"<script>alert", "<img", "<i>client", "<u>fault"} {
		if strings.Contains(body, wrong) {
			t.Errorf("the page contains %q unescaped", wrong)
		}
	}
	wantText(t, body, "&lt;i&gt;client&lt;/i&gt;", "&lt;u&gt;fault&lt;/u&gt;")
}
