package shaker

import (
	"context"
	"encoding/binary"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// eachEngine runs a test with sockets, and then without. The test starts its Shakers with start, and is not parallel.
func eachEngine(t *testing.T, test func(*testing.T)) {
	t.Run("sockets", test)
	t.Run("raw", func(t *testing.T) { withoutSocketsIn(t); test(t) })
}

// withoutSocketsIn lets the Shakers of a test send SYNs without sockets.
func withoutSocketsIn(t *testing.T) {
	sockets := startConfig
	startConfig = withoutSockets
	t.Cleanup(func() { startConfig = sockets })
}

// Without sockets the network is the same: these tests of sockets pass, too.
func TestRaw(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	repeatWithoutSockets(t,
		TestOpen,
		TestOpenIPv4MappedIPv6,
		TestRefusedByRST,
		TestDeadlines,
		TestHiddenDeadline,
		TestDeadlineOfTheWallClock,
		TestICMPErrorDuringConnect,
		TestOwnFirewallDrops,
		TestOwnRoutes,
		TestWithoutSourceAddress,
		TestOwnErrorOfEachAddress,

		TestSource,
		TestLinkLocalSource,
		TestInterface,
		TestVRF,
		TestInterfaceWithoutAddress,
		TestDSCP,
		TestTTL,
		TestMark,
		TestUnavailableOptions,
		TestMismatchedZone,

		TestCallerInAnotherNamespace,
		TestNewInAnotherNamespace,
	)
}

// These tests need the processors for themselves.
func TestRawLoop(t *testing.T) {
	repeatWithoutSockets(t,
		TestVerdictsAreNotMixedUp,
		TestRSTBeforeShakeReturns,
		TestEveryWaiterIsCompletedOnce,
		TestDeadlinesOfSilentTargets,
		TestDeadlineBeforeSYN,
		TestCancellationWhileQueued,
		TestLateStart,
		TestBusyCallers,
	)
}

// repeatWithoutSockets runs tests of sockets with Shakers that send SYNs without sockets.
func repeatWithoutSockets(t *testing.T, tests ...func(*testing.T)) {
	t.Helper()
	withoutSocketsIn(t)
	for _, test := range tests {
		name := runtime.FuncForPC(reflect.ValueOf(test).Pointer()).Name()
		t.Run(name[strings.LastIndex(name, ".")+1:], test)
	}
}

// After several SYNs, the RTT is that of the SYN whose timestamp the answer echoes, also when the clock of timestamps
// has wrapped around. An echo of none of the SYNs is not a sample.
func TestSampleRTT(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name     string
		begin    time.Duration // when the first SYN was sent
		echoed   time.Duration // after begin
		foreign  bool          // the echo is 0
		min, max time.Duration
	}{
		{name: "the last SYN", begin: time.Hour, echoed: 3000 * ms, min: 50 * ms, max: 50 * ms},
		{name: "the first SYN", begin: time.Hour, echoed: 0, min: 3049 * ms, max: 3051 * ms},
		{name: "the second SYN", begin: time.Hour, echoed: 1000 * ms, min: 2049 * ms, max: 2051 * ms},
		{name: "the last SYN, after 60 days", begin: 60 * 24 * time.Hour, echoed: 3000 * ms, min: 50 * ms,
			max: 50 * ms},
		{name: "the first SYN, after 60 days", begin: 60 * 24 * time.Hour, echoed: 0, min: 3049 * ms, max: 3051 * ms},
		{name: "the first SYN, while the clock wraps", begin: (1<<32 - 1500) * ms, min: 3049 * ms, max: 3051 * ms},
		{name: "none", begin: time.Hour, foreign: true},
	} {
		h := newHandshake()
		h.sent, h.raw.last, h.raw.stamp = c.begin, c.begin+3000*ms, 12345
		echo := h.raw.stamp + uint32((c.begin+c.echoed)/ms)
		if c.foreign {
			echo = 0
		}
		if got := h.sampleRTT(echo, h.raw.last+50*ms); got < c.min || got > c.max {
			t.Errorf("%s: the RTT is %v, want %v to %v", c.name, got, c.min, c.max)
		}
	}
}

// A handshake without an answer is no Timeout if the loop was held up when another SYN should have been sent.
func TestMissedSYN(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name    string
		syns    int
		timeout time.Duration
		missed  bool
	}{
		{name: "no other SYN is due", syns: 1, timeout: 900 * ms},
		{name: "another SYN was due just now", syns: 1, timeout: 1050 * ms},
		{name: "another SYN was due", syns: 1, timeout: 1200 * ms, missed: true},
		{name: "the third SYN was due", syns: 2, timeout: 2500 * ms, missed: true},
		{name: "all SYNs were sent", syns: 3, timeout: 2500 * ms},
		{name: "there is no further SYN", syns: 7, timeout: time.Hour},
	} {
		h := newHandshake()
		h.raw.wire = &wire{retransmission: retransmission{retries: 2, linear: 4}}
		h.sent = time.Hour
		h.raw.tries, h.raw.last = c.syns, h.sent+time.Duration(c.syns-1)*time.Second
		if got := h.missedSYN(h.sent + c.timeout); got != c.missed {
			t.Errorf("%s: missedSYN is %t, want %t", c.name, got, c.missed)
		}
	}
}

// Netlink messages that are cut off are not taken for all changes.
func TestIncompleteChanges(t *testing.T) {
	message := func(kind uint16, payload int) []byte {
		m := make([]byte, unix.SizeofNlMsghdr+payload)
		binary.NativeEndian.PutUint32(m, uint32(len(m)))
		binary.NativeEndian.PutUint16(m[4:], kind)
		return append(m, make([]byte, (4-payload%4)%4)...)
	}
	routes := append(message(unix.RTM_NEWROUTE, 13), message(unix.RTM_DELROUTE, 27)...)
	for _, c := range []struct {
		name     string
		messages []byte
		want     bool
	}{
		{name: "two routes", messages: routes, want: true},
		{name: "a route and a half", messages: routes[:len(routes)-4]},
		{name: "a length of 0", messages: make([]byte, unix.SizeofNlMsghdr)},
		{name: "half a link", messages: message(unix.RTM_NEWLINK, 4)},
		{name: "half an address", messages: message(unix.RTM_DELADDR, 4)},
	} {
		if got := new(ways).follow(c.messages); got != c.want {
			t.Errorf("%s: follow is %t, want %t", c.name, got, c.want)
		}
	}
}

// The only free port is found, whatever the port is that is tried first.
func TestTakeTheLastPort(t *testing.T) {
	const first, free = 20000, 45
	w := &wire{first: first, given: 50, flights: make(map[flow]*handshake)}
	for port := range uint16(portsPerWire) {
		if port != free {
			w.flights[flow{port: first + port}] = newHandshake()
		}
	}
	for range 1 << 16 {
		next := w.next
		if f := (flow{}); !w.take(&f) || f.port != first+free {
			t.Fatalf("after %d, take chooses the port %d, want %d", next, f.port, first+free)
		}
	}
}

// Handshakes that may have any port leave the ports to those with a SourcePort that have used them, even if these are
// more than half of the ports. So a target that is silent for the former has no port that the latter need.
func TestRawPortsOfFlows(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK())
	s, err := New(&Config{Raw: &Raw{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	silent := netip.MustParseAddrPort("192.0.2.2:80")
	const flows = 60
	shakeFlows := func(target netip.AddrPort, want Outcome) {
		t.Helper()
		var group sync.WaitGroup
		for i := range uint16(flows) {
			group.Go(func() {
				options := Options{SourcePort: s.Ports().First + i, Timeout: 500 * time.Millisecond}
				r, err := s.Shake(t.Context(), target, &options)
				if err != nil || r.Outcome != want {
					t.Errorf("Shake(%v from port %d) = %v, error %v, want %v",
						target, options.SourcePort, r.Outcome, err, want)
				}
			})
		}
		group.Wait()
	}
	shakeFlows(netip.MustParseAddrPort("192.0.2.1:80"), Open)
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for range portsPerWire - flows {
		group.Go(func() { s.Shake(ctx, silent, &Options{Timeout: time.Minute}) })
	}
	network.Await(2*flows + portsPerWire - flows) // and an RST for each flow
	shakeFlows(silent, Timeout)
	cancel()
	group.Wait()
}
