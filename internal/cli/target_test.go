package cli

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// After the hops that answered, the command prints that there are no more, but only if it knows that.
func TestPrintEnd(t *testing.T) {
	router := shaker.Hop{TTL: 1, From: netip.MustParseAddr("198.51.100.1")}
	for _, c := range []struct {
		name   string
		hops   []shaker.Hop
		report *probe.Report
		want   string
	}{
		{
			name:   "the last hop answered",
			hops:   []shaker.Hop{router},
			report: &probe.Report{},
		},
		{
			name:   "the last hops did not answer",
			hops:   []shaker.Hop{router, {TTL: 2}, {TTL: 3}},
			report: &probe.Report{},
			want:   "a:1:  2  *  (no reply from here on)\n",
		},
		{
			name:   "the end is not known",
			hops:   []shaker.Hop{router, {TTL: 2}, {TTL: 3}},
			report: &probe.Report{PathErr: errors.New("incomplete")},
			want:   "a:1: path: incomplete\n",
		},
	} {
		file, err := os.Create(t.TempDir() + "/out")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		out := newTerminal(file, true)
		target := &target{ProbeCommand: &ProbeCommand{flags: probeFlags{output: "text"}}, text: "a:1"}
		for _, hop := range c.hops {
			target.printHop(out, hop)
		}
		printed, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		target.printEnd(out, c.report)
		text, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		if got := string(text[len(printed):]); got != c.want {
			t.Errorf("%s: printEnd printed %q, want %q", c.name, got, c.want)
		}
	}
}

// A line says that the final ACK was sent, unless the module wants it, and JSON has what is known about it.
func TestPrintACK(t *testing.T) {
	for _, c := range []struct {
		name      string
		handshake shaker.Result
		close     string // how the handshake ends
		text      string
		json      string // "" if there is no key ack_sent
	}{
		{name: "withheld", handshake: shaker.Result{ACKWithheld: true}, close: config.Reset, json: "false"},
		{name: "sent", handshake: shaker.Result{ACKSent: true}, close: config.Reset, json: "true",
			text: ", final ACK sent: the application may have seen a connection"},
		{name: "sent on purpose", handshake: shaker.Result{ACKSent: true}, close: config.FIN, json: "true"},
		{name: "not known", close: config.Reset},
	} {
		for _, output := range []string{"text", "json"} {
			file, err := os.Create(t.TempDir() + "/out")
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			request := &probe.Request{Module: config.Module{TCP: config.TCP{Close: c.close}}}
			command := &ProbeCommand{flags: probeFlags{output: output}}
			target := &target{ProbeCommand: command, text: "a:1", request: request}
			record := &history.Record{Result: "open", Success: true, RTT: time.Millisecond}
			verdict := &probe.Verdict{Handshake: c.handshake}
			target.print(newTerminal(file, false), 1, &probe.Report{}, record, verdict)
			printed, err := os.ReadFile(file.Name())
			if err != nil {
				t.Fatal(err)
			}
			got, want := string(printed), "a:1: seq=1 open time=1.00 ms"+c.text+"\n"
			if output == "json" {
				_, got, _ = strings.Cut(got, `"ack_sent":`)
				got, want = strings.TrimRight(got, "}\n"), c.json
			}
			if got != want {
				t.Errorf("%s: the line in %s = %q, with ack_sent %q, want %q", c.name, output, printed, got, want)
			}
		}
	}
}
