package kernel

import (
	"io"
	"net"
	"sync"
	"testing"
)

// ServeUntilEOF accepts connections and closes each one after the client has closed it. It closes the
// listener when the test ends.
func ServeUntilEOF(t testing.TB, l net.Listener) {
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			serving.Go(func() {
				io.Copy(io.Discard, conn)
				conn.Close()
			})
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
}
