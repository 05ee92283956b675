package lab

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Capture records the packets on the loopback interface, in their order.
type Capture struct {
	t    testing.TB
	file *os.File
}

// NewCapture starts a capture that ends with the test.
func NewCapture(t testing.TB) *Capture {
	t.Helper()
	Need(t)
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	everything := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		Skip(t, "needs AF_PACKET: %v", err)
	}
	c := &Capture{t, os.NewFile(uintptr(fd), "capture")}
	t.Cleanup(func() { c.file.Close() })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20); err != nil {
		Skip(t, "needs a large buffer to capture without loss: %v", err)
	}
	for _, err := range []error{
		// Loopback shows each packet going out and coming in: once is enough.
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: lo.Index}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// Segments returns what was captured since the last call. Nothing that was sent before
// this call is missing: it sends a datagram and reads on until that arrives.
func (c *Capture) Segments() []Segment {
	c.t.Helper()
	mark := []byte(rand.Text())
	conn, err := net.Dial("udp4", "127.0.0.1:9")
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(mark); err != nil {
		c.t.Fatal(err)
	}
	var segments []Segment
	c.file.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		packet := make([]byte, 256)
		n, err := c.file.Read(packet)
		if err != nil {
			c.t.Fatalf("capture: %v", err)
		}
		segment, ok := parse(packet[:n])
		if !ok {
			continue
		}
		if segment.UDP && bytes.Equal(segment.Data, mark) {
			c.checkComplete()
			return segments
		}
		segments = append(segments, segment)
	}
}

// checkComplete fails the test if the kernel had to drop packets from the capture.
func (c *Capture) checkComplete() {
	c.t.Helper()
	raw, err := c.file.SyscallConn()
	if err != nil {
		c.t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil {
			c.t.Fatal(err)
		}
		if stats.Drops > 0 {
			c.t.Fatalf("the capture lost %d packets", stats.Drops)
		}
	})
}
