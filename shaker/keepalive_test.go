//go:build !js && !wasip1

package shaker

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// connectHere returns a connection to this host, which exists until the test ends.
func connectHere(t *testing.T) *net.TCPConn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// What was set is what is read, and a system that can do neither says so.
func TestKeepAliveOfConn(t *testing.T) {
	conn := connectHere(t)
	for _, want := range []KeepAlive{
		{Idle: 7 * time.Second, Interval: 3 * time.Second, Count: 5},
		{Idle: maxKeepAlive, Interval: maxKeepAlive, Count: maxKeepAliveCount},
		{},
		{Idle: time.Second, Interval: time.Second, Count: 1},
	} {
		if err := SetKeepAlive(conn, want); errors.Is(err, errors.ErrUnsupported) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
		if got, err := GetKeepAlive(conn); err != nil || got != want {
			t.Errorf("GetKeepAlive after SetKeepAlive of %v = %v, error %v, want the same", want, got, err)
		}
	}
	invalid := KeepAlive{Idle: 1500 * time.Millisecond, Interval: time.Second, Count: 1}
	err := SetKeepAlive(conn, invalid)
	want := "set keepalive 1.5s/1s/1: keepalive idle 1.5s, want whole seconds from 1s to 9h6m7s"
	if err == nil || err.Error() != want || !errors.Is(err, os.ErrInvalid) {
		t.Errorf("SetKeepAlive of %v: error %v, want %s", invalid, err, want)
	}
	if got, err := GetKeepAlive(conn); err != nil || got.Count != 1 || got.Idle != time.Second {
		t.Errorf("GetKeepAlive after an invalid SetKeepAlive = %v, error %v, want 1s/1s/1 as before", got, err)
	}
	conn.Close()
	if err := SetKeepAlive(conn, KeepAlive{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("SetKeepAlive of a closed connection: error %v, want one that wraps net.ErrClosed", err)
	}
	if _, err := GetKeepAlive(conn); !errors.Is(err, net.ErrClosed) {
		t.Errorf("GetKeepAlive of a closed connection: error %v, want one that wraps net.ErrClosed", err)
	}
}
