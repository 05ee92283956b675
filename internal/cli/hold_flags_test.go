package cli

import (
	"reflect"
	"testing"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

const heldModule = `
modules:
  held:
    prober: hold
    timeout: 3s
    hold:
      keepalive: {idle: 60s, interval: 10s, count: 5}
      heartbeat: {send: "PING\r\n", expect: '^\+PONG', interval: 30s, frame: {length: 2, order: little}}
      greeting: hello
      reconnect: {min: 2s, max: 4s}
      close: reset
  handshake: {prober: tcp}
`

// moduleOf returns the module of the hold command with the given flags.
func moduleOf(t *testing.T, args ...string) (config.Module, error) {
	t.Helper()
	conf, _, err := config.Parse("test.yml", []byte(heldModule))
	if err != nil {
		t.Fatal(err)
	}
	app := kingpin.New("shaker_exporter", "").Terminate(nil)
	command := RegisterHold(app)
	if _, err := app.Parse(append([]string{Hold, "192.0.2.1:80"}, args...)); err != nil {
		return config.Module{}, err
	}
	if err := command.flags.validate(); err != nil {
		return config.Module{}, err
	}
	return command.flags.holdModule(conf)
}

// Without flags, connections are held as by a module that says nothing but prober: hold. Flags replace the values of
// the module.
func TestHoldFlags(t *testing.T) {
	for _, c := range []struct {
		args   []string
		want   shaker.HoldOptions // without the patterns, which are not for the library
		expect string
		delays config.Backoff
	}{
		{
			want: shaker.HoldOptions{
				Options:   shaker.Options{Timeout: 5 * time.Second, FIN: true},
				KeepAlive: shaker.KeepAlive{Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
				Heartbeat: shaker.Heartbeat{Send: []byte{}},
			},
			delays: config.Backoff{Min: time.Second, Max: 5 * time.Minute},
		},
		{
			args: []string{"--keepalive=1s/2s/4", "--send=\\x00\\377é\\r\\n\"'", "--expect=^a",
				"--heartbeat-interval=3s",
				"--delimiter=\\r\\n", "--max-frame=1MiB", "--greeting=.", "--timeout=1s", "--close=reset",
				"--reconnect=100ms/1h"},
			want: shaker.HoldOptions{
				Options:   shaker.Options{Timeout: time.Second},
				KeepAlive: shaker.KeepAlive{Idle: time.Second, Interval: 2 * time.Second, Count: 4},
				Framing:   shaker.Framing{Delimiter: "\r\n", Max: 1 << 20},
				Greeting:  time.Second,
				Heartbeat: shaker.Heartbeat{Interval: 3 * time.Second, Timeout: 1500 * time.Millisecond,
					Send: []byte("\x00\xffé\r\n\"'")},
			},
			expect: "^a",
			delays: config.Backoff{Min: 100 * time.Millisecond, Max: time.Hour},
		},
		{
			args: []string{"--module=held"},
			want: shaker.HoldOptions{
				Options:   shaker.Options{Timeout: 3 * time.Second},
				KeepAlive: shaker.KeepAlive{Idle: time.Minute, Interval: 10 * time.Second, Count: 5},
				Framing:   shaker.Framing{Length: 2, LittleEndian: true, Max: 4 << 10},
				Greeting:  3 * time.Second,
				Heartbeat: shaker.Heartbeat{Interval: 30 * time.Second, Timeout: 2 * time.Second,
					Send: []byte("PING\r\n")},
			},
			expect: `^\+PONG`,
			delays: config.Backoff{Min: 2 * time.Second, Max: 4 * time.Second},
		},
		{
			args: []string{"--module=held", "--keepalive=off", "--heartbeat-timeout=5s", "--delimiter=;",
				"--close=fin"},
			want: shaker.HoldOptions{
				Options:  shaker.Options{Timeout: 3 * time.Second, FIN: true},
				Framing:  shaker.Framing{Delimiter: ";", Max: 4 << 10},
				Greeting: 3 * time.Second,
				Heartbeat: shaker.Heartbeat{Interval: 30 * time.Second, Timeout: 5 * time.Second,
					Send: []byte("PING\r\n")},
			},
			expect: `^\+PONG`,
			delays: config.Backoff{Min: 2 * time.Second, Max: 4 * time.Second},
		},
	} {
		module, err := moduleOf(t, c.args...)
		if err != nil {
			t.Errorf("hold %q: %v, want no error", c.args, err)
			continue
		}
		if got := module.HoldOptions(); !reflect.DeepEqual(got, c.want) {
			t.Errorf("hold %q holds connections with\n%+v\nwant\n%+v", c.args, got, c.want)
		}
		expect := ""
		if pattern := module.Hold.Heartbeat.Expect; pattern != nil {
			expect = pattern.String()
		}
		if expect != c.expect || module.Hold.Reconnect != c.delays {
			t.Errorf("hold %q expects %q and reconnects after %v, want %q and %v",
				c.args, expect, module.Hold.Reconnect, c.expect, c.delays)
		}
	}
}

// What the JSON output shows of a frame is what --send would send.
func FuzzEscape(f *testing.F) {
	f.Add([]byte("+PONG\r\n"))
	f.Add([]byte("\x1b[31m\x9b\xff\x00\\\"'`\u00e9\u2028"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 {
			return // a flag has at least one byte
		}
		text := escape(data)
		for _, c := range []byte(text) {
			if c < ' ' || c > '~' {
				t.Fatalf("escape(%q) = %q, want printable ASCII", data, text)
			}
		}
		var back bytesFlag
		if err := back.Set(text); err != nil || string(back) != string(data) {
			t.Errorf("escape(%q) = %q, which is %q, %v as a flag, want the data", data, text, string(back), err)
		}
		for _, c := range []byte(quoteFrame(data)) {
			if c < ' ' || c > '~' {
				t.Fatalf("quoteFrame(%q) = %q, want printable ASCII", data, quoteFrame(data))
			}
		}
	})
}
