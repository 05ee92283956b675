// Package capture records the packets on an interface, with the times at which the kernel captured them.
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

// A Capture is a record of the packets on an interface, in their order.
type Capture struct {
	t    testing.TB
	file *os.File
	mark string // destination of the datagram that marks the end of the record

	// outgoingOnly is for the loopback interface, which shows each packet twice. Only the outgoing packets
	// are in the order in which they were sent: each processor has a queue of its own for incoming packets.
	outgoingOnly bool
}

// Loopback starts a capture of the loopback interface. The capture stops when the test ends.
func Loopback(t testing.TB) *Capture {
	t.Helper()
	return Interface(t, "lo", netip.MustParseAddr("127.0.0.1"))
}

// Interface starts a capture of an interface. The address must be one that is reached through the interface.
// The capture stops when the test ends.
func Interface(t testing.TB, name string, address netip.Addr) *Capture {
	t.Helper()
	lab.Need(t)
	device, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	everything := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // in network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		lab.Skip(t, "needs packet sockets (CAP_NET_RAW, AF_PACKET): %v", err)
	}
	c := &Capture{t, os.NewFile(uintptr(fd), "capture"), netip.AddrPortFrom(address, 9).String(), address.IsLoopback()}
	t.Cleanup(func() { c.file.Close() })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20); err != nil {
		lab.Skip(t, "needs a large socket buffer (CAP_NET_ADMIN, SO_RCVBUFFORCE) to capture without loss: %v", err)
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

// Segments returns the segments that were captured since the last call. It sends a datagram and reads until
// the datagram arrives, so that no segment that was sent before the call is missing.
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

// read returns the next packet, whether it was outgoing, and when the kernel captured it.
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
		c.t.Fatalf("reading a captured packet: %v", err)
	}
	_, timestamp, _, err := unix.ParseOneSocketControlMessage(control)
	if err != nil {
		c.t.Fatalf("reading a captured packet: %v", err)
	}
	seconds, nanoseconds := binary.NativeEndian.Uint64(timestamp), binary.NativeEndian.Uint64(timestamp[8:])
	outgoing = from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING
	return packet[:n], outgoing, time.Unix(int64(seconds), int64(nanoseconds))
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
			c.t.Fatalf("the kernel dropped %d packets from the capture, want none", stats.Drops)
		}
	})
}
