package shaker

import (
	"context"
	"net"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// withoutTimes returns the result without what differs from run to run.
func withoutTimes(r Result) Result {
	r.Handshake, r.RTT, r.ResetLag, r.answered, r.Local = 0, 0, 0, 0, netip.AddrPort{}
	return r
}

func TestOpen(t *testing.T) {
	lab.Need(t)
	addAddress(t, "lo", "fe80::1/64")
	s := start(t)
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "[fe80::1%lo]:0"} {
		t.Run(address, func(t *testing.T) {
			target, _ := listen(t, address)
			began := time.Now()
			r := mustShake(t, s, target)
			if r.Outcome != Open || r.Errno != 0 || r.Err() != nil || r.Peer != target || r.ACKSent {
				t.Errorf("%+v", r)
			}
			if r.ResetLag <= 0 || r.ResetLag > time.Since(began) || r.Handshake > time.Since(began) {
				t.Errorf("within %v, handshake %v and reset lag %v", time.Since(began), r.Handshake, r.ResetLag)
			}
			if r.Handshake <= 0 || r.RTT <= 0 || r.RTT > r.Handshake || r.MSS < 536 || r.SYNRetransmits != 0 {
				t.Errorf("measured %+v", r)
			}
			if r.Local.Addr() != target.Addr() || r.Local.Port() == 0 || r.Local.Port() == target.Port() {
				t.Errorf("local address %v", r.Local)
			}
		})
	}
}

func TestOpenIPv4MappedIPv6(t *testing.T) {
	target, _ := listen(t, "127.0.0.1:0")
	mapped := netip.AddrPortFrom(netip.AddrFrom16(target.Addr().As16()), target.Port())
	r := mustShake(t, start(t), mapped)
	if r.Outcome != Open || r.Peer != target {
		t.Errorf("%v: %+v", mapped, r)
	}
}

func TestRefusedByRST(t *testing.T) {
	lab.Need(t)
	s := start(t)
	for _, address := range []string{"127.0.0.1:1", "[::1]:1"} {
		target := netip.MustParseAddrPort(address)
		r := mustShake(t, s, target)
		if !r.Local.IsValid() {
			t.Errorf("%v: a SYN was sent, but Local is %v", target, r.Local)
		}
		if got, want := withoutTimes(r), (Result{Outcome: Refused, Errno: unix.ECONNREFUSED, Peer: target}); got != want {
			t.Errorf("%v:\n got %+v\nwant %+v", target, got, want)
		}
	}
}

// A passed deadline is a verdict wherever it was set, and the sooner one counts.
func TestDeadlines(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	target := netip.MustParseAddrPort("192.0.2.1:80")
	const short, long = 50 * time.Millisecond, time.Hour
	for name, c := range map[string]struct{ config, options, context time.Duration }{
		"config":                   {config: short},
		"options":                  {options: short},
		"context":                  {context: short},
		"options before config":    {config: long, options: short},
		"context before options":   {options: long, context: short},
		"options before context":   {options: short, context: long},
		"config is only a default": {config: 1, options: short},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := New(&Config{Timeout: c.config})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			ctx := context.Background()
			if c.context > 0 {
				limited, cancel := context.WithTimeout(ctx, c.context)
				defer cancel()
				ctx = limited
			}
			began := time.Now()
			r, err := s.Shake(ctx, target, &Options{Timeout: c.options})
			if err != nil || r.Outcome != Timeout {
				t.Errorf("%+v, %v", r, err)
			}
			if took := time.Since(began); took < short {
				t.Errorf("gave up after %v", took)
			}
		})
	}
}

// lateContext is a context whose deadline nobody was told of.
type lateContext struct{ context.Context }

func (lateContext) Deadline() (time.Time, bool) { return time.Time{}, false }

func TestDeadlineOfAContextThatDoesNotTellIt(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	r, err := start(t).Shake(lateContext{ctx}, netip.MustParseAddrPort("192.0.2.1:80"), nil)
	if err != nil || r.Outcome != Timeout {
		t.Errorf("%+v, %v", r, err)
	}
}

// A SYN-ACK and an RST right behind it: both are there before the loop looks again.
func TestResetAfterSYNACK(t *testing.T) {
	s, l := startOne(t)
	var wire *simnet.Wire
	wire = simnet.NewWire(t, func(syn simnet.Segment) [][]byte {
		if syn.SYN {
			h := hold(l)
			wire.Send(syn.SYNACK(), syn.Reset())
			close(h.release)
		}
		return nil
	}, "192.0.2.0/24")
	target := netip.MustParseAddrPort("192.0.2.1:80")
	got := mustShake(t, s, target)
	if got.RTT <= 0 {
		t.Errorf("RTT %v, though a SYN-ACK came", got.RTT)
	}
	if got, want := withoutTimes(got), (Result{Outcome: Reset, Errno: unix.ECONNRESET, MSS: 1400, Peer: target}); got != want {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
	assertNoACK(t, wire)
}

// A SYN-ACK, a FIN, and much later an RST. Here the ACK does leave, and the errno is another.
func TestResetAfterFIN(t *testing.T) {
	s, l := startOne(t)
	var wire *simnet.Wire
	wire = simnet.NewWire(t, func(syn simnet.Segment) [][]byte {
		if syn.SYN {
			h := hold(l)
			wire.Send(syn.SYNACK(), syn.Finish())
			go func() {
				wire.Await(2) // the ACK of both
				wire.Send(syn.ResetAfterFinish())
				close(h.release)
			}()
		}
		return nil
	}, "192.0.2.0/24")
	target := netip.MustParseAddrPort("192.0.2.1:80")
	got := mustShake(t, s, target)
	if got, want := withoutTimes(got), (Result{Outcome: Reset, Errno: unix.EPIPE, MSS: 1400, ACKSent: true, Peer: target}); got != want {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
}

// A SYN-ACK that comes after the loop has looked for events and is found at the deadline:
// the handshake took until then, not until the look before.
func TestSYNACKAtTheDeadline(t *testing.T) {
	s, l := startOne(t)
	syns := make(chan simnet.Segment, 1)
	wire := simnet.NewWire(t, func(segment simnet.Segment) [][]byte {
		if segment.SYN {
			syns <- segment
		}
		return nil
	}, "192.0.2.0/24")
	done := make(chan Result)
	go func() { done <- mustShake(t, s, netip.MustParseAddrPort("192.0.2.1:80")) }()
	syn := <-syns
	const later = 50 * time.Millisecond
	flag := newFlagTask(t)
	flag.onReady = func(l *loop) {
		l.deadlines[0].deadline = 1 // it passes, now that the events are being handled
		time.Sleep(later)
		wire.Send(syn.SYNACK())
		flag.end(l)
	}
	l.submit(flag, 0)
	close(hold(l).release) // by now the flag is watched
	flag.set()
	if r := <-done; r.Outcome != Open || r.Handshake < later || r.RTT > r.Handshake || r.ResetLag >= later {
		t.Errorf("%+v", r)
	}
}

// An RST whose errno is gone before the loop looks: the connection is closed, for no reason
// that is left.
func TestRefusedWithoutSocketError(t *testing.T) {
	s, l := startOne(t)
	var wire *simnet.Wire
	wire = simnet.NewWire(t, func(syn simnet.Segment) [][]byte {
		h := hold(l)
		defer close(h.release)
		wire.Send(syn.Refusal())
		takeSocketError(t, l, unix.ECONNREFUSED)
		return nil
	}, "192.0.2.0/24")
	target := netip.MustParseAddrPort("192.0.2.1:80")
	if got, want := withoutTimes(mustShake(t, s, target)), (Result{Outcome: Failed, Errno: unix.ECONNABORTED, Peer: target}); got != want {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
}

// takeSocketError takes the errno from the only socket of a Shaker that is held up.
func takeSocketError(t *testing.T, l *loop, want unix.Errno) {
	t.Helper()
	for _, slot := range l.slots.all {
		if handshake, ok := slot.task.(*handshake); ok {
			if errno, err := socketError(handshake.fd); errno != want || err != nil {
				t.Errorf("nothing was provoked: SO_ERROR %v, %v", errno, err)
			}
		}
	}
}

// The queued error is enough: SO_ERROR may be gone, which is what reading the queue does to
// an error that comes between the two readings.
func TestICMPErrorWithoutSocketError(t *testing.T) {
	s, l := startOne(t)
	router := netip.MustParseAddr("198.51.100.7")
	var wire *simnet.Wire
	wire = simnet.NewWire(t, func(syn simnet.Segment) [][]byte {
		h := hold(l)
		defer close(h.release)
		wire.Send(syn.ICMPError(router, 3, 1))
		takeSocketError(t, l, unix.EHOSTUNREACH)
		return nil
	}, "192.0.2.0/24", "198.51.100.0/24")
	target := netip.MustParseAddrPort("192.0.2.1:80")
	want := Result{Outcome: Unreachable, Errno: unix.EHOSTUNREACH, Peer: target, ICMP: ICMP{From: router, Type: 3, Code: 1}}
	if got := withoutTimes(mustShake(t, s, target)); got != want {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
}

// An ICMP error that comes while connect(2) holds the socket leaves the connection as it is.
// A reject rule in this host's own output path does that every time. A soft one is not the
// last word: the next SYN may be answered.
func TestICMPErrorDuringConnect(t *testing.T) {
	lab.Need(t)
	nft := lab.Program(t, "nft", "nftables")
	for rule, want := range map[string]Result{
		"limit rate 1/hour burst 1 packets reject with icmp type host-unreachable": {Outcome: Open, SYNRetransmits: 1, MSS: 32741},
		"reject with icmp type host-unreachable": {Outcome: Unreachable, Errno: unix.EHOSTUNREACH, SYNRetransmits: 1,
			ICMP: ICMP{From: netip.MustParseAddr("127.0.0.1"), Type: 3, Code: 1, Own: true}},
		"limit rate 1/hour burst 1 packets reject with icmp type admin-prohibited": {Outcome: Prohibited, Errno: unix.EHOSTUNREACH,
			ICMP: ICMP{From: netip.MustParseAddr("127.0.0.1"), Type: 3, Code: 13, Own: true}},
		"reject with icmp type admin-prohibited": {Outcome: Prohibited, Errno: unix.EHOSTUNREACH,
			ICMP: ICMP{From: netip.MustParseAddr("127.0.0.1"), Type: 3, Code: 13, Own: true}},
		"reject with tcp reset": {Outcome: Refused, Errno: unix.ECONNREFUSED},
	} {
		t.Run(rule, func(t *testing.T) {
			target, _ := listen(t, "127.0.0.1:0")
			want.Peer = target
			commands := "table ip lab { chain output { type filter hook output priority 0; tcp flags syn / syn,ack " + rule + "; }; }"
			if out, err := exec.Command(nft, commands).CombinedOutput(); err != nil {
				t.Fatalf("nft: %v: %s", err, out)
			}
			defer exec.Command(nft, "delete table ip lab").Run()
			s := start(t)
			if got := withoutTimes(mustShake(t, s, target)); got != want {
				t.Errorf("\n got %+v\nwant %+v", got, want)
			}
			if want.Outcome != Unreachable {
				return
			}
			// If the deadline is sooner than the next SYN, the error is the verdict.
			got, err := s.Shake(t.Context(), target, &Options{Timeout: 100 * time.Millisecond})
			if want.SYNRetransmits = 0; err != nil || withoutTimes(got) != want {
				t.Errorf("\n got %+v, %v\nwant %+v", withoutTimes(got), err, want)
			}
		})
	}
}

// What this host's own routing table says about a target is a verdict too.
func TestOwnRoutes(t *testing.T) {
	lab.Need(t)
	target := netip.MustParseAddrPort("192.0.2.1:80")
	for _, c := range []struct {
		name    string
		route   int
		outcome Outcome
		errno   unix.Errno
	}{
		{"none", 0, Unreachable, unix.ENETUNREACH},
		{"unreachable", unix.RTN_UNREACHABLE, Unreachable, unix.EHOSTUNREACH},
		{"prohibit", unix.RTN_PROHIBIT, Prohibited, unix.EACCES},
		{"blackhole", unix.RTN_BLACKHOLE, Failed, unix.EINVAL},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.route != 0 {
				_, prefix, _ := net.ParseCIDR("192.0.2.0/24")
				route := &netlink.Route{Dst: prefix, Type: c.route}
				if err := netlink.RouteAdd(route); err != nil {
					t.Fatal(err)
				}
				defer netlink.RouteDel(route)
			}
			r := mustShake(t, start(t), target)
			// No SYN was sent, so that there is no Local.
			if want := (Result{Outcome: c.outcome, Errno: c.errno, Peer: target}); r != want {
				t.Errorf("\n got %+v\nwant %+v", r, want)
			}
		})
	}
}

// Without IPv6 on this host no IPv6 address can be reached. Its errno is that of a lack of
// local ports as well, which is a fault: see TestFaultsAreNotVerdicts.
func TestWithoutSourceAddress(t *testing.T) {
	kernel.Sysctl(t, "net.ipv6.conf.all.disable_ipv6", "1")
	for _, address := range []string{"[::1]:80", "[2001:db8::1]:80"} {
		target := netip.MustParseAddrPort(address)
		r := mustShake(t, start(t), target)
		want := Result{Outcome: Unreachable, Errno: unix.EADDRNOTAVAIL, Peer: target}
		if target.Addr() != netip.IPv6Loopback() && r.Errno == unix.ENETUNREACH {
			want.Errno = unix.ENETUNREACH // there is no route either
		}
		if r != want {
			t.Errorf("\n got %+v\nwant %+v", r, want)
		}
	}
}

// A child process that is started meanwhile has none of the descriptors.
func TestDescriptorsAreNotInherited(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	s, l := startOne(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Shake(ctx, netip.MustParseAddrPort("192.0.2.1:80"), nil)
	}()
	wire.Await(1)
	h := hold(l)
	descriptors := []int{l.epoll}
	for _, slot := range l.slots.all {
		if handshake, ok := slot.task.(*handshake); ok {
			descriptors = append(descriptors, handshake.fd)
		}
	}
	if len(descriptors) != 2 {
		t.Errorf("descriptors %v, want those of the loop and of one handshake", descriptors)
	}
	for _, fd := range descriptors {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d: flags %d, %v", fd, flags, err)
		}
	}
	close(h.release)
	cancel()
	<-done
}
