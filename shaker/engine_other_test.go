//go:build !linux

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
)

// An option that this platform lacks is never silently left out.
func TestOptionsThatAreUnsupported(t *testing.T) {
	s, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for name, options := range map[string]*Options{
		"source ports": {SourcePorts: PortRange{40000, 40999}},
		"interface":    {Interface: "lo"},
		"DSCP":         {DSCP: 1},
		"mark":         {Mark: 1},
		"TTL":          {TTL: 1},
	} {
		want := name + ": unsupported operation on " + runtime.GOOS
		if err := options.Check(); !errors.Is(err, errors.ErrUnsupported) || err.Error() != want {
			t.Errorf("Check: %v, want %s", err, want)
		}
		r, err := s.Shake(context.Background(), netip.MustParseAddrPort("127.0.0.1:1"), options)
		if want := "shake 127.0.0.1:1: " + want; !errors.Is(err, errors.ErrUnsupported) || err.Error() != want || r != (Result{}) {
			t.Errorf("%+v, %v, want %s", r, err, want)
		}
	}
}

// What fails before connect(2) is no verdict, whatever its errno.
func TestBeforeConnect(t *testing.T) {
	for call, want := range map[string]bool{"socket": true, "bind": true, "setsockopt": true, "connect": false, "connectex": false} {
		err := &net.OpError{Op: "dial", Err: os.NewSyscallError(call, syscall.EACCES)}
		if got := beforeConnect(err); got != want {
			t.Errorf("%v: %t, want %t", err, got, want)
		}
	}
	if err := (&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}); beforeConnect(err) {
		t.Errorf("%v: true", err)
	}
}
