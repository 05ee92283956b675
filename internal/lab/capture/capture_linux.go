// Package capture records the packets on an interface, with the times at which the kernel saw them.
package capture

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// A Capture records the packets on an interface, in their order.
type Capture struct {
	t    testing.TB
	file *os.File
	mark string // where a datagram goes to that is the last one to be captured

	// Loopback shows each packet twice. Going out they are in the order in which they
	// were sent, coming in each processor has its own queue of them.
	outgoingOnly bool
}

// Loopback starts a capture of the loopback interface that ends with the test.
func Loopback(t testing.TB) *Capture {
	t.Helper()
	return Interface(t, "lo", netip.MustParseAddr("127.0.0.1"))
}

// Interface starts a capture of the interface through which the address is reached. It ends with
// the test.
func Interface(t testing.TB, name string, address netip.Addr) *Capture {
	t.Helper()
	lab.Need(t)
	device, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	everything := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		lab.Skip(t, "needs AF_PACKET: %v", err)
	}
	c := &Capture{t, os.NewFile(uintptr(fd), "capture"), netip.AddrPortFrom(address, 9).String(), address.IsLoopback()}
	t.Cleanup(func() { c.file.Close() })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20); err != nil {
		lab.Skip(t, "needs a large buffer to capture without loss: %v", err)
	}
	for _, err := range []error{
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: device.Index}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// Segments returns what was captured since the last call. Nothing that was sent before
// this call is missing: it sends a datagram and reads on until that arrives.
func (c *Capture) Segments() []simnet.Segment {
	c.t.Helper()
	mark := []byte(rand.Text())
	conn, err := net.Dial("udp4", c.mark)
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(mark); err != nil {
		c.t.Fatal(err)
	}
	var segments []simnet.Segment
	c.file.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		packet, outgoing, at := c.read()
		segment, ok := simnet.Parse(packet)
		if !ok || c.outgoingOnly && !outgoing {
			continue
		}
		segment.Time = at
		if segment.UDP && bytes.Equal(segment.Data, mark) {
			c.checkComplete()
			return segments
		}
		segments = append(segments, segment)
	}
}

// read returns the next packet, whether it was going out, and when the kernel captured it.
func (c *Capture) read() (packet []byte, outgoing bool, at time.Time) {
	c.t.Helper()
	raw, err := c.file.SyscallConn()
	if err != nil {
		c.t.Fatal(err)
	}
	packet = make([]byte, 256)
	control := make([]byte, unix.CmsgSpace(16)) // one message, of two 64-bit numbers
	var n int
	var from unix.Sockaddr
	var errno error
	err = raw.Read(func(fd uintptr) bool {
		n, _, _, from, errno = unix.Recvmsg(int(fd), packet, control, 0)
		return errno != unix.EAGAIN
	})
	if err := errors.Join(err, errno); err != nil {
		c.t.Fatalf("capture: %v", err)
	}
	_, timestamp, _, err := unix.ParseOneSocketControlMessage(control)
	if err != nil {
		c.t.Fatalf("capture: %v", err)
	}
	seconds, nanoseconds := binary.NativeEndian.Uint64(timestamp), binary.NativeEndian.Uint64(timestamp[8:])
	return packet[:n], from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING, time.Unix(int64(seconds), int64(nanoseconds))
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
