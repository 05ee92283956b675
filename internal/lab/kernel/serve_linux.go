package kernel

import (
	"io"
	"net"
	"sync"
	"testing"
)

// ServeUntilEOF accepts connections until the test ends, and closes each after the client has closed it.
func ServeUntilEOF(t testing.TB, l net.Listener) {
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				io.Copy(io.Discard, conn)
				conn.Close()
			})
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
}
