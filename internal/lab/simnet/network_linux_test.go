package simnet

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"reflect"
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

// dial connects as any program does. The connection is reset with the test.
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

// The most specific host answers, on its port before all ports.
func TestPlaces(t *testing.T) {
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
			t.Errorf("at %s is %q, want %q", at, got, want)
		}
	}
}

func TestWrongPlaces(t *testing.T) {
	for _, text := range []string{"", "host", "192.0.2.1:port", "192.0.2.0/33", "2001:db8::1:", "192.0.2.1:70000"} {
		if p, err := parsePlace(text); err == nil {
			t.Errorf("%q is %v", text, p)
		}
	}
}

// 100,000 addresses answer, half of them of each IP version, each as its prefix does.
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
						t.Errorf("%v: %v, want %v", target, err, want)
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
		t.Errorf("%d SYNs were recorded, want %d", syns, 2*addresses)
	}
}

// connect connects and resets the connection. It is cheaper than a net.Dialer.
func connect(target netip.AddrPort) error {
	family, address := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(target.Port()), Addr: target.Addr().As16()})
	if target.Addr().Is4() {
		family, address = unix.AF_INET, &unix.SockaddrInet4{Port: int(target.Port()), Addr: target.Addr().As4()}
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

// The same seed brings the same fates, another one others, and the shares are kept.
func TestSeed(t *testing.T) {
	const syns = 2000
	fates := func(t *testing.T, seed string) (fates []string, lost, answered int) {
		if seed != "" {
			t.Setenv("SHAKER_LAB_SEED", seed)
		}
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
		one, lost, answered = fates(t, "")
		if lost < syns/5 || lost > syns*3/10 || answered < syns*3/10 || answered > syns*9/20 {
			t.Errorf("of %d SYNs %d were lost and %d answered, want 25 %% and 37.5 %%", syns, lost, answered)
		}
	})
	t.Run("again", func(t *testing.T) { again, _, _ = fates(t, "1") })
	t.Run("other", func(t *testing.T) { other, _, _ = fates(t, "2") })
	if !reflect.DeepEqual(one, again) {
		t.Error("the same seed has brought other fates")
	}
	if reflect.DeepEqual(one, other) {
		t.Error("another seed has brought the same fates")
	}
}

// A SYN-ACK has the options of choice, as the kernel that gets it understands them.
func TestOptions(t *testing.T) {
	n := NewNetwork(t)
	kernel.Sysctl(t, "net.ipv4.tcp_ecn", "1") // to ask for it
	for i, c := range []struct {
		answer Answer
		want   uint8
		mss    uint32
	}{
		{SYNACK(), 0, 1400},
		{SYNACK().MSS(900), 0, 900},
		{SYNACK().Timestamps(), 1, 1388},
		{SYNACK().SACK(), 2, 1400},
		{SYNACK().WindowScale(5), 4, 1400},
		{SYNACK().ECN(), 8, 1400},
		{SYNACK().SACK().Timestamps().WindowScale(2).ECN(), 15, 1388},
	} {
		where := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}).String()
		n.At(where, c.answer)
		conn, err := dial(t, where+":80", time.Minute)
		if err != nil {
			t.Fatal(err)
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
			if got := info.Options & 15; got != c.want || info.Snd_mss != c.mss {
				t.Errorf("case %d: options %b, want %b; MSS %d, want %d", i, got, c.want, info.Snd_mss, c.mss)
			}
		})
	}
}

// A SYN gets as far as its TTL lets it, and each router on the way says so, or says nothing.
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
			t.Errorf("TTL %s: connected", ttl)
		}
		trace := n.Trace(netip.MustParseAddr("192.0.2.1"))
		if got := strings.Contains(trace, "ICMP"); got != (want != "") || !strings.Contains(trace, want) {
			t.Errorf("TTL %s: want %q in\n%s", ttl, want, trace)
		}
	}
}

// A trace is the story of one address, with what was lost.
func TestTrace(t *testing.T) {
	n := NewNetwork(t)
	n.At("192.0.2.1", RST().After(time.Millisecond)).LosingSYNs(1)
	n.At("192.0.2.2", RST())
	for _, address := range []string{"192.0.2.2:80", "192.0.2.1:80"} {
		if _, err := dial(t, address, time.Minute); err == nil {
			t.Errorf("%s: connected", address)
		}
	}
	var got []string
	for line := range strings.Lines(n.Trace(netip.MustParseAddr("192.0.2.1"))) {
		fields := strings.Fields(line)[2:] // without the time
		got = append(got, strings.Join(fields, " "))
	}
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
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
