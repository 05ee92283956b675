package shaker_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A trace shows where SYNs are answered or dropped. A target on this host is one hop away.
func ExampleShaker_Trace() {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()

	s, err := shaker.New(&shaker.Config{Options: shaker.Options{Timeout: 2 * time.Second}})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	result, err := s.Shake(context.Background(), server.Addr().(*net.TCPAddr).AddrPort(), nil)
	if err != nil {
		log.Fatal(err)
	}
	path, err := s.Trace(context.Background(), result, &shaker.TraceOptions{MaxHops: 10})
	if err != nil {
		log.Fatal(err)
	}
	for _, hop := range path.Hops {
		switch {
		case !hop.From.IsValid():
			fmt.Println(hop.TTL, "no reply")
		case hop.ICMP.From.IsValid():
			fmt.Println(hop.TTL, hop.From, hop.ICMP)
		default:
			fmt.Println(hop.TTL, hop.From, hop.Outcome)
		}
	}
	fmt.Println("reached at hop", path.Reached)
	// Output:
	// 1 127.0.0.1 open
	// reached at hop 1
}
