package config

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// parseHold returns the section hold of a module, which has one line.
func parseHold(t *testing.T, hold string) (Hold, error) {
	t.Helper()
	c, warnings, err := Parse("shaker.yml", []byte("modules: {m: {prober: hold, hold: {"+hold+"}}}"))
	if err != nil {
		return Hold{}, err
	}
	if warnings != nil {
		t.Errorf("Parse(%s) has the warnings %q, want none", hold, warnings)
	}
	return c.Modules["m"].Hold, nil
}

func TestHeldAndMeasuresIdle(t *testing.T) {
	c, _, err := Parse("shaker.yml", []byte("modules: {a: {prober: tcp}, b: {prober: hold}, c: {prober: idle}}"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]bool{"a": {false, false}, "b": {true, false}, "c": {false, true}} {
		m := c.Modules[name]
		if got := [2]bool{m.Held(), m.MeasuresIdle()}; got != want {
			t.Errorf("Held, MeasuresIdle of prober %s = %v, want %v", m.Prober, got, want)
		}
		if reflect.ValueOf(m.Hold).IsZero() == want[0] || reflect.ValueOf(m.Idle).IsZero() == want[1] {
			t.Errorf("prober %s: Hold is %+v, Idle is %+v, want only that of the prober", m.Prober, m.Hold, m.Idle)
		}
	}
	for name, m := range Default().Modules {
		if m.Held() || m.MeasuresIdle() {
			t.Errorf("the built-in module %s is %+v, want prober tcp", name, m)
		}
	}
}

// A reload compares modules: those of the same text are equal, those of another one are not.
func TestHoldIsComparable(t *testing.T) {
	const text = `heartbeat: {send: "PING\r\n", expect: '^\+(PONG|OK)$', frame: {delimiter: "\r\n"}}, ` +
		`greeting: '^\S+ \d{3}'`
	first, err := parseHold(t, text)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := parseHold(t, text); !reflect.DeepEqual(first, again) || err != nil {
		t.Errorf("Parse(%s) = %+v, then %+v, error %v, want the same", text, first, again, err)
	}
	for _, change := range [][2]string{
		{`PONG`, `PING`}, {`\d{3}`, `\d{4}`}, {`^\S`, `\S`}, {`, greeting: '^\S+ \d{3}'`, ``},
		{`expect: '^\+(PONG|OK)$', `, ``}, {`send: "PING`, `send: "ping`}, {`"\r\n"}`, `"\n"}`},
		{`greeting`, `keepalive: false, greeting`},
	} {
		changed := strings.Replace(text, change[0], change[1], 1)
		other, err := parseHold(t, changed)
		if reflect.DeepEqual(first, other) || err != nil {
			t.Errorf("Parse(%s) = %+v, error %v, want another one than of %s", changed, other, err, text)
		}
	}
}

// A regular expression takes memory once, however many modules have it.
func TestPatternIsCompiledOnce(t *testing.T) {
	const text = `modules:
  a: &a {prober: hold, hold: {greeting: 'x{1000}'}}
  b: *a
  c: {prober: hold, hold: {greeting: 'x{1000}'}}
  d: {prober: hold, hold: {greeting: 'x{999}'}}`
	c, _, err := Parse("shaker.yml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	first := c.Modules["a"].Hold.Greeting
	for name, same := range map[string]bool{"b": true, "c": true, "d": false} {
		if got := c.Modules[name].Hold.Greeting; (got == first) != same {
			t.Errorf("module %s shares %v with module a: %t, want %t", name, got, got == first, same)
		}
	}
}

// What the file may contain is what package shaker permits.
func TestHoldLimits(t *testing.T) {
	valid := shaker.KeepAlive{Idle: time.Second, Interval: time.Second, Count: 1}
	for _, test := range []struct {
		name string
		set  func(*shaker.KeepAlive, int)
		unit string
		at   []int
	}{
		{
			name: "idle", unit: "s",
			set: func(k *shaker.KeepAlive, n int) { k.Idle = time.Duration(n) * time.Second },
			at:  []int{-1, 0, 1, 2, 32766, 32767, 32768},
		},
		{
			name: "interval", unit: "s",
			set: func(k *shaker.KeepAlive, n int) { k.Interval = time.Duration(n) * time.Second },
			at:  []int{-1, 0, 1, 2, 32766, 32767, 32768},
		},
		{name: "count", set: func(k *shaker.KeepAlive, n int) { k.Count = n }, at: []int{-1, 0, 1, 2, 126, 127, 128}},
	} {
		for _, n := range test.at {
			k := valid
			test.set(&k, n)
			text := fmt.Sprintf("keepalive: {idle: 1s, interval: 1s, count: 1, %s: %d%s}", test.name, n, test.unit)
			text = strings.Replace(text, test.name+": 1s, ", "", 1)
			text = strings.Replace(text, test.name+": 1, ", "", 1)
			hold, err := parseHold(t, text)
			if (err == nil) != (k.Validate() == nil) || err == nil && hold.KeepAlive != k {
				t.Errorf("Parse(%s) = %v, error %v, want %v, error %v", text, hold.KeepAlive, err, k, k.Validate())
			}
		}
	}
	for frame, want := range map[string]shaker.Framing{
		`max_frame: 1B`:                                        {Max: 1},
		`max_frame: 1MiB`:                                      {Max: 1 << 20},
		`max_frame: 1048577B`:                                  {Max: 1<<20 + 1},
		`max_frame: 4KB`:                                       {Max: 4000},
		`frame: {delimiter: 0123456789abcdef}`:                 {Max: 4 << 10, Delimiter: "0123456789abcdef"},
		`frame: {delimiter: 0123456789abcdefg}`:                {Max: 4 << 10, Delimiter: "0123456789abcdefg"},
		`frame: {length: 1}`:                                   {Max: 4 << 10, Length: 1},
		`frame: {length: 2, order: big}`:                       {Max: 4 << 10, Length: 2},
		`frame: {length: 3}`:                                   {Max: 4 << 10, Length: 3},
		`frame: {length: 4, order: little}`:                    {Max: 4 << 10, Length: 4, LittleEndian: true},
		`frame: {length: 8}`:                                   {Max: 4 << 10, Length: 8},
		`frame: {delimiter: "\n", order: little}`:              {Max: 4 << 10, Delimiter: "\n", LittleEndian: true},
		`frame: {delimiter: "\n", length: 2}`:                  {Max: 4 << 10, Delimiter: "\n", Length: 2},
		`frame: {delimiter: !!binary /w==}, max_frame: 0.5KiB`: {Max: 512, Delimiter: "\xff"},
	} {
		text := "heartbeat: {send: PING, " + frame + "}"
		hold, err := parseHold(t, text)
		if (err == nil) != (want.Validate() == nil) || err == nil && hold.Heartbeat.Framing != want {
			t.Errorf("Parse(%s) = %+v, error %v, want %+v, error %v",
				text, hold.Heartbeat.Framing, err, want, want.Validate())
		}
	}
}

// What is sent is exactly what the file says.
func TestHeartbeatSend(t *testing.T) {
	for text, want := range map[string]string{
		`"PING\r\n"`:              "PING\r\n",
		`"\x00\x02\x7f"`:          "\x00\x02\x7f",
		`!!binary AAL/`:           "\x00\x02\xff",
		`'é'`:                     "é",
		`"\\r"`:                   `\r`,
		`5`:                       "5",
		`'C:\dir'`:                `C:\dir`,
		strings.Repeat("a", 4096): strings.Repeat("a", 4096),
	} {
		hold, err := parseHold(t, "heartbeat: {send: "+text+"}")
		if hold.Heartbeat.Send != want || err != nil {
			t.Errorf("Parse with send: %s = %q, error %v, want %q", text, hold.Heartbeat.Send, err, want)
		}
	}
}

func TestHoldTooLong(t *testing.T) {
	longest := strings.Repeat("a", 1024)
	for text, want := range map[string]string{
		"heartbeat: {send: " + strings.Repeat("a", 4097) + "}": `shaker.yml:1: module m: ` +
			`hold.heartbeat.send has 4097 bytes, want 1 to 4096 bytes, such as "\r\n"`,
		"greeting: " + longest: "",
		"greeting: " + longest + "a": "shaker.yml:1: module m: " +
			"hold.greeting has 1025 bytes, want a regular expression of at most 1024",
	} {
		got := ""
		if _, err := parseHold(t, text); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("Parse(%.40s...): error %q, want %q", text, got, want)
		}
	}
}

// Every character is shown so that it is read again, in regular expressions, which are text, and in what is sent.
func TestEveryCharacterIsShown(t *testing.T) {
	for first := rune(0); first < 0x20000; first += 256 {
		var chars []rune
		for char := first; char < first+256; char++ {
			if utf8.ValidRune(char) {
				chars = append(chars, char)
			}
		}
		text := string(chars)
		module := defaultModule(holdProber)
		module.Hold.Greeting = regexp.MustCompile(regexp.QuoteMeta(text))
		module.Hold.Heartbeat = Heartbeat{
			Interval: time.Minute, Timeout: time.Second, Send: text + "\xff", Framing: shaker.Framing{Max: 1},
		}
		if first == 0 { // ASCII is not base64
			module.Hold.Heartbeat.Send = text[:128]
		}
		want := &Config{Modules: map[string]Module{"m": module}}
		if text == "" {
			continue
		}
		shown := encode(t, want)
		got, _, err := Parse("shaker.yml", shown)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("characters from %U, as YAML\n%s\n = %+v, error %v, want the same", first, shown, got, err)
		}
	}
}

func TestHoldWarnings(t *testing.T) {
	const blind = "shaker.yml:1: module m: hold.keepalive is false, and there is no heartbeat: a connection whose " +
		"peer vanishes looks established forever"
	for hold, want := range map[string][]string{
		"keepalive: false":                          {blind},
		"keepalive: no, greeting: '^OK'":            {blind},
		"keepalive: false, heartbeat: {send: PING}": nil,
		"keepalive: {}":                             nil,
	} {
		_, warnings, err := Parse("shaker.yml", []byte("modules: {m: {prober: hold, hold: {"+hold+"}}}"))
		if !slices.Equal(warnings, want) || err != nil {
			t.Errorf("Parse(%s) has the warnings %q, error %v, want %q, no error", hold, warnings, err, want)
		}
	}
}
