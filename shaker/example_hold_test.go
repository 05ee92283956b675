//go:build !plan9

package shaker_test

import (
	"fmt"
	"log"
	"net"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A connection to Redis: the kernel answers keepalives, and Redis itself has to answer PING.
func ExampleShaker_Hold() {
	redis := startRedis()
	s, err := shaker.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	ended := make(chan struct{})
	_, err = s.Hold(redis, shaker.HoldOptions{
		Options:   shaker.Options{Timeout: 5 * time.Second, FIN: true},
		KeepAlive: shaker.KeepAlive{Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
		Framing:   shaker.Framing{Delimiter: "\r\n"},
		Heartbeat: shaker.Heartbeat{Interval: 10 * time.Second, Timeout: 2 * time.Second, Send: []byte("PING\r\n")},
	}, func(c *shaker.Connection, e shaker.ConnectionEvent) {
		switch e.Kind {
		case shaker.Answered:
			fmt.Printf("%v: %s\n", e.Kind, e.Frame)
		case shaker.Unanswered, shaker.Ended:
			fmt.Printf("%v: %v\n", e.Kind, e.Outcome)
		default:
			fmt.Println(e.Kind)
		}
		if e.Kind == shaker.Ended {
			close(ended)
		}
	})
	if err != nil {
		log.Fatal(err)
	}
	<-ended
	// Output:
	// established
	// answered: +PONG
	// ended: closed
}

// KeepAlive has the same meaning on every system, and can be read again.
func ExampleSetKeepAlive() {
	conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(startRedis()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	// Below the 350 s after which some load balancers forget an idle connection.
	k := shaker.KeepAlive{Idle: 4 * time.Minute, Interval: 15 * time.Second, Count: 4}
	if err := shaker.SetKeepAlive(conn, k); err != nil {
		log.Fatal(err)
	}
	active, err := shaker.GetKeepAlive(conn)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(active, "ends a dead connection after", active.DeadAfter())
	// Output: 4m0s/15s/4 ends a dead connection after 5m0s
}
