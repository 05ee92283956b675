package config

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/alecthomas/units"
	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A Heartbeat is a question that the target's application has to answer.
type Heartbeat struct {
	Interval time.Duration // between two heartbeats, 1 s to 24 h; 0: there are none
	Timeout  time.Duration // for the answer, at least 1 ms, shorter than Interval
	Send     string        // 1 to 4096 bytes, not necessarily UTF-8

	// Expect matches the answer, which is the first frame after the heartbeat. nil: any frame is an answer.
	Expect *regexp.Regexp

	// Framing divides what the target sends, its greeting included. Max is never 0.
	Framing shaker.Framing
}

// Values of the keys that a section heartbeat leaves out.
const (
	defaultHeartbeatInterval = 10 * time.Second
	defaultHeartbeatTimeout  = 2 * time.Second // half of the interval, if that is shorter
	defaultMaxFrame          = 4 << 10
)

// Complete sets the durations and the limit of frames that are 0 to their defaults.
func (h *Heartbeat) Complete() {
	h.Interval = cmp.Or(h.Interval, defaultHeartbeatInterval)
	h.Timeout = cmp.Or(h.Timeout, min(defaultHeartbeatTimeout, h.Interval/2))
	h.Framing.Max = cmp.Or(h.Framing.Max, defaultMaxFrame)
}

// Limits of heartbeats. Those of frames are limits of package shaker, too.
const (
	longestSend      = 4096
	longestDelimiter = 16
	longestPattern   = 1024
	largestMaxFrame  = 1 << 20
)

func readHeartbeat(v value, h *Heartbeat) {
	entries, ok := v.entries(wantKeys(heartbeatKeys))
	if !ok {
		return
	}
	*h = Heartbeat{Framing: shaker.Framing{Max: defaultMaxFrame}}
	given := readEntries(entries, h, heartbeatKeys)
	if _, ok := given["send"]; !ok {
		v.refuse(`has no send, want what to send, such as send: "PING\r\n"`)
	}
	if _, refused := given["interval"]; refused && h.Interval == 0 {
		return
	}
	h.Complete()
	if h.Timeout >= h.Interval {
		timeout := given["timeout"]
		timeout.refuse("is %s, want less than %s, the interval of heartbeats",
			timeout.quote(), showDuration(h.Interval))
	}
}

func readFrame(v value, f *shaker.Framing) {
	entries, ok := v.entries(wantKeys(frameKeys))
	if !ok {
		return
	}
	given := readEntries(entries, f, frameKeys)
	_, delimiter := given["delimiter"]
	length, hasLength := given["length"]
	order, hasOrder := given["order"]
	switch {
	case delimiter && hasLength:
		length.refuse("is given, and delimiter too, want one of them")
	case !delimiter && !hasLength:
		v.refuse("has neither delimiter nor length, want one of them: remove the key if there are no frames")
	case hasOrder && !hasLength:
		order.refuse("is given without length, want it only with length")
	}
}

func readFrameLength(v value, length *int) {
	text := ""
	v.choice(&text, "1", "2", "4")
	*length, _ = strconv.Atoi(text) // 0 if it was refused
}

func readFrameOrder(v value, little *bool) {
	order := ""
	v.choice(&order, "big", "little")
	*little = order == "little"
}

func readMaxFrame(v value, max *int) {
	const want = "a size with a unit, from 1B to 1MiB"
	text, ok := v.text(want)
	if !ok {
		return
	}
	size, err := units.ParseStrictBytes(text)
	if err != nil || size < 1 || size > largestMaxFrame {
		v.wrong(want)
		return
	}
	*max = int(size)
}

func showSize(n int) string { return units.Base2Bytes(n).String() }

// escape matches an escape sequence of a text in double quotes, except those of printable characters.
var escape = regexp.MustCompile(`\\[0abtnvfrexuU]`)

// bytes reads 1 to most bytes. They are a text, usually in double quotes, or have the tag !!binary.
func (v value) bytes(into *string, most int) {
	want := fmt.Sprintf(`1 to %d bytes, such as "\r\n"`, most)
	text := v.Value
	if v.Kind == yaml.ScalarNode && v.ShortTag() == "!!binary" {
		if v.Decode(&text) != nil {
			v.wrong("base64, because of the tag !!binary")
			return
		}
	} else if !v.is(yaml.ScalarNode, want) {
		return
	} else if v.Style&yaml.DoubleQuotedStyle == 0 {
		if found := escape.FindString(text); found != "" {
			v.refuse(`is %s, want it in double quotes: elsewhere, %s is two characters`, v.quote(), found)
			return
		}
	} else if i := strings.IndexFunc(text, isLatin1); i >= 0 { // \xff is the character U+00FF, which has two bytes
		char, _ := utf8.DecodeRuneInString(text[i:])
		v.refuse("contains %U, which is two bytes, want !!binary with base64 for bytes above 0x7f, "+
			"or single quotes for text", char)
		return
	}
	if len(text) < 1 || len(text) > most {
		v.refuse("has %d bytes, want %s", len(text), want)
		return
	}
	*into = text
}

func isLatin1(r rune) bool { return r >= 0x80 && r <= 0xff }

// showBytes returns bytes as they can be read again: in double quotes, or with the tag !!binary unless they are ASCII.
func showBytes(text string) any {
	if text == "" {
		return nil
	}
	if notASCII := func(r rune) bool { return r >= utf8.RuneSelf }; strings.ContainsFunc(text, notASCII) {
		encoded := base64.StdEncoding.EncodeToString([]byte(text))
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!binary", Value: encoded}
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text, Style: yaml.DoubleQuotedStyle}
}

// readPattern reads a regular expression.
func readPattern(v value, into **regexp.Regexp) {
	const want = "a regular expression"
	text, ok := v.text(want)
	switch {
	case !ok:
		return
	case text == "":
		v.wrong(want)
		return
	case len(text) > longestPattern:
		v.refuse("has %d bytes, want a regular expression of at most %d", len(text), longestPattern)
		return
	}
	pattern, err := v.file.compile(text)
	if err != nil {
		v.refuse("is %s, want a regular expression: %v", v.quote(), err)
		return
	}
	*into = pattern
}

// compile compiles a regular expression, once for all modules of the file: a compiled expression may be a thousand
// times as long as its text, and aliases may repeat it.
func (f *file) compile(text string) (*regexp.Regexp, error) {
	if pattern, ok := f.patterns[text]; ok {
		return pattern, nil
	}
	pattern, err := regexp.Compile(text)
	if failure := (*syntax.Error)(nil); errors.As(err, &failure) {
		return nil, locate(text, failure)
	}
	if err != nil {
		return nil, err
	}
	if f.patterns == nil {
		f.patterns = map[string]*regexp.Regexp{}
	}
	f.patterns[text] = pattern
	return pattern, nil
}

// locate returns a parser's error with its position, if it is about a part of the text. The parser names the part,
// which may occur more than once: its first occurrence with the same error is where the parser stopped.
func locate(text string, failure *syntax.Error) error {
	part := failure.Expr
	if part == "" || part == text {
		return errors.New(failure.Code.String())
	}
	for i := range text {
		if !strings.HasPrefix(text[i:], part) {
			continue
		}
		_, err := syntax.Parse(text[:i+len(part)], syntax.Perl)
		if again := (*syntax.Error)(nil); errors.As(err, &again) && *again == *failure {
			return fmt.Errorf("%s %s at character %d", failure.Code, quote(part), utf8.RuneCountInString(text[:i])+1)
		}
	}
	return fmt.Errorf("%s %s", failure.Code, quote(part))
}

func showPattern(pattern *regexp.Regexp) any {
	if pattern == nil {
		return nil
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: pattern.String(), Style: yaml.DoubleQuotedStyle}
}
