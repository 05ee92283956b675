package shaker

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// withoutTimes returns the result without the fields that differ from run to run, or between the engines.
func withoutTimes(r Result) Result {
	r.Handshake, r.RTT, r.ResetLag, r.Waited, r.Local, r.options = 0, 0, 0, 0, netip.AddrPort{}, sharedOptions{}
	r.TTL = 0
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
			if r.Outcome != Open || r.Errno != 0 || r.Err() != nil || r.Peer != target || r.ACKSent || !r.ACKWithheld {
				t.Errorf("Shake(%v) = %+v, want Open without errno, error or ACK, and the target as Peer", target, r)
			}
			if took := time.Since(began); r.ResetLag > took || r.Handshake > took || (r.ResetLag <= 0) != isRaw() {
				t.Errorf("Shake(%v): ResetLag %v and Handshake %v, want both in the %v that it took",
					target, r.ResetLag, r.Handshake, took)
			}
			if (r.TTL != 0) != isRaw() {
				t.Errorf("Shake(%v): TTL %d, want it without a socket, and only then", target, r.TTL)
			}
			if r.Handshake <= 0 || r.RTT <= 0 || r.RTT > r.Handshake || r.MSS < 536 || r.SYNs != 1 {
				t.Errorf("Shake(%v) = %+v, want 0 < RTT <= Handshake, MSS >= 536 and one SYN", target, r)
			}
			if r.Local.Addr() != target.Addr() || r.Local.Port() == 0 || r.Local.Port() == target.Port() {
				t.Errorf("Shake(%v): Local %v, want the address of the target with another port", target, r.Local)
			}
		})
	}
}

func TestOpenIPv4MappedIPv6(t *testing.T) {
	target, _ := listen(t, "127.0.0.1:0")
	mapped := netip.AddrPortFrom(netip.AddrFrom16(target.Addr().As16()), target.Port())
	r := mustShake(t, start(t), mapped)
	if r.Outcome != Open || r.Peer != target {
		t.Errorf("Shake(%v) = %+v, want Open with Peer %v", mapped, r, target)
	}
}

func TestRefusedByRST(t *testing.T) {
	lab.Need(t)
	s := start(t)
	for _, address := range []string{"127.0.0.1:1", "[::1]:1"} {
		target := netip.MustParseAddrPort(address)
		r := mustShake(t, s, target)
		if !r.Local.IsValid() {
			t.Errorf("Shake(%v): Local %v, want a valid one: a SYN was sent", target, r.Local)
		}
		want := Result{Outcome: Refused, Errno: unix.ECONNREFUSED, SYNs: 1, Peer: target}
		if got := withoutTimes(r); got != want {
			t.Errorf("Shake(%v) =\n     %+v\nwant %+v", target, got, want)
		}
	}
}

// A passed deadline is a verdict, wherever it was set. If there are several, the soonest applies.
func TestDeadlines(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	target := netip.MustParseAddrPort("192.0.2.1:80")
	const short, long = 50 * time.Millisecond, time.Hour
	for name, c := range map[string]struct{ config, options, context time.Duration }{
		"config":                   {config: short},
		"options":                  {options: short},
		"context":                  {context: short},
		"options before config":    {config: long, options: short},
		"context before config":    {config: long, context: short},
		"context before options":   {options: long, context: short},
		"options before context":   {options: short, context: long},
		"config is only a default": {config: 1, options: short},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := New(&Config{Options: Options{Timeout: c.config}})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var options *Options
			if c.options > 0 {
				options = &Options{Timeout: c.options}
			}
			var began time.Time
			r, err := inTime(func() (Result, error) {
				ctx := context.Background()
				began = time.Now()
				if c.context > 0 {
					limited, cancel := context.WithTimeout(ctx, c.context)
					defer cancel()
					ctx = limited
				}
				return s.Shake(ctx, target, options)
			})
			if err != nil || r.Outcome != Timeout {
				t.Errorf("Shake of a silent target = %+v, error %v, want Timeout", r, err)
			}
			if took := time.Since(began); took < short {
				t.Errorf("Shake of a silent target returned after %v, want %v or more", took, short)
			}
		})
	}
}

// A hiddenDeadline is a context that does not report its deadline.
type hiddenDeadline struct{ context.Context }

func (hiddenDeadline) Deadline() (time.Time, bool) { return time.Time{}, false }

func TestHiddenDeadline(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	s := start(t)
	r, err := inTime(func() (Result, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		return s.Shake(hiddenDeadline{ctx}, netip.MustParseAddrPort("192.0.2.1:80"), nil)
	})
	if err != nil || r.Outcome != Timeout {
		t.Errorf("Shake of a silent target = %+v, error %v, want Timeout", r, err)
	}
}

// A deadline without a monotonic clock reading is a time of the wall clock. It is not affected by how the wall
// clock was set before the call of Shake, here from an hour ahead.
func TestDeadlineOfTheWallClock(t *testing.T) {
	target, _ := listen(t, "127.0.0.1:0")
	s, l := startOne(t)
	h := hold(l)
	const second = 1 << 30 // in the first word of a time.Time with a monotonic clock reading
	before := l.epoch
	*(*uint64)(unsafe.Pointer(&l.epoch)) += 3600 * second
	if wall := l.epoch.Round(0).Sub(before.Round(0)); wall != time.Hour || l.epoch.Sub(before) != 0 {
		t.Fatalf("the test did not provoke its case: the wall clock was %v ahead, the monotonic one %v",
			wall, l.epoch.Sub(before))
	}
	close(h.release)
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(time.Minute).Round(0))
	defer cancel()
	if r, err := s.Shake(ctx, target, nil); err != nil || r.Outcome != Open {
		t.Errorf("Shake(%v) a minute before the deadline = %+v, error %v, want Open", target, r, err)
	}
}

// An RST follows right after the SYN-ACK. Both arrive before the loop looks for events again.
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
		t.Errorf("Shake(%v): RTT %v, want more than 0: a SYN-ACK arrived", target, got.RTT)
	}
	want := Result{Outcome: Reset, Errno: unix.ECONNRESET, SYNs: 1, MSS: 1400, ACKWithheld: true, Peer: target}
	if got := withoutTimes(got); got != want {
		t.Errorf("Shake(%v) =\n     %+v\nwant %+v", target, got, want)
	}
	assertNoACK(t, wire)
}

// A FIN follows the SYN-ACK, and much later an RST. In this case the kernel sends the ACK, and the
// errno is EPIPE.
func TestResetAfterFIN(t *testing.T) {
	s, l := startOne(t)
	var wire *simnet.Wire
	wire = simnet.NewWire(t, func(syn simnet.Segment) [][]byte {
		if syn.SYN {
			h := hold(l)
			wire.Send(syn.SYNACK(), syn.Finish())
			go func() {
				wire.Await(2) // the ACK for SYN-ACK and FIN
				wire.Send(syn.ResetAfterFinish())
				close(h.release)
			}()
		}
		return nil
	}, "192.0.2.0/24")
	target := netip.MustParseAddrPort("192.0.2.1:80")
	want := Result{Outcome: Reset, Errno: unix.EPIPE, SYNs: 1, MSS: 1400, ACKSent: true, Peer: target}
	if got := withoutTimes(mustShake(t, s, target)); got != want {
		t.Errorf("Shake(%v) =\n     %+v\nwant %+v", target, got, want)
	}
}

// A SYN-ACK arrives after the loop has collected events, and the loop finds it at the deadline. The
// handshake took until then, and not until the events were collected.
func TestSYNACKAtTheDeadline(t *testing.T) {
	s, l := startOne(t)
	syns := make(chan simnet.Segment, 1)
	wire := simnet.NewWire(t, func(segment simnet.Segment) [][]byte {
		if segment.SYN {
			syns <- segment
		}
		return nil
	}, "192.0.2.0/24")
	wait := goShake(t, s, netip.MustParseAddrPort("192.0.2.1:80"))
	syn := <-syns
	const later = 50 * time.Millisecond
	flag := newFlagTask(t)
	flag.onReady = func(l *loop) {
		l.deadlines[0].due = 1 // it passes while the events are being handled
		time.Sleep(later)
		wire.Send(syn.SYNACK())
		flag.end(l)
	}
	l.submit(flag, interactive, 0)
	close(hold(l).release) // by now the flag is watched
	flag.set()
	if r := wait(); r.Outcome != Open || r.Handshake < later || r.RTT > r.Handshake || r.ResetLag >= later {
		t.Errorf("Shake = %+v, want Open, Handshake >= %v and >= RTT, ResetLag < %v", r, later, later)
	}
}

// The errno of an RST is gone before the loop reads it: the connection is closed without a reason.
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
	want := Result{Outcome: Failed, Errno: unix.ECONNABORTED, SYNs: 1, Peer: target}
	if got := withoutTimes(mustShake(t, s, target)); got != want {
		t.Errorf("Shake(%v) =\n     %+v\nwant %+v", target, got, want)
	}
}

// takeSocketError reads, and so clears, the pending error of the only handshake of a stopped loop.
func takeSocketError(t *testing.T, l *loop, want unix.Errno) {
	t.Helper()
	for _, h := range handshakes(l) {
		if errno, err := socketError(h.fd); errno != want || err != nil {
			t.Errorf("the test did not provoke its case: SO_ERROR is %v, error %v, want %v", errno, err, want)
		}
	}
}

// An ICMP error in the queue is enough. SO_ERROR may be gone, because reading the queue clears the
// SO_ERROR of an error that arrives between the two calls.
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
	want := Result{Outcome: Unreachable, Errno: unix.EHOSTUNREACH, SYNs: 1, Peer: target,
		ICMP: ICMP{From: router, Type: 3, Code: 1}}
	if got := withoutTimes(mustShake(t, s, target)); got != want {
		t.Errorf("Shake(%v) =\n     %+v\nwant %+v", target, got, want)
	}
}

// An ICMP error that arrives while connect(2) has the socket locked does not close the socket. A
// reject rule in this host's own output path causes that every time. After a soft error the
// handshake goes on, because the next SYN may be answered. Without a socket, nothing is locked, and the error ends the
// handshake.
func TestICMPErrorDuringConnect(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	lab.Need(t)
	localhost := netip.MustParseAddr("127.0.0.1")
	ownUnreachable := ICMP{From: localhost, Type: 3, Code: 1, Own: true}
	ownProhibited := ICMP{From: localhost, Type: 3, Code: 13, Own: true}
	for rule, want := range map[string]Result{
		"limit rate 1/hour burst 1 packets reject with icmp type host-unreachable": {
			Outcome: Open, SYNs: 2, MSS: 32741, ACKWithheld: true,
		},
		"reject with icmp type host-unreachable": {
			Outcome: Unreachable, Errno: unix.EHOSTUNREACH, SYNs: 2, ICMP: ownUnreachable,
		},
		"limit rate 1/hour burst 1 packets reject with icmp type admin-prohibited": {
			Outcome: Prohibited, Errno: unix.EHOSTUNREACH, SYNs: 1, ICMP: ownProhibited,
		},
		"reject with icmp type admin-prohibited": {
			Outcome: Prohibited, Errno: unix.EHOSTUNREACH, SYNs: 1, ICMP: ownProhibited,
		},
		"reject with tcp reset": {
			Outcome: Refused, Errno: unix.ECONNREFUSED, SYNs: 1,
		},
	} {
		t.Run(rule, func(t *testing.T) {
			target, _ := listen(t, "127.0.0.1:0")
			want.Peer = target
			if isRaw() && want.SYNs == 2 {
				want.Outcome, want.Errno, want.ICMP = Unreachable, unix.EHOSTUNREACH, ownUnreachable
				want.SYNs, want.MSS, want.ACKWithheld = 1, 0, false
			}
			kernel.Firewall(t, "chain output { type filter hook output priority 0; tcp flags syn / syn,ack "+rule+"; }")
			s := start(t)
			if got := withoutTimes(mustShake(t, s, target)); got != want {
				t.Errorf("Shake(%v) =\n     %+v\nwant %+v", target, got, want)
			}
			if want.Outcome != Unreachable {
				return
			}
			if strings.HasPrefix(rule, "limit") {
				return // the next SYN is answered
			}
			// If the deadline is sooner than the next SYN, the ICMP error is the verdict.
			got, err := s.Shake(t.Context(), target, &Options{Timeout: 100 * time.Millisecond})
			if want.SYNs = 1; err != nil || withoutTimes(got) != want {
				t.Errorf("Shake(%v) within 100 ms =\n     %+v, error %v\nwant %+v",
					target, withoutTimes(got), err, want)
			}
			// The time of the error counts, and not the deadline. A stall of the machine may delay one.
			const timeout = 400 * time.Millisecond
			waited := timeout
			for range 5 {
				if got, err := s.Shake(t.Context(), target, &Options{Timeout: timeout}); err == nil {
					waited = min(waited, got.Waited)
				}
			}
			if waited <= 0 || waited > timeout/2 {
				t.Errorf("Shake(%v) within %v: Waited %v, want the time of the ICMP error, during connect(2)",
					target, timeout, waited)
			}
		})
	}
}

// The output firewall of this host drops every SYN. From the first retransmission on, that is a local error.
// Before, it cannot be told from silence, and SYNs that are lost on the way are silence, too. Without a socket, it is a
// local error at once.
func TestOwnFirewallDrops(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	simnet.NewWire(t, nil, "192.0.2.0/24", "2001:db8::/32")
	const chain = "chain output { type filter hook output priority 0; tcp flags syn / syn,ack drop; }"
	const short, long = 100 * time.Millisecond, 1500 * time.Millisecond
	s := start(t)
	for _, target := range targets {
		for _, c := range []struct {
			drops   bool
			timeout time.Duration
			want    error
		}{
			{drops: true, timeout: long, want: errDropped},
			{drops: true, timeout: short, want: os.ErrDeadlineExceeded},
			{timeout: long, want: os.ErrDeadlineExceeded},
		} {
			remove := func() {}
			if c.drops {
				remove = kernel.Firewall(t, chain)
			}
			r, err := inTime(func() (Result, error) {
				return s.Shake(t.Context(), target, &Options{Timeout: c.timeout})
			})
			remove()
			if c.drops && isRaw() {
				c.want = errDropped
			}
			local := c.want == errDropped
			if err == nil {
				err = r.Err()
			}
			if !errors.Is(err, c.want) || errors.Is(err, ErrLocal) != local || errors.Is(err, unix.EPERM) != local {
				t.Errorf("Shake(%v, timeout %v), SYNs dropped here: %t: error %v, want %v",
					target, c.timeout, c.drops, err, c.want)
			}
		}
	}
}

// A route of this host that rejects packets to the target is a verdict, too.
func TestOwnRoutes(t *testing.T) {
	lab.Need(t)
	target := netip.MustParseAddrPort("192.0.2.1:80")
	for _, c := range []struct {
		name  string
		route int // its type, 0 for no route
		want  Result
	}{
		{
			name: "none",
			want: Result{Outcome: Unreachable, Errno: unix.ENETUNREACH, Peer: target},
		},
		{
			name:  "unreachable",
			route: unix.RTN_UNREACHABLE,
			want:  Result{Outcome: Unreachable, Errno: unix.EHOSTUNREACH, Peer: target},
		},
		{
			name:  "prohibit",
			route: unix.RTN_PROHIBIT,
			want:  Result{Outcome: Prohibited, Errno: unix.EACCES, Peer: target},
		},
		{
			name:  "blackhole",
			route: unix.RTN_BLACKHOLE,
			want:  Result{Outcome: Unreachable, Errno: unix.EINVAL, Peer: target},
		},
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
			// No SYN is sent, so there is no Local.
			if got := mustShake(t, start(t), target); got != c.want {
				t.Errorf("Shake(%v) =\n     %+v\nwant %+v", target, got, c.want)
			}
		})
	}
}

// If IPv6 is disabled on this host, IPv6 targets are unreachable. The errno is the same as for
// exhausted local ports, which are a local error: see TestLocalErrorsAreNotVerdicts.
func TestWithoutSourceAddress(t *testing.T) {
	kernel.Sysctl(t, "net.ipv6.conf.all.disable_ipv6", "1")
	for _, address := range []string{"[::1]:80", "[2001:db8::1]:80"} {
		target := netip.MustParseAddrPort(address)
		r := mustShake(t, start(t), target)
		want := Result{Outcome: Unreachable, Errno: unix.EADDRNOTAVAIL, Peer: target}
		if target.Addr() != netip.IPv6Loopback() && r.Errno == unix.ENETUNREACH {
			want.Errno = unix.ENETUNREACH // there is no route, either
		}
		if r != want || errors.Is(r.Err(), ErrLocal) {
			t.Errorf("Shake(%v) =\n     %+v\nwant %+v, and no ErrLocal", target, r, want)
		}
	}
}

// A child process that is started during a handshake inherits none of the descriptors.
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
	for _, h := range handshakes(l) {
		descriptors = append(descriptors, h.fd)
	}
	if len(descriptors) != 2 {
		t.Errorf("%d descriptors, want 2, those of the loop and of one handshake: %v", len(descriptors), descriptors)
	}
	for _, fd := range descriptors {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d has the flags %d, error %v, want FD_CLOEXEC", fd, flags, err)
		}
	}
	close(h.release)
	cancel()
	<-done
}
