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

// A health check that used to dial, and to close what it had dialled.
func Example() {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	address := server.Addr().(*net.TCPAddr).AddrPort()

	s, err := shaker.New(&shaker.Config{Timeout: 2 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	healthy := func(address netip.AddrPort) error {
		result, err := s.Shake(context.Background(), address, nil)
		if err != nil {
			return err // this host could not measure: it says nothing about the server
		}
		return result.Err()
	}

	fmt.Println("listening:", healthy(address))
	server.Close()
	switch err := healthy(address); {
	case errors.Is(err, syscall.ECONNREFUSED):
		fmt.Println("closed: nobody listens")
	case errors.Is(err, os.ErrDeadlineExceeded):
		fmt.Println("closed: no answer in time")
	}
	// Output:
	// listening: <nil>
	// closed: nobody listens
}
