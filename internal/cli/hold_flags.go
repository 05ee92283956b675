package cli

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/alecthomas/kingpin/v2"
	"github.com/alecthomas/units"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// holdFlags are the flags and arguments of the hold command. A value that is zero leaves the decision to the module.
type holdFlags struct {
	targets  []string
	module   string
	count    int
	duration time.Duration
	timeout  time.Duration
	output   string

	keepAlive keepAliveFlag
	reconnect backoffFlag
	close     string

	send              bytesFlag
	expect, greeting  *regexp.Regexp
	interval, patient time.Duration // of heartbeats
	delimiter         bytesFlag
	length, order     string
	maxFrame          sizeFlag
}

// register adds the flags and the arguments to the command. The values in the help are the defaults.
func (f *holdFlags) register(cmd *kingpin.CmdClause) {
	cmd.Flag("count", "Number of connections to each target, one after the other, including those that cannot be "+
		"opened. 0 continues until interrupted.").Default("0").SetValue((*config.Integer)(&f.count))
	cmd.Flag("duration", "Time after which the command ends, as if interrupted. 0 continues until interrupted.").
		Default("0s").DurationVar(&f.duration)
	cmd.Flag("module", "Module of the configuration file, with prober hold. The flags below replace its values.").
		StringVar(&f.module)
	cmd.Flag("timeout", "Time for name resolution, then for the connect, then for the greeting.").
		PlaceHolder("5s").DurationVar(&f.timeout)
	cmd.Flag("keepalive", "TCP keepalive, IDLE/INTERVAL/COUNT in whole seconds, or off. A peer that is silent for "+
		"IDLE + INTERVAL * COUNT is dead.").PlaceHolder("15s/5s/3").SetValue(&f.keepAlive)
	cmd.Flag("send", `Heartbeat to send, such as "PING\r\n". Escapes are those of Go: \r, \n, \t, \\, \x00.`).
		PlaceHolder("DATA").SetValue(&f.send)
	cmd.Flag("expect", "Regular expression that matches the answer to a heartbeat. Without it, any answer is right.").
		PlaceHolder("REGEXP").RegexpVar(&f.expect)
	cmd.Flag("heartbeat-interval", "Time between two heartbeats.").PlaceHolder("10s").DurationVar(&f.interval)
	cmd.Flag("heartbeat-timeout", "Time for the answer to a heartbeat, less than the interval.").
		PlaceHolder("2s").DurationVar(&f.patient)
	cmd.Flag("greeting", "Regular expression that matches the first frame, which the target sends without being "+
		"asked. A connection with another greeting is closed.").PlaceHolder("REGEXP").RegexpVar(&f.greeting)
	cmd.Flag("delimiter", `End of each frame of the target, such as "\r\n". `+
		"Without it and --length, whatever arrives together is a frame.").PlaceHolder("DATA").SetValue(&f.delimiter)
	cmd.Flag("length", "Number of bytes in front of each frame that give its length. One of: [1, 2, 4]").
		PlaceHolder("BYTES").EnumVar(&f.length, "1", "2", "4")
	cmd.Flag("order", "Order of these bytes. One of: [big, little]").
		PlaceHolder("big").EnumVar(&f.order, "big", "little")
	cmd.Flag("max-frame", "Maximum size of a frame. A longer one ends the connection.").
		PlaceHolder("4KiB").SetValue(&f.maxFrame)
	cmd.Flag("reconnect", "Delay before a connection is opened again, MIN/MAX. It doubles with each connection that "+
		"does not live longer than MAX.").PlaceHolder("1s/5m").SetValue(&f.reconnect)
	cmd.Flag("close", "Whether to close connections with a FIN or an RST. One of: [fin, reset]").
		PlaceHolder("fin").EnumVar(&f.close, config.FIN, config.Reset)
	cmd.Flag("output", "Output format: text, or json (one object per line and event). One of: [text, json]").
		Default("text").EnumVar(&f.output, "text", "json")
	cmd.Arg("target", "Targets to hold connections to, such as example.com:443, 192.0.2.1:443 or [2001:db8::1]:443.").
		Required().StringsVar(&f.targets)
}

// validate returns a usage error if a value is out of range.
func (f *holdFlags) validate() error {
	if f.count < 0 {
		return fmt.Errorf("--count is %d, want 0 or more", f.count)
	}
	for _, d := range []struct {
		name  string
		value time.Duration
		most  time.Duration
	}{
		{name: "duration", value: f.duration},
		{name: "timeout", value: f.timeout, most: config.MaxTimeout},
		{name: "heartbeat-interval", value: f.interval},
		{name: "heartbeat-timeout", value: f.patient},
	} {
		switch {
		case d.most > 0 && (d.value < 0 || d.value > d.most):
			return fmt.Errorf("--%s is %v, want 0s to %v", d.name, d.value, d.most)
		case d.value < 0:
			return fmt.Errorf("--%s is %v, want 0 or more", d.name, d.value)
		}
	}
	for i, target := range f.targets {
		if slices.Contains(f.targets[:i], target) {
			return fmt.Errorf("target %q given twice", target)
		}
	}
	return nil
}

// holdModule returns the module of the configuration that the flags name, or the default one, with the values that the
// flags replace.
func (f *holdFlags) holdModule(c *config.Config) (config.Module, error) {
	module := config.DefaultHold()
	if f.module != "" {
		module = c.Modules[f.module]
		if !module.Held() {
			return module, fmt.Errorf("module %s has prober %s, want a module with prober hold",
				config.Name(f.module), module.Prober)
		}
	}
	hold := &module.Hold
	replace(&module.Timeout, f.timeout)
	replace(&hold.Close, f.close)
	replace(&hold.Greeting, f.greeting)
	if f.keepAlive.given {
		hold.KeepAlive = f.keepAlive.KeepAlive
	}
	if f.reconnect != (backoffFlag{}) {
		hold.Reconnect = config.Backoff(f.reconnect)
	}
	if err := f.setHeartbeat(&hold.Heartbeat); err != nil {
		return module, err
	}
	return module, f.setFraming(&hold.Heartbeat.Framing)
}

// replace sets a value of the module to that of a flag, unless the flag is not given.
func replace[T comparable](value *T, flag T) {
	var none T
	if flag != none {
		*value = flag
	}
}

func (f *holdFlags) setHeartbeat(h *config.Heartbeat) error {
	replace(&h.Send, string(f.send))
	if h.Send == "" {
		const want = "requires a heartbeat, want --send, too"
		switch {
		case f.expect != nil:
			return errors.New("--expect " + want)
		case f.interval > 0:
			return errors.New("--heartbeat-interval " + want)
		case f.patient > 0:
			return errors.New("--heartbeat-timeout " + want)
		}
		return nil
	}
	replace(&h.Expect, f.expect)
	replace(&h.Interval, f.interval)
	replace(&h.Timeout, f.patient)
	h.Complete()
	switch err := h.Options().Validate(); {
	case err == nil:
		return nil
	case h.Timeout >= h.Interval:
		return fmt.Errorf("the timeout of heartbeats is %v, want less than %v, their interval "+
			"(--heartbeat-timeout, --heartbeat-interval)", h.Timeout, h.Interval)
	default:
		return err
	}
}

func (f *holdFlags) setFraming(framing *shaker.Framing) error {
	switch {
	case f.delimiter != "" && f.length != "":
		return errors.New("--delimiter and --length given, want one of them")
	case f.delimiter != "":
		*framing = shaker.Framing{Delimiter: string(f.delimiter), Max: framing.Max}
	case f.length != "":
		length, _ := strconv.Atoi(f.length) // one of three numbers
		*framing = shaker.Framing{Length: length, Max: framing.Max}
	}
	if f.order != "" {
		if framing.Length == 0 {
			return errors.New("--order given without --length, want it only with --length")
		}
		framing.LittleEndian = f.order == "little"
	}
	replace(&framing.Max, int(f.maxFrame))
	if err := framing.Validate(); err != nil {
		return fmt.Errorf("--delimiter: %w", err) // the other values have been checked
	}
	return nil
}

// A keepAliveFlag is a flag such as 15s/5s/3.
type keepAliveFlag struct {
	shaker.KeepAlive
	given bool
}

func (f *keepAliveFlag) Set(text string) error {
	const want = "want IDLE/INTERVAL/COUNT, such as 15s/5s/3, or off"
	*f = keepAliveFlag{given: true}
	if text == "off" {
		return nil
	}
	parts := strings.Split(text, "/")
	if len(parts) != 3 {
		return errors.New(want)
	}
	idle, err1 := time.ParseDuration(parts[0])
	interval, err2 := time.ParseDuration(parts[1])
	count, err3 := strconv.Atoi(parts[2])
	if errors.Join(err1, err2, err3) != nil {
		return errors.New(want)
	}
	f.KeepAlive = shaker.KeepAlive{Idle: idle, Interval: interval, Count: count}
	if f.KeepAlive == (shaker.KeepAlive{}) {
		return errors.New(want)
	}
	return f.Validate()
}

// A backoffFlag is a flag such as 1s/5m.
type backoffFlag config.Backoff

// shortestDelay is the lower limit of a delay before a connection is opened again.
const shortestDelay = 100 * time.Millisecond

func (f *backoffFlag) String() string { return fmt.Sprintf("%v/%v", f.Min, f.Max) }

func (f *backoffFlag) Set(text string) error {
	least, most, ok := strings.Cut(text, "/")
	var err1, err2 error
	f.Min, err1 = time.ParseDuration(least)
	f.Max, err2 = time.ParseDuration(most)
	if !ok || errors.Join(err1, err2) != nil || f.Min < shortestDelay || f.Max < f.Min {
		return fmt.Errorf("want MIN/MAX, such as 1s/5m, with MIN from %v to MAX", shortestDelay)
	}
	return nil
}

// A bytesFlag is a flag whose value contains escapes such as \r\n.
type bytesFlag string

func (f *bytesFlag) String() string { return escape([]byte(*f)) }

func (f *bytesFlag) Set(text string) error {
	var data []byte
	for text != "" {
		if text[0] != '\\' {
			data = append(data, text[0])
			text = text[1:]
			continue
		}
		char, isRune, rest, err := strconv.UnquoteChar(text, 0)
		switch {
		case err != nil:
			return errors.New(`want escapes only of the form \r, \n, \t, \\, \x00, \000 or \u0000`)
		case isRune:
			data = utf8.AppendRune(data, char)
		default:
			data = append(data, byte(char))
		}
		text = rest
	}
	if len(data) == 0 {
		return errors.New("want at least one byte")
	}
	*f = bytesFlag(data)
	return nil
}

// A sizeFlag is a flag such as 4KiB.
type sizeFlag int

func (f *sizeFlag) String() string { return units.Base2Bytes(*f).String() }

func (f *sizeFlag) Set(text string) error {
	size, err := units.ParseStrictBytes(text)
	if err != nil || size < 1 || (shaker.Framing{Max: int(min(size, 1<<30))}).Validate() != nil {
		return errors.New("want a size with a unit, from 1B to 1MiB")
	}
	*f = sizeFlag(size)
	return nil
}
