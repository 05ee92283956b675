package simnet

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

func TestMain(m *testing.M) { lab.Main(m) }

// dial connects in the usual way. The connection is reset when the test ends.
func dial(t *testing.T, address string, timeout time.Duration) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	tcp := conn.(*net.TCPConn)
	tcp.SetLinger(0)
	t.Cleanup(func() { tcp.Close() })
	return tcp, nil
}

// If several endpoints match, the host at the longest prefix answers, and among these the host at an endpoint
// with a port.
func TestEndpoints(t *testing.T) {
	n := NewNetwork(t)
	hosts := make(map[*Host]string)
	for _, where := range []string{"192.0.2.0/24", "192.0.2.0/24:80", "192.0.2.128/25", "192.0.2.1", "192.0.2.1:443",
		"2001:db8::/32", "[2001:db8:1::/48]:80", "[2001:db8::1]:443", "0.0.0.0/0:7"} {
		hosts[n.At(where)] = where
	}
	for at, want := range map[string]string{
		"192.0.2.2:22":         "192.0.2.0/24",
		"192.0.2.2:80":         "192.0.2.0/24:80",
		"192.0.2.200:80":       "192.0.2.128/25",
		"192.0.2.1:80":         "192.0.2.1",
		"192.0.2.1:443":        "192.0.2.1:443",
		"198.51.100.1:7":       "0.0.0.0/0:7",
		"198.51.100.1:8":       "",
		"[2001:db8::1]:80":     "2001:db8::/32",
		"[2001:db8::1]:443":    "[2001:db8::1]:443",
		"[2001:db8:1::1]:80":   "[2001:db8:1::/48]:80",
		"[2001:db9::1]:80":     "",
		"[2001:db8:1::1]:8000": "2001:db8::/32",
	} {
		if got := hosts[n.find(netip.MustParseAddrPort(at))]; got != want {
			t.Errorf("the host that answers for %s is at %q, want %q", at, got, want)
		}
	}
}

// An invalid endpoint is an error.
func TestParseEndpointErrors(t *testing.T) {
	for _, text := range []string{"", "host", "192.0.2.1:port", "192.0.2.0/33", "2001:db8::1:", "192.0.2.1:70000"} {
		if e, err := parseEndpoint(text); err == nil {
			t.Errorf("parseEndpoint(%q) = %v, nil, want an error", text, e)
		}
	}
}

// A network answers for 50,000 addresses of each IP version, each according to its prefix.
func TestManyAddresses(t *testing.T) {
	n := NewNetwork(t)
	n.At("10.0.0.0/15", SYNACK())
	n.At("10.2.0.0/15", RST())
	n.At("2001:db8::/48", SYNACK())
	n.At("2001:db8:1::/48", RST())
	addr := func(version, prefix, i int) netip.Addr {
		if version == 4 {
			return netip.AddrFrom4([4]byte{10, byte(2*prefix + i>>16), byte(i >> 8), byte(i)})
		}
		a := netip.MustParseAddr(fmt.Sprintf("2001:db8:%d::", prefix)).As16()
		binary.BigEndian.PutUint32(a[12:], uint32(i))
		return netip.AddrFrom16(a)
	}
	const addresses, callers = 50_000, 8 // of each version
	for _, version := range []int{4, 6} {
		var group sync.WaitGroup
		for caller := range callers {
			group.Go(func() {
				for i := caller; i < addresses; i += callers {
					target := netip.AddrPortFrom(addr(version, i%2, i), 80)
					err := connect(target)
					if want := []error{nil, unix.ECONNREFUSED}[i%2]; err != want {
						t.Errorf("connect(%v) = %v, want %v", target, err, want)
						return
					}
				}
			})
		}
		group.Wait()
	}
	syns := 0
	for segment := range n.Sent() {
		if segment.SYN {
			syns++
		}
	}
	if syns != 2*addresses {
		t.Errorf("the network recorded %d SYNs, want %d", syns, 2*addresses)
	}
}

// connect connects and resets the connection. It costs less CPU time than a net.Dialer.
func connect(target netip.AddrPort) error {
	port := int(target.Port())
	family, address := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: port, Addr: target.Addr().As16()})
	if target.Addr().Is4() {
		family, address = unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: target.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	return unix.Connect(fd, address)
}

// With the same seed, a network loses and delays the same packets; with another seed, other packets. The
// shares of lost packets are as requested.
func TestSeed(t *testing.T) {
	const syns = 2000
	// meet sends SYNs to a network with the seed. Each fate is "lost" or a delay.
	meet := func(t *testing.T, seed string) (fates []string, lost, answered int) {
		t.Setenv("SHAKER_LAB_SEED", seed)
		n := NewNetwork(t)
		n.At("192.0.2.0/24", SYNACK().Between(0, time.Second)).Losing(0.25, 0.5)
		for i := range syns {
			syn := Segment{SYN: true, TTL: 64, Src: netip.MustParseAddrPort("198.18.0.1:40000"),
				Dst: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 80)}
			answers, random := n.meet(syn)
			fate := "lost"
			switch {
			case answers == nil:
				lost++
			case !answers[0].lost:
				answered++
				fate = answers[0].delay(random).String()
			}
			fates = append(fates, fate)
		}
		return fates, lost, answered
	}
	var one, again, other []string
	t.Run("one", func(t *testing.T) {
		var lost, answered int
		one, lost, answered = meet(t, "") // the default is 1
		if lost < syns/5 || lost > syns*3/10 || answered < syns*3/10 || answered > syns*9/20 {
			t.Errorf("of %d SYNs, %d were lost and %d answered, want about 25%% and 37.5%%", syns, lost, answered)
		}
	})
	t.Run("again", func(t *testing.T) { again, _, _ = meet(t, "1") })
	t.Run("other", func(t *testing.T) { other, _, _ = meet(t, "2") })
	if one == nil || again == nil || other == nil {
		t.Skip("needs the networks that the subtests could not create")
	}
	if !slices.Equal(one, again) {
		t.Error("two networks with seed 1 lose or delay different packets, want the same")
	}
	if slices.Equal(one, other) {
		t.Error("a network with seed 1 and one with seed 2 lose and delay the same packets, want different ones")
	}
}

// A SYN-ACK has the requested TCP options: the kernel that receives it reports them in TCP_INFO.
func TestOptions(t *testing.T) {
	n := NewNetwork(t)
	kernel.Sysctl(t, "net.ipv4.tcp_ecn", "1") // request ECN in SYNs
	for i, c := range []struct {
		name    string
		answer  Answer
		options uint8 // TCPI_OPT_TIMESTAMPS 1, SACK 2, WSCALE 4, ECN 8
		mss     uint32
	}{
		{name: "MSS", answer: SYNACK(), options: 0, mss: 1400},
		{name: "another MSS", answer: SYNACK().MSS(900), options: 0, mss: 900},
		{name: "timestamps", answer: SYNACK().Timestamps(), options: 1, mss: 1388},
		{name: "SACK", answer: SYNACK().SACK(), options: 2, mss: 1400},
		{name: "window scale", answer: SYNACK().WindowScale(5), options: 4, mss: 1400},
		{name: "ECN", answer: SYNACK().ECN(), options: 8, mss: 1400},
		{name: "all", answer: SYNACK().SACK().Timestamps().WindowScale(2).ECN(), options: 15, mss: 1388},
	} {
		where := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}).String()
		n.At(where, c.answer)
		conn, err := dial(t, where+":80", time.Minute)
		if err != nil {
			t.Fatalf("dial the host with %s: %v", c.name, err)
		}
		raw, err := conn.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Options & 15; got != c.options || info.Snd_mss != c.mss {
				t.Errorf("SYN-ACK with %s: TCP_INFO has options %04b and MSS %d, want %04b and %d",
					c.name, got, info.Snd_mss, c.options, c.mss)
			}
		})
	}
}

// The TTL of a SYN determines how far it gets. The router at which the TTL ends sends an ICMP error, unless it
// is silent.
func TestRouters(t *testing.T) {
	n := NewNetwork(t)
	n.At("192.0.2.1", ICMP("203.0.113.4", 3, 1)).Behind("203.0.113.1", "", "203.0.113.3")
	for ttl, want := range map[string]string{
		"1": "203.0.113.1 > 198.18.0.1 ICMP type 11 code 0 about ",
		"2": "",
		"3": "203.0.113.3 > 198.18.0.1 ICMP type 11 code 0 about ",
		"4": "203.0.113.4 > 198.18.0.1 ICMP type 3 code 1 about ",
	} {
		n.Forget()
		kernel.Sysctl(t, "net.ipv4.ip_default_ttl", ttl)
		if _, err := dial(t, "192.0.2.1:80", 100*time.Millisecond); err == nil {
			t.Errorf("connecting with TTL %s succeeded, want an error", ttl)
		}
		trace := n.Trace(netip.MustParseAddr("192.0.2.1"))
		if got := strings.Contains(trace, "ICMP"); got != (want != "") || !strings.Contains(trace, want) {
			t.Errorf("with TTL %s, the trace is\n%s\nwant %q in it, and no ICMP error if that is empty",
				ttl, trace, want)
		}
	}
}

// A trace contains the packets to and from one address, including lost ones.
func TestTrace(t *testing.T) {
	n := NewNetwork(t)
	n.At("192.0.2.1", RST().After(time.Millisecond)).LosingSYNs(1)
	n.At("192.0.2.2", RST())
	for _, address := range []string{"192.0.2.2:80", "192.0.2.1:80"} {
		if _, err := dial(t, address, time.Minute); err == nil {
			t.Errorf("connecting to %s succeeded, want an error", address)
		}
	}
	var got []string
	for line := range strings.Lines(n.Trace(netip.MustParseAddr("192.0.2.1"))) {
		fields := strings.Fields(line)[2:] // without the time in milliseconds
		got = append(got, strings.Join(fields, " "))
	}
	got = slices.Compact(got) // on a busy machine, SYNs are sent again
	var port uint16
	for segment := range n.SentTo(netip.MustParseAddrPort("192.0.2.1:80")) {
		port = segment.Src.Port()
	}
	want := []string{
		fmt.Sprintf("198.18.0.1:%d > 192.0.2.1:80 SYN (lost)", port),
		fmt.Sprintf("198.18.0.1:%d > 192.0.2.1:80 SYN", port),
		fmt.Sprintf("192.0.2.1:80 > 198.18.0.1:%d RST,ACK", port),
	}
	if !slices.Equal(got, want) {
		t.Errorf("trace of 192.0.2.1:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
