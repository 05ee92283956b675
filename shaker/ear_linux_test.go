package shaker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// The filter passes on segments with an ACK to the ports of the wire, and nothing else.
func TestFilter(t *testing.T) {
	for _, first := range []uint16{1024, 32640, 65536 - portsPerWire} {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			filter, err := bpf.NewVM(answersTo(first, family))
			if err != nil {
				t.Fatal(err)
			}
			headers := []int{0} // of IPv6, the kernel passes on no header
			if family == unix.AF_INET {
				headers = []int{20, 24, 40, 60}
			}
			for _, header := range headers {
				for _, port := range []uint16{0, 80, first - 1, first, first + 1, first + portsPerWire/2,
					first + portsPerWire - 1, first + portsPerWire, 65535} {
					for flags := range 256 {
						segment := make([]byte, header+20)
						if header > 0 {
							segment[0] = 4<<4 | byte(header/4)
						}
						segment[header+2], segment[header+3] = byte(port>>8), byte(port)
						segment[header+13] = byte(flags)
						n, err := filter.Run(segment)
						want := port >= first && int(port) < int(first)+portsPerWire &&
							flags&flagACK != 0
						if err != nil || n >= len(segment) != want || n > 0 != want {
							t.Fatalf("ports from %d, IP header of %d bytes: of a segment to port %d "+
								"with the flags %#x, %d bytes pass, error %v, want all: %t",
								first, header, port, flags, n, err, want)
						}
					}
				}
				for n := range header + 14 {
					segment := make([]byte, n)
					if n > 0 && header > 0 {
						segment[0] = 4<<4 | byte(header/4)
					}
					if passed, err := filter.Run(segment); passed > 0 {
						t.Errorf("of %d bytes, %d pass, error %v, want none without the flags", n, passed, err)
					}
				}
			}
		}
	}
}

// A timestamp of the kernel counts unless the system's clock was set meanwhile, so that it is impossible. All times are
// in ms on the loop's clock.
func TestArrivedAt(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name                       string
		sent, timestamp, now, want time.Duration
	}{
		{name: "the answer was received at once", sent: 10, timestamp: 30, now: 30, want: 30},
		{name: "the process was stopped", sent: 10, timestamp: 30, now: 530, want: 30},
		{name: "the target is on this host", sent: 10, timestamp: 10, now: 11, want: 10},
		{name: "the clock was set forward by an hour", sent: 10, timestamp: 30 - 3600_000, now: 35, want: 35},
		{name: "the clock was set back by an hour", sent: 10, timestamp: 30 + 3600_000, now: 35, want: 35},
		{name: "no timestamp", sent: 10, timestamp: -1.8e12, now: 35, want: 35},
	} {
		if got := arrivedAt(c.sent*ms, c.timestamp*ms, c.now*ms); got != c.want*ms {
			t.Errorf("%s: arrivedAt(%v, %v, %v) = %v, want %v", c.name, c.sent*ms, c.timestamp*ms, c.now*ms, got,
				c.want*ms)
		}
	}
}

// startOneWithoutSockets starts a Shaker with a single loop, which has a wire, for the rest of the test.
func startOneWithoutSockets(tb testing.TB) (*Shaker, *loop) {
	tb.Helper()
	return startOneWith(tb, withoutSockets)
}

// needTimestamps returns when the kernel takes the time of packets as they arrive, and lets it do so for the rest of
// the test. It begins a moment after the first socket has asked for that; until then, the time is when they are
// received.
func needTimestamps(t *testing.T) {
	t.Helper()
	fd, err := socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeDescriptor(fd) })
	local, _ := newRawAddress(netip.MustParseAddrPort("127.0.0.1:0"), 0)
	for _, err := range []error{setInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1), bind(fd, &local)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	to := getsockname(fd)
	lab.Eventually(t, "the kernel takes the time of packets", func() bool {
		if errno := sendTo(fd, []byte{0}, &to); errno != 0 {
			t.Fatal(errno)
		}
		time.Sleep(5 * time.Millisecond)
		before := time.Now()
		control := make([]byte, unix.CmsgSpace(16))
		n, _, _, _, err := unix.Recvmsg(fd, make([]byte, 1), control, 0)
		if n != 1 || err != nil {
			t.Fatalf("recvmsg: %d bytes, error %v, want 1", n, err)
		}
		data := control[unix.CmsgLen(0):]
		return binary.NativeEndian.Uint64(data)*1e9+binary.NativeEndian.Uint64(data[8:]) < uint64(before.UnixNano())
	})
}

// A flood fills the receive buffer while the process cannot run, so that the answer is lost. This is a local error, and
// not a timeout. Without the flood, the answer counts although it is received long after the deadline.
func TestLostAnswers(t *testing.T) {
	needTimestamps(t)
	for _, target := range []netip.AddrPort{target4, target6} {
		for _, flood := range []int{0, 100_000} {
			t.Run(fmt.Sprintf("%v, flood of %d", target, flood), func(t *testing.T) {
				syns := make(chan simnet.Segment, 10)
				wire := simnet.NewWire(t, func(s simnet.Segment) [][]byte {
					if s.SYN && s.Dst == target {
						syns <- s
					}
					return nil
				}, "192.0.2.0/24", "2001:db8::/64")
				s, l := startOneWithoutSockets(t)
				done := make(chan error)
				var r Result
				go func() {
					var err error
					r, err = s.Shake(context.Background(), target, &Options{Timeout: 900 * time.Millisecond})
					done <- err
				}()
				syn := <-syns
				h := hold(l)
				began := time.Now()
				for range flood {
					forged := answering(syn, layers.TCP{SYN: true, ACK: true})
					forged.tcp.Ack += 1 << 31
					wire.Send(forged.packet())
				}
				answered := l.clock()
				wire.Send(syn.SYNACK())
				time.Sleep(time.Until(began.Add(time.Second))) // past the deadline
				close(h.release)
				err := <-done
				strays := s.Strays()
				if flood == 0 {
					if err != nil || r.Outcome != Open || r.Handshake > answered+10*time.Millisecond ||
						strays != (Strays{}) {
						t.Errorf("Shake(%v) = %+v, error %v, strays %+v, want Open and no strays", target, r, err,
							strays)
					}
					return
				}
				if !errors.Is(err, ErrLocal) || !errors.Is(err, unix.ENOBUFS) {
					t.Errorf("Shake(%v), whose answer was lost = %+v, error %v, want a local error, ENOBUFS", target,
						r, err)
				}
				if strays.Lost == 0 || strays.Lost+strays.Forged+strays.Late != uint64(flood)+1 {
					t.Errorf("strays %+v, want all %d forged answers and the genuine one, some of them lost", strays,
						flood)
				}
			})
		}
	}
}

// A flood that arrives while no handshake waits for an answer takes no room from the next ones.
func TestFloodBeforeAHandshake(t *testing.T) {
	for _, target := range []netip.AddrPort{target4, target6} {
		t.Run(target.String(), func(t *testing.T) {
			silent := netip.AddrPortFrom(target.Addr(), 9)
			wire := simnet.NewWire(t, func(s simnet.Segment) [][]byte {
				if s.SYN && s.Dst == target {
					return [][]byte{s.SYNACK()}
				}
				return nil
			}, "192.0.2.0/24", "2001:db8::/64")
			s, _ := startOneWithoutSockets(t)
			first := mustShake(t, s, target)
			const flood = 100_000
			forged := forgery{from: target, to: first.Local, tcp: layers.TCP{SYN: true, ACK: true,
				Ack: 1 << 31}}.packet()
			for range flood {
				wire.Send(forged)
			}
			if r := mustShake(t, s, target); r.Outcome != Open || r.SYNs != 1 {
				t.Errorf("Shake(%v) after a flood = %+v, want Open after one SYN", target, r)
			}
			if strays := s.Strays(); strays.Lost == 0 || strays.Lost+strays.Foreign+strays.Late != flood {
				t.Errorf("strays %+v, want all %d forged answers, some of them lost", strays, flood)
			}
			r, err := inTime(func() (Result, error) {
				return s.Shake(context.Background(), silent, &Options{Timeout: 300 * time.Millisecond})
			})
			if err != nil || r.Outcome != Timeout {
				t.Errorf("Shake(%v) after a flood = %+v, error %v, want Timeout: nothing was lost meanwhile", silent,
					r, err)
			}
		})
	}
}

// What arrived before a time is received although ICMP errors arrive meanwhile, which interrupt recvmmsg(2).
func TestReceiveAllDuringErrors(t *testing.T) {
	needTimestamps(t)
	trap := newTrap(t)
	syn, _ := trap.begin(target4, trap.shaker.Ports().First, 10*time.Minute)
	h := hold(trap.loop)
	defer close(h.release)
	e := trap.loop.wire.ears[0]
	forge := attacks()
	forged, icmp := forge[1].forge(syn, syn.Seq+1<<30), forge[2].forge(syn, syn.Seq+1<<30)
	stop := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				trap.wire.Send(forged, forged, forged, icmp)
			}
		}
	})
	defer flood.Wait()
	defer close(stop)
	for range 200 {
		time.Sleep(3 * time.Millisecond)
		now := time.Now()
		if !e.receiveAll(trap.loop, trap.loop.clock()) {
			continue
		}
		n, errno := receiveMany(e.fd, e.messages[:])
		for errno != 0 && errno != unix.EAGAIN { // an ICMP error
			e.receiveErrors(trap.loop)
			n, errno = receiveMany(e.fd, e.messages[:])
		}
		for i := range n {
			var a answer
			if at, ok := e.parse(i, &a); ok && at < now.Add(-time.Millisecond).UnixNano() {
				t.Fatalf("an answer arrived %v before receiveAll was called, and is left", now.Sub(time.Unix(0, at)))
			}
		}
	}
}
