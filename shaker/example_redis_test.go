//go:build !plan9

package shaker_test

import (
	"bufio"
	"log"
	"net"
	"net/netip"
)

// startRedis starts a server that answers one PING, as Redis does, and closes the connection.
func startRedis() netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		defer l.Close()
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := bufio.NewReader(conn).ReadString('\n'); err == nil {
			conn.Write([]byte("+PONG\r\n"))
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}
