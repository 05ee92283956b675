package pages

import (
	"errors"
	"iter"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/hold"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// heldTarget returns the status of a target whose connection has been held for an hour at noon.
func heldTarget(target string) *hold.Status {
	return &hold.Status{
		Target:         target,
		Module:         "tcp_hold",
		Result:         "open",
		Since:          noon.Add(-time.Hour),
		Established:    noon.Add(-time.Hour),
		Handshake:      4 * time.Millisecond,
		RTT:            3 * time.Millisecond,
		LastAnswer:     noon.Add(-3 * time.Second),
		LastData:       noon.Add(-40 * time.Second),
		KeepAlive:      shaker.KeepAlive{Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
		Address:        netip.MustParseAddrPort("192.0.2.1:6379"),
		HasName:        true,
		AddressCurrent: true,
		Registered:     noon.Add(-time.Hour),
		Connects:       []hold.ResultCount{{Result: "open", Total: 1}},
		Client:         "192.0.2.77",
		Scraped:        noon.Add(-10 * time.Second),
		Expires:        noon.Add(290 * time.Second),
	}
}

// failHeld ends the connection of a target with a result.
func failHeld(s *hold.Status, result, errno, reason string, ago time.Duration) *hold.Status {
	s.Result, s.Errno, s.Reason, s.Changed = result, errno, reason, true
	s.Since, s.Failure, s.FailureAt = noon.Add(-ago), result, noon.Add(-ago)
	s.Established, s.NextConnect = time.Time{}, noon.Add(30*time.Second)
	s.Closes = append(s.Closes, hold.ResultCount{Result: result, Errno: errno, Total: 1})
	s.Lifetime = 40 * time.Minute
	return s
}

// The median life is rounded to the unit that is shown.
func TestLife(t *testing.T) {
	for life, want := range map[time.Duration]string{
		0:                            "",
		900 * time.Millisecond:       "900ms",
		2950 * time.Millisecond:      "3\u00a0s",
		2400 * time.Millisecond:      "2\u00a0s",
		347 * time.Second:            "6\u00a0min",
		5*time.Hour + 45*time.Minute: "6\u00a0h",
	} {
		if got := newHeld(&hold.Status{Lifetime: life}, noon).Life(); got != want {
			t.Errorf("a median life of %v is shown as %q, want %q", life, got, want)
		}
	}
}

// withHeld adds held targets to Pages.
func withHeld(p *Pages, held ...*hold.Status) *Pages {
	p.options.Held = func() iter.Seq[*hold.Status] { return slices.Values(held) }
	return p
}

// wantText checks that the page contains texts.
func wantText(t *testing.T, page string, texts ...string) {
	t.Helper()
	for _, want := range texts {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not contain %q:\n%s", want, page)
		}
	}
}

// A held target is in the same table as the others, with what is known about its connection, those before it, the
// heartbeats, its address and the scrapes.
func TestHeld(t *testing.T) {
	beating := heldTarget("beating.example:6379")
	beating.HasHeartbeat, beating.Heartbeats = true, 360
	beating.HeartbeatP50, beating.HeartbeatP99 = time.Millisecond, 20*time.Millisecond
	beating.HeartbeatFailures = []hold.ResultCount{{Result: "mismatch", Total: 1}, {Result: "silent", Total: 4}}
	beating.KeepAlivesUnanswered, beating.AddressCurrent = 2, false
	ended := failHeld(heldTarget("ended.example:6379"),
		"reset", "ECONNRESET", "connection ended after 40m0.5s", time.Minute)
	ended.Connects = append(ended.Connects, hold.ResultCount{Result: "refused", Errno: "ECONNREFUSED", Total: 3})
	literal := heldTarget("192.0.2.1:22")
	literal.HasName, literal.KeepAlive, literal.LastData = false, shaker.KeepAlive{}, time.Time{}
	past := track("ended.example:6379", "orrr", time.Minute)
	past.Module = "tcp_hold"
	p := withHeld(newPages(past), beating, ended, literal)
	body := home(t, p)
	text := textOf(body)
	wantText(t, text,
		"1 failing reset 1 unstable open 1 succeeding open",
		"reset 60 s ended.example:6379 192.0.2.1 connection ended after 40m0.5s: an RST arrived (ECONNRESET) "+
			"not connected, next attempt in 30 s last answer 3 s ago last data 40 s ago "+
			"connects 3 refused (ECONNREFUSED), 1 open ends 1 reset (ECONNRESET) in 60 min, median life 40 min "+
			"DNS still has the address last failure 2026-03-01T11:59:00.000Z reset "+
			"scraped 10 s ago by 192.0.2.77, expires in 4 min – – – tcp_hold 3 s ago",
		"open 60 min beating.example:6379 192.0.2.1 connected for 60 min last answer 3 s ago last data 40 s ago "+
			"keepalives unanswered 2 of 3 heartbeat p50 1.00 ms, p99 20.0 ms "+
			"heartbeats failed 5 of 360: 4 silent, 1 mismatch connects 1 open no connection ended in 60 min "+
			"DNS no longer has the address scraped 10 s ago by 192.0.2.77, expires in 4 min 3.00 ms",
		"192.0.2.1:22 connected for 60 min last answer 3 s ago no data yet no keepalive connects 1 open "+
			"no connection ended in 60 min scraped 10 s ago",
	)
	wantText(t, body,
		`title="the connection ends after 30s of silence; keepalive 15s/5s/3: idle, interval, count"`,
		`title="established at 2026-03-01T11:00:00.000Z"`,
		`href="logs?target=ended.example%3a6379&amp;module=tcp_hold"`,
	)
	if wrong := `href="logs?target=beating.example`; strings.Contains(body, wrong) {
		t.Errorf("the page contains %s although the history has nothing of this target", wrong)
	}
	if got := get(p.Logs, "target=ended.example:6379&module=tcp_hold"); got.Code != http.StatusOK {
		t.Errorf("the link to the history = %d %s, want 200", got.Code, got.Body)
	}
}

// A held target is unstable for ten minutes after a failure, and while keepalives are unanswered. It is pending until
// it has a result. If this host is why it has no connection, the page says so. Filters find all of these.
func TestOrderOfHeld(t *testing.T) {
	unanswered := heldTarget("unanswered.example:1")
	unanswered.KeepAlivesUnanswered = 1
	back := func(target string, ago time.Duration) *hold.Status {
		s := heldTarget(target)
		s.Failure, s.FailureAt = "closed", noon.Add(-ago)
		return s
	}
	unborn := heldTarget("unborn.example:1")
	unborn.Result, unborn.Since, unborn.Established = "", time.Time{}, time.Time{}
	fault := heldTarget("fault.example:1")
	fault.Result, fault.Since, fault.Established = "", time.Time{}, time.Time{}
	fault.Fault = errors.New("socket: too many open files")
	p := withHeld(newPages(track("a.example:1", "o", 0)),
		fault, unborn, heldTarget("good.example:1"), unanswered,
		back("old.example:1", 10*time.Minute), back("back.example:1", 9*time.Minute),
		back("just.example:1", time.Second),
		failHeld(heldTarget("closed.example:1"), "closed", "", "connection ended after 40m0s", 3*time.Minute),
		failHeld(heldTarget("silent.example:1"), "silent", "", "no answer to a heartbeat", 2*time.Minute),
		failHeld(heldTarget("mismatch.example:1"), "mismatch", "", "unexpected answer to a heartbeat", time.Minute),
	)
	for query, want := range map[string][]string{
		"": {
			"mismatch.example:1", "silent.example:1", "closed.example:1",
			"just.example:1", "unanswered.example:1", "back.example:1",
			"a.example:1", "good.example:1", "old.example:1", "unborn.example:1", "fault.example:1",
		},
		"filter=status%3Dunstable":         {"just.example:1", "unanswered.example:1", "back.example:1"},
		"filter=status%3Dpending":          {"unborn.example:1"},
		"filter=result%3Dclosed":           {"closed.example:1"},
		"filter=result%3Dsilent":           {"silent.example:1"},
		"filter=result%3Dmismatch":         {"mismatch.example:1"},
		"filter=192.0.2.77+fin+arrived":    {"closed.example:1"},
		"filter=192.0.2.77+too+many+files": {"fault.example:1"},
	} {
		if got := targets(get(p.Home, query).Body.String()); !slices.Equal(got, want) {
			t.Errorf("the page with %q has the targets %q, want %q", query, got, want)
		}
	}
	wantText(t, textOf(home(t, p)),
		"3 failing 1 closed, 1 mismatch, 1 silent 3 unstable open 3 succeeding open "+
			"1 pending 1 not probed recently no result",
		"no result 60 min fault.example:1 192.0.2.1 no connection to the target because of this host: "+
			"socket: too many open files not connected",
		"silent.example:1 192.0.2.1 no answer to a heartbeat: "+
			"the target's kernel acknowledges, but its application does not answer not connected",
	)
}

// Names of held targets, and the errors of this host, are text.
func TestHostileHeld(t *testing.T) {
	hostile := failHeld(heldTarget(hostileTarget), "error", "", "<b>reason</b>", time.Minute)
	hostile.Module, hostile.Client = hostileModule, "<i>client</i>"
	fault := heldTarget("fault.example:1")
	fault.Fault = errors.New("<u>fault</u>")
	body := home(t, withHeld(newPages(), hostile, fault))
	for _, wrong := range []string{"<script>alert", "<img", "<b>reason", "<i>client", "<u>fault"} {
		if strings.Contains(body, wrong) {
			t.Errorf("the page contains %q unescaped", wrong)
		}
	}
	wantText(t, body, "&lt;b&gt;reason&lt;/b&gt;", "&lt;i&gt;client&lt;/i&gt;", "&lt;u&gt;fault&lt;/u&gt;")
}
