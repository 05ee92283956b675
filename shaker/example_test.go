//go:build !plan9

package shaker_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A health check: its error is nil only if the server's port is open.
func Example() {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	address := server.Addr().String()

	s, err := shaker.New(&shaker.Config{Options: shaker.Options{Timeout: 2 * time.Second}})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	fmt.Println("listening:", s.Check(context.Background(), address))
	server.Close()
	switch err := s.Check(context.Background(), address); {
	case errors.Is(err, shaker.ErrLocal):
		fmt.Println("unknown: this host could not measure")
	case errors.Is(err, syscall.ECONNREFUSED):
		fmt.Println("closed: no process listens")
	case errors.Is(err, os.ErrDeadlineExceeded):
		fmt.Println("closed: no reply before the deadline")
	}
	// Output:
	// listening: <nil>
	// closed: no process listens
}

// Shake returns a verdict about the target, and an error only if there is no verdict.
func ExampleShaker_Shake() {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	target := server.Addr().(*net.TCPAddr).AddrPort()

	s, err := shaker.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	result, err := s.Shake(context.Background(), target, &shaker.Options{Timeout: 2 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("outcome:", result.Outcome)
	fmt.Println("handshake measured:", result.Handshake > 0)
	fmt.Println("about the target:", result.Peer == target)

	_, err = s.Shake(context.Background(), netip.MustParseAddrPort("127.0.0.1:0"), nil)
	fmt.Println("port 0:", err)
	// Output:
	// outcome: open
	// handshake measured: true
	// about the target: true
	// port 0: shake 127.0.0.1:0: invalid target
}

// A program checks the options from its configuration before it uses them.
func ExampleOptions_Check() {
	for _, options := range []shaker.Options{
		{Source: netip.MustParseAddr("127.0.0.1")},
		{DSCP: 64},
		{SourcePorts: shaker.PortRange{First: 50000, Last: 40000}},
	} {
		fmt.Println(options.Check())
	}
	// Output:
	// <nil>
	// DSCP is 64, want 0 to 63
	// invalid source port range 50000-40000
}

// Repeat shakes hands with a target in the background. The function counts what is lost.
func ExampleShaker_Repeat() {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	target := server.Addr().(*net.TCPAddr).AddrPort()

	s, err := shaker.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	enough := make(chan struct{})
	sent, lost := 0, 0
	r, err := s.Repeat(target, shaker.Schedule{Interval: 10 * time.Millisecond}, func(r shaker.Repeated) {
		if r.Err != nil {
			return // this host could not measure
		}
		if r.Result.Outcome == shaker.Timeout {
			lost++
		}
		if sent++; sent == 10 {
			close(enough)
		}
	})
	if err != nil {
		log.Fatal(err)
	}
	<-enough
	r.Stop()
	fmt.Println("lost:", lost)
	// Output:
	// lost: 0
}
