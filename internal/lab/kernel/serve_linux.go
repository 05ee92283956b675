package kernel

import (
	"io"
	"net"
	"sync"
	"testing"
)

// ServeUntilEOF accepts connections and closes each one after the client has closed it, as [Serve].
func ServeUntilEOF(t testing.TB, l net.Listener) {
	Serve(t, l, func(conn net.Conn) { io.Copy(io.Discard, conn) })
}

// Serve accepts connections and calls handle with each, in a goroutine of its own. It closes a connection when handle
// returns, or when the test ends, because some clients' FIN or RST never arrives. It closes the listener when the test
// ends.
func Serve(t testing.TB, l net.Listener, handle func(net.Conn)) {
	var mu sync.Mutex
	var conns []net.Conn
	over := false
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			mu.Lock()
			conns = append(conns, conn)
			if over {
				conn.Close()
			}
			mu.Unlock()
			serving.Go(func() {
				defer conn.Close()
				handle(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		over = true
		for _, conn := range conns {
			conn.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
}
