package pages

import (
	"fmt"
	"html/template"
	"math"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/idle"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// newIdleEntry returns the entry of a target whose idle timeout is measured.
func newIdleEntry(s *idle.Status) entry {
	last := s.Last
	last.Time = latest(s.Registered, s.Began, s.Round)
	t := &history.Track{Target: s.Target, Module: s.Module, Since: s.Since, Records: []history.Record{last}}
	if t.Since.IsZero() {
		t.Since = s.Registered
	}
	return entry{Track: t, idle: s, status: statusOfIdle(s), name: parseName(s.Target), live: live{
		client:  s.Client,
		scraped: s.Scraped,
		expires: s.Expires,
		stale:   s.Stale,
	}}
}

// statusOfIdle returns the status of a target whose idle timeout is measured.
func statusOfIdle(s *idle.Status) status {
	switch {
	case s.Stale != nil:
		return unprobed
	case s.Last.Result == "":
		return pending
	case !s.Last.Success:
		return failing
	default:
		return succeeding
	}
}

// idled is what the row of a target whose idle timeout is measured has in addition.
type idled struct {
	*idle.Status
	now time.Time
}

func newIdled(s *idle.Status, now time.Time) *idled { return &idled{Status: s, now: now} }

// seconds returns an idle time in seconds, which is how timeouts are configured and documented.
func seconds(d time.Duration) string {
	if d < 100*time.Second && d%time.Second != 0 {
		return fmt.Sprintf("%.1f\u00a0s", d.Seconds())
	}
	return fmt.Sprintf("%.0f\u00a0s", d.Seconds())
}

// SurvivedText returns the lower end of the bracket, "" if no connection survived.
func (i *idled) SurvivedText() string { return i.end(i.Survived) }

// LostText returns the upper end of the bracket, "" if no connection was lost.
func (i *idled) LostText() string { return i.end(i.Lost) }

func (i *idled) end(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return seconds(d)
}

// limitNames are the words for who limits the idle time.
var limitNames = [...]string{
	idle.Unknown: "unknown", idle.None: "none", idle.Middlebox: "middlebox", idle.Application: "application",
	idle.Unclear: "unclear",
}

// limitLabel returns the word that selects exactly the targets whose idle time has such a limit.
func limitLabel(s *idle.Status) string { return "limit=" + limitNames[s.Limit()] }

// isTold reports whether the upper end of the bracket is exact: that is when a FIN or RST arrived.
func (i *idled) isTold() bool { return i.Told > 0 && (i.Told-i.Lost).Abs() <= time.Second }

// ToldText says whether the upper end of the bracket is exact, "" if there is none.
func (i *idled) ToldText() string {
	switch {
	case i.Lost == 0:
		return ""
	case i.isTold():
		return "told exactly, by a FIN or RST"
	case i.Told > 0:
		return "a FIN or RST arrived unasked after " + seconds(i.Told)
	default:
		return "not told: no FIN or RST arrived unasked"
	}
}

// LimitText says who limits the idle time, as far as the control connection shows it, "" if there is nothing to say.
func (i *idled) LimitText() string {
	control := "there is no control connection"
	if c := i.Control; c != nil {
		control = "the control connection was alive after " + unbroken(span(c.Age))
		if !c.Alive() {
			control = fmt.Sprintf("the control connection ended, too, after %s (%s)", seconds(c.Age), outcome(c))
		}
	}
	switch i.Limit() {
	case idle.Middlebox:
		return "limited by a middlebox: " + control
	case idle.Application:
		return "limited by an application or a proxy: " + control
	case idle.Unclear:
		return "unclear who limits it: " + control
	}
	if c := i.Control; c != nil && !c.Alive() {
		return fmt.Sprintf("the control connection ended after %s (%s)", seconds(c.Age), outcome(c))
	}
	return ""
}

// outcome says how a control connection ended.
func outcome(c *idle.Control) string {
	return strings.TrimSpace(words(c.Outcome.String()) + " " + shaker.ErrnoName(c.Errno))
}

// RoundAgo returns the time since the end of the last complete round.
func (i *idled) RoundAgo() string { return ago(i.now, i.Round) }

// Progress describes the present round, "" if there is none.
func (i *idled) Progress() string {
	if len(i.Steps) == 0 || i.Fault != nil || statusOfIdle(i.Status) == failing {
		return ""
	}
	elapsed := i.now.Sub(i.Began)
	over := 0
	for over < len(i.Steps) && i.Steps[over] <= elapsed {
		over++
	}
	text := fmt.Sprintf("present round: %d of %d steps over", over, len(i.Steps))
	if over == len(i.Steps) {
		return text
	}
	next, last := i.Steps[over], i.Steps[len(i.Steps)-1]
	text += fmt.Sprintf(", the next one (%s) in %s", seconds(next), unbroken(span(next-elapsed)))
	if next != last {
		text += fmt.Sprintf(", the last one (%s) in %s", seconds(last), unbroken(span(last-elapsed)))
	}
	return text
}

// FaultText says why this host could not perform the last round. It is "" if it could, and if the row says so already.
func (i *idled) FaultText() string {
	if i.Fault == nil || i.Stale != nil {
		return ""
	}
	return "this host could not perform the last round: " + i.Fault.Error()
}

// SkippedText counts the connections that showed nothing about the idle timeout, "" if there are none.
func (i *idled) SkippedText() string {
	var parts []string
	for reason, n := range i.Skipped {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, strings.ReplaceAll(idle.Reason(reason).String(), "_", " ")))
		}
	}
	return strings.Join(parts, ", ")
}

// Recent counts the connections in the chart.
func (i *idled) Recent() tally {
	var t tally
	for _, f := range i.Findings {
		switch f.Kind {
		case idle.Survived:
			t.Successes++
			t.Probes++
		case idle.Lost, idle.Told:
			t.Probes++
		}
	}
	return t
}

// knownTimeouts are well-known idle timeouts, the shortest first.
var knownTimeouts = []struct {
	seconds int
	name    string
}{
	{seconds: 240, name: "Azure Load Balancer"},
	{seconds: 350, name: "AWS Network Load Balancer and NAT gateway"},
	{seconds: 600, name: "Google Cloud load balancers"},
	{seconds: 900, name: "IPVS"},
	{seconds: 1200, name: "Google Cloud NAT"},
	{seconds: 3600, name: "Cisco FTD"},
	{seconds: 7440, name: "least that RFC 5382 permits a NAT"},
	{seconds: 432000, name: "Linux connection tracking"},
}

// A known is a well-known idle timeout, compared with the bracket.
type known struct {
	Seconds, Name, Relation string
	Possible                bool // it may be the measured one
}

// Known returns the well-known idle timeouts.
func (i *idled) Known() []known {
	from, to := i.Survived, i.Lost
	if i.isTold() {
		from, to = max(from, to-time.Second), to+time.Second
	}
	var all []known
	for _, k := range knownTimeouts {
		d := time.Duration(k.seconds) * time.Second
		known := known{Seconds: seconds(d), Name: k.name}
		switch {
		case d <= from:
			known.Relation = "shorter"
		case i.Lost == 0:
			known.Relation, known.Possible = "not ruled out", true
		case d <= to:
			known.Relation, known.Possible = "possible", true
		default:
			known.Relation = "longer"
		}
		all = append(all, known)
	}
	return all
}

// KnownText names the well-known idle timeouts that may be the measured one.
func (i *idled) KnownText() string {
	var names []string
	for _, k := range i.Known() {
		if k.Possible {
			names = append(names, k.Seconds+" "+k.Name)
		}
	}
	switch {
	case len(names) == 0 && i.Lost == 0:
		return "no well-known timeout is longer"
	case len(names) == 0:
		return "no well-known timeout in the bracket"
	case i.Lost == 0:
		return "well-known timeouts that are not ruled out: " + strings.Join(names, ", ")
	default:
		return "well-known timeouts in the bracket: " + strings.Join(names, ", ")
	}
}

// scaleWidth is the width of a scale in SVG units, for six decades from 1 s on.
const scaleWidth = 60

// onScale returns the place of an idle time on a scale.
func onScale(d time.Duration) float64 {
	return min(max(0, math.Log10(d.Seconds())*scaleWidth/6), scaleWidth)
}

// scale draws the connections of the last complete round on a logarithmic scale of idle times: low strokes survived,
// and high ones were lost. The bracket is a bar between them. Below are the well-known timeouts.
func scale(s *idle.Status) template.HTML {
	if s.Rounds == 0 {
		return ""
	}
	var survived, lost, bracket, ticks strings.Builder
	for _, f := range s.Findings {
		switch f.Kind {
		case idle.Survived:
			fmt.Fprintf(&survived, "M%.1f %dv-6", onScale(f.Idle), stripBase)
		case idle.Lost, idle.Told:
			fmt.Fprintf(&lost, "M%.1f %dv-%d", onScale(f.Idle), stripBase, stripAllFailed)
		}
	}
	from, to := onScale(max(s.Survived, time.Second)), onScale(s.Lost)
	fmt.Fprintf(&survived, "M0 %dH%.1f", stripBase, from)
	if s.Lost > 0 {
		fmt.Fprintf(&bracket, "M%.1f %dH%.1f", from, stripBase-3, max(to, from+.5))
	}
	for _, k := range knownTimeouts {
		fmt.Fprintf(&ticks, "M%.1f 20v4", onScale(time.Duration(k.seconds)*time.Second))
	}
	return svg(scaleWidth, scaleCaption(s), part{class: "bracket", d: bracket.String()},
		part{class: "survived", d: survived.String()}, part{class: "failed", d: lost.String()},
		part{class: "known", d: ticks.String()})
}

// scaleCaption describes a scale in words.
func scaleCaption(s *idle.Status) string {
	t := (&idled{Status: s}).Recent()
	return fmt.Sprintf("idle times from 1 s to 1000000 s, logarithmic: %d of %d connections survived; "+
		"the ticks below are well-known timeouts", t.Successes, t.Probes)
}
