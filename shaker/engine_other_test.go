//go:build !linux && !plan9

package shaker

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// Options that this platform does not support are an error. They are never ignored silently.
func TestUnsupportedOptions(t *testing.T) {
	s, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for name, options := range map[string]*Options{
		"source port":  {SourcePort: 20000},
		"source ports": {SourcePorts: PortRange{First: 40000, Last: 40999}},
		"interface":    {Interface: "lo"},
		"DSCP":         {DSCP: 1},
		"mark":         {Mark: 1},
		"TTL":          {TTL: 1},
	} {
		want := name + ": unsupported operation on " + runtime.GOOS
		if err := options.Check(); !errors.Is(err, errors.ErrUnsupported) || err.Error() != want {
			t.Errorf("Check of %+v: error %v, want %s", options, err, want)
		}
		r, err := s.Shake(context.Background(), netip.MustParseAddrPort("127.0.0.1:1"), options)
		want = "shake 127.0.0.1:1: " + want
		if !errors.Is(err, errors.ErrUnsupported) || err.Error() != want || r != (Result{}) {
			t.Errorf("Shake(127.0.0.1:1, %+v) = %+v, error %v, want error %s", options, r, err, want)
		}
	}
}

// An error before connect(2) is never a verdict, whatever its errno.
func TestBeforeConnect(t *testing.T) {
	for call, want := range map[string]bool{
		"socket":     true,
		"bind":       true,
		"setsockopt": true,
		"connect":    false,
		"connectex":  false,
	} {
		err := &net.OpError{Op: "dial", Err: os.NewSyscallError(call, syscall.EACCES)}
		if got := beforeConnect(err); got != want {
			t.Errorf("beforeConnect(%v) = %t, want %t", err, got, want)
		}
	}
	if err := (&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}); beforeConnect(err) {
		t.Errorf("beforeConnect(%v) = true, want false", err)
	}
}

// A heartbeat that meets an RST does not hide it, nor the data before it.
func TestHeartbeatMeetsReset(t *testing.T) {
	p := newPeer(t, "127.0.0.1:0")
	conn, err := net.Dial("tcp", p.target.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	h := &held{tb: t, events: make(chan ConnectionEvent, 10)}
	h.Connection = &Connection{
		target:    p.target,
		framing:   lines,
		heartbeat: ping(time.Minute, time.Second),
		each:      func(_ *Connection, e ConnectionEvent) { h.events <- e },
		holding:   holding{engine: start(t).engine, greeted: true},
	}
	far := p.accept()
	write(t, far, "last\n")
	far.SetLinger(0)
	far.Close()
	if err := h.lookAfter(conn.(*net.TCPConn)); err != nil {
		t.Fatalf("a heartbeat after an RST: error %v, want none before the last data is read", err)
	}
	data := make([]byte, 100)
	for err = nil; err == nil; {
		var n int
		n, err = conn.Read(data)
		err = h.take(arrived{data: data[:n], at: time.Now(), err: err})
	}
	if runtime.GOOS != "windows" { // which discards the data
		h.next(Answered)
	}
	if e := h.endOf(err); e.Outcome != Reset || e.Err != nil {
		t.Errorf("the connection ended with %v: %v, error %v, want Reset", err, e.Outcome, e.Err)
	}
}
