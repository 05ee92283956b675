package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// An event is something that happens to a connection, as it is printed. What is not known is zero.
type event struct {
	name string
	time time.Time
	good bool // whether it is as it should be

	result, errno string
	err           error  // of this host or of name resolution
	what          string // what happened, unless the result says it

	latency        time.Duration // of the handshake, greeting or answer
	waited         time.Duration // without a SYN-ACK, a greeting or an answer
	synRetransmits int
	icmp           shaker.ICMP
	local          uint16 // port
	frame          []byte
	pattern        string // that does not match the frame
	late           bool
	keepAlives     *int
	state          *shaker.ConnectionState
	age            time.Duration
	reconnect      time.Duration // 0 if the connection is not opened again
}

// nameOf returns the name of an errno, "" if there is none.
func nameOf(errno shaker.Errno) string {
	if errno == 0 {
		return ""
	}
	return shaker.ErrnoName(errno)
}

// reason returns why there is no connection: a result, or that the policy or this host is the reason.
func (e *event) reason() string {
	switch {
	case e.result != "":
		return e.result
	case errors.Is(e.err, probe.ErrDenied):
		return "denied"
	}
	return "local error"
}

// print prints an event of the current life.
func (h *holder) print(e event) {
	if h.flags.output == "json" {
		json.NewEncoder(h.out).Encode(h.jsonLine(&e))
		return
	}
	// The date matters: a connection may live for days.
	at := e.time.Format("2006-01-02 15:04:05.000")
	about := fmt.Sprintf("%s %s: seq=%d", at, named(h.text, h.life.addr), h.life.seq)
	word := e.name
	if word == "not_connected" {
		word = "not connected"
	}
	h.out.line(about, word, e.good, h.describe(&e))
}

// describe returns what is printed after the name of an event.
func (h *holder) describe(e *event) string {
	var text strings.Builder
	add := func(format string, args ...any) { fmt.Fprintf(&text, format, args...) }
	if e.result != "" {
		add(": %s", e.result)
		if e.errno != "" {
			add(" %s", e.errno)
		}
	}
	switch e.name {
	case "connected":
		if e.latency > 0 {
			add(" time=%s ms", probe.Milliseconds(e.latency))
		}
		add(", local port %d", e.local)
	case "not_connected":
		if e.err == nil && e.waited > 0 {
			add(" after %s ms", probe.Milliseconds(e.waited))
		}
	case "greeted", "answered":
		add(" after %s ms", probe.Milliseconds(e.latency))
		if e.late {
			add(", late")
		}
	case "keepalives":
		return h.describeKeepAlives(e)
	case "ended":
		add(" after %s%s", showAge(e.age), h.describeEnd(e))
	}
	if e.what != "" {
		add(", %s", e.what)
	}
	if e.err != nil {
		add(": %v", e.err)
	}
	switch n := e.synRetransmits; {
	case n == 1:
		add(", 1 SYN retransmission")
	case n > 1:
		add(", %d SYN retransmissions", n)
	}
	if e.icmp.From.IsValid() {
		add(", ICMP %v from %v", e.icmp, e.icmp.From)
	}
	if e.name == "unanswered" {
		add("%s", h.describeState(e))
	}
	if e.frame != nil {
		add(": %s", quoteFrame(e.frame))
	}
	if e.pattern != "" {
		add(" does not match %s", quotePattern(e.pattern))
	}
	if e.reconnect > 0 {
		add(", reconnect in %s", showAge(e.reconnect))
	}
	return text.String()
}

func (h *holder) describeKeepAlives(e *event) string {
	if *e.keepAlives == 0 {
		return " answered again"
	}
	text := fmt.Sprintf(" unanswered: %d of %d", *e.keepAlives, h.request.Module.Hold.KeepAlive.Count)
	return text + heard(e.state, e.time)
}

// describeEnd returns what the peer did, or did not do, to end the connection.
func (h *holder) describeEnd(e *event) string {
	switch s := e.state; {
	case s == nil || e.err != nil:
		return ""
	case e.result == shaker.Closed.String():
		return ", the peer sent a FIN"
	case e.result == shaker.Reset.String():
		return ", the peer sent an RST"
	case e.result == shaker.Mismatch.String():
		return fmt.Sprintf(", the peer sent a frame of more than %d bytes", h.request.Module.Hold.Heartbeat.Framing.Max)
	case s.Unacknowledged > 0:
		return fmt.Sprintf(", %s not acknowledged%s", plural(s.Unacknowledged, "segment"), heard(s, e.time))
	case s.KeepAlivesUnanswered > 0:
		return fmt.Sprintf(", %s unanswered%s", plural(s.KeepAlivesUnanswered, "keepalive"), heard(s, e.time))
	default:
		return heard(s, e.time)
	}
}

// describeState returns what the kernel knows about a peer that has not answered.
func (h *holder) describeState(e *event) string {
	var text string
	switch s := e.state; {
	case s == nil || s.LastAnswer.IsZero():
		return ""
	case s.WindowClosed:
		text = ", its application does not read: the window is closed"
	case s.Unacknowledged > 0:
		text = fmt.Sprintf(", %s not acknowledged", plural(s.Unacknowledged, "segment"))
	case e.result == shaker.Silent.String() && h.life.greeted: // a heartbeat was sent
		text = ", although its kernel acknowledged all data"
	}
	return text + heard(e.state, e.time)
}

// heard returns when the peer was heard last, as far as the kernel knows.
func heard(s *shaker.ConnectionState, at time.Time) (text string) {
	if s.LastAnswer.IsZero() {
		return ""
	}
	text = fmt.Sprintf(", last segment %s ago", showAge(max(0, at.Sub(s.LastAnswer))))
	if s.LastData.IsZero() {
		return text + ", no data ever"
	}
	return text + fmt.Sprintf(", last data %s ago", showAge(max(0, at.Sub(s.LastData))))
}

// longestQuote limits the bytes of a frame that are printed as text.
const longestQuote = 80

// quoteFrame returns a frame in printable ASCII: its control characters must not reach the terminal.
func quoteFrame(frame []byte) string {
	if more := len(frame) - longestQuote; more > 0 {
		shown := strconv.QuoteToASCII(string(frame[:longestQuote]))
		return fmt.Sprintf("%s... and %s more", shown, plural(more, "byte"))
	}
	return strconv.QuoteToASCII(string(frame))
}

// quotePattern returns a regular expression in quotes, with its backslashes as they are if it is printable ASCII.
func quotePattern(pattern string) string {
	if special := func(c rune) bool { return c < ' ' || c > '~' || c == '\'' }; strings.ContainsFunc(pattern, special) {
		return strconv.QuoteToASCII(pattern)
	}
	return "'" + pattern + "'"
}

// escape returns data in printable ASCII, with the escapes that flags take.
func escape(data []byte) string {
	quoted := strconv.QuoteToASCII(string(data))
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// A holdLine is an event in JSON. Values that are not known are absent.
type holdLine struct {
	Time           time.Time `json:"time"`
	Target         string    `json:"target"`
	Module         string    `json:"module,omitempty"`
	Seq            int       `json:"seq"`
	Event          string    `json:"event"`
	Address        string    `json:"address,omitempty"`
	Success        bool      `json:"success"`
	Result         string    `json:"result,omitempty"`
	Errno          string    `json:"errno,omitempty"`
	Error          string    `json:"error,omitempty"`
	Reason         string    `json:"reason,omitempty"`
	LocalPort      uint16    `json:"local_port,omitempty"`
	Latency        float64   `json:"latency_seconds,omitempty"`
	Waited         float64   `json:"waited_seconds,omitempty"`
	SYNRetransmits int       `json:"syn_retransmits,omitempty"`
	ICMP           *jsonICMP `json:"icmp,omitempty"`
	Late           bool      `json:"late,omitempty"`
	Frame          *string   `json:"frame,omitempty"` // in ASCII, with escapes such as \r
	Age            *float64  `json:"age_seconds,omitempty"`
	KeepAlives     *int      `json:"keepalives_unanswered,omitempty"`
	LastAnswer     *float64  `json:"last_answer_age_seconds,omitempty"`
	LastData       *float64  `json:"last_data_age_seconds,omitempty"`
	Unacknowledged *int      `json:"unacknowledged_segments,omitempty"`
	WindowClosed   *bool     `json:"window_closed,omitempty"`
	Reconnect      float64   `json:"reconnect_seconds,omitempty"`
}

func (h *holder) jsonLine(e *event) holdLine {
	line := holdLine{
		Time: e.time, Target: h.text, Module: h.flags.module, Seq: h.life.seq, Event: e.name, Success: e.good,
		Result: e.result, Errno: e.errno, Reason: e.what, LocalPort: e.local, Latency: e.latency.Seconds(),
		Waited: e.waited.Seconds(), SYNRetransmits: e.synRetransmits, Late: e.late, KeepAlives: e.keepAlives,
		Reconnect: e.reconnect.Seconds(), ICMP: newJSONICMP(e.icmp),
	}
	if h.life.addr.IsValid() {
		line.Address = h.life.addr.String()
	}
	switch {
	case e.err != nil && e.result != "": // of name resolution
		line.Reason = e.err.Error()
	case e.err != nil:
		line.Error = e.err.Error()
	}
	if e.frame != nil {
		text := escape(e.frame)
		line.Frame = &text
	}
	if e.name == "ended" {
		line.Age = seconds(e.age)
	}
	if s := e.state; s != nil {
		line.LastAnswer, line.LastData = age(s.LastAnswer, e.time), age(s.LastData, e.time)
		if !s.LastAnswer.IsZero() {
			line.KeepAlives, line.Unacknowledged = &s.KeepAlivesUnanswered, &s.Unacknowledged
			line.WindowClosed = &s.WindowClosed
		}
	}
	return line
}

func seconds(d time.Duration) *float64 {
	s := d.Seconds()
	return &s
}

// age returns how long ago something was, or nil if it never was.
func age(then, now time.Time) *float64 {
	if then.IsZero() {
		return nil
	}
	return seconds(max(0, now.Sub(then)))
}

// A holdSummary is the summary of all connections to a target in JSON.
type holdSummary struct {
	Time           time.Time      `json:"time"`
	Target         string         `json:"target"`
	Module         string         `json:"module,omitempty"`
	Event          string         `json:"event"`
	Success        bool           `json:"success"`
	Connects       int            `json:"connects"`
	Ended          map[string]int `json:"ended"`
	Failed         map[string]int `json:"failed"`
	Age            *float64       `json:"age_seconds,omitempty"` // of the connection that the command has closed
	Answered       *int           `json:"heartbeats_answered,omitempty"`
	Unanswered     *int           `json:"heartbeats_unanswered,omitempty"`
	Late           *int           `json:"heartbeats_late,omitempty"`
	Mismatch       *int           `json:"heartbeats_mismatch,omitempty"`
	P50            *float64       `json:"latency_p50_seconds,omitempty"`
	P99            *float64       `json:"latency_p99_seconds,omitempty"`
	LongestSilence float64        `json:"longest_silence_seconds,omitempty"`
	NotShown       uint64         `json:"events_not_shown,omitempty"`
}

// printSummary prints the summary of all connections to the target, at the end of the command.
func (h *holder) printSummary() {
	well, t := h.tally.isWell(), &h.tally
	t.mu.Lock()
	defer t.mu.Unlock()
	if h.flags.output == "text" {
		fmt.Fprintf(h.out, "\n--- %s ---\n%s\n", h.text, strings.Join(t.lines(), "\n"))
		return
	}
	none := map[string]int{}
	summary := holdSummary{
		Time: time.Now(), Target: h.text, Module: h.flags.module, Event: "summary", Success: well,
		Connects: t.connects, Ended: none, Failed: none,
		LongestSilence: t.silence.Seconds(), NotShown: t.dropped,
	}
	if t.deaths != nil {
		summary.Ended = t.deaths
	}
	if t.failures != nil {
		summary.Failed = t.failures
	}
	if t.closed > 0 {
		summary.Age = seconds(t.closed)
	}
	if t.heartbeats {
		summary.Answered, summary.Unanswered = &t.answered, &t.unanswered
		summary.Late, summary.Mismatch = &t.late, &t.wrong
	}
	if l := &t.latencies; l.n > 0 {
		summary.P50, summary.P99 = seconds(l.percentile(50)), seconds(l.percentile(99))
	}
	json.NewEncoder(h.out).Encode(summary)
}
