package kernel

import (
	"net"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// Connections that stay open are counted once each, while others come and go.
func TestSockets(t *testing.T) {
	lab.Need(t)
	const stay = 5
	listen := func() (l net.Listener, port int) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					conn.Read(make([]byte, 1))
					conn.Close()
				}()
			}
		}()
		return l, l.Addr().(*net.TCPAddr).Port
	}
	dial := func(l net.Listener) net.Conn {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Error(err)
			return nil
		}
		return conn
	}
	l, port := listen()
	for range stay {
		if conn := dial(l); conn != nil {
			defer conn.Close()
		}
	}
	busy, _ := listen()
	stop := make(chan struct{})
	var others sync.WaitGroup
	defer others.Wait()
	defer close(stop)
	for range 4 {
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				conn := dial(busy)
				if conn == nil {
					return
				}
				conn.(*net.TCPConn).SetLinger(0) // so that no ports are left over
				conn.Close()
			}
		})
	}
	for i := range 100 {
		n := 0
		for _, s := range Sockets(t) {
			if s.Far == port && s.State == unix.BPF_TCP_ESTABLISHED {
				n++
			}
		}
		if n != stay {
			t.Fatalf("call %d of Sockets has %d of %d connections", i, n, stay)
		}
	}
}
