package hold

import (
	"cmp"
	"io"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// When the kernel only knows that the peer is silent, a handshake finds the cause. The next connect succeeds when the
// cause is gone.
func TestCause(t *testing.T) {
	chain := kernel.NewChain(t)
	nft := lab.Program(t, "nft", "nftables")
	const target = "10.77.4.2:7000"
	chain.In(4, func() error {
		var listen net.ListenConfig
		listen.SetMultipathTCP(false)
		l, err := listen.Listen(t.Context(), "tcp", target)
		if err == nil {
			s := serveOn(t, l)
			go func() {
				for {
					select {
					case conn := <-s.accepted:
						go io.Copy(conn, conn) // which ends with the connection
					case <-t.Context().Done():
						return
					}
				}
			}()
		}
		return err
	})
	forward := func(rule string) {
		chain.Run(2, nft, "table inet hold {\nchain forward {\ntype filter hook forward priority 0\n"+
			"ip daddr 10.77.4.2 tcp dport 7000 "+rule+"\n}\n}\n")
	}
	restore := func() { chain.Run(2, nft, "delete table inet hold") }
	route := func(change func(*netlink.Route) error) {
		prefix, err := netlink.ParseIPNet("10.77.4.0/24")
		if err == nil {
			err = change(&netlink.Route{Dst: prefix, Gw: net.ParseIP("10.77.1.2")})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name   string
		module string // "dead" if it is ""
		begin  func()
		end    func()
		result string
		errno  string
		from   string // the router that has sent an ICMP error
	}{
		{name: "silence", begin: func() { forward("drop") }, end: restore, result: "timeout", errno: "ETIMEDOUT"},
		{name: "the connection is forgotten",
			begin: func() { forward("tcp flags & syn == 0 drop") }, end: restore,
			result: "timeout", errno: "ETIMEDOUT"},
		{name: "a router answers with an ICMP error",
			begin: func() { forward("reject with icmp host-unreachable") }, end: restore,
			result: "unreachable", errno: "EHOSTUNREACH", from: "10.77.2.2"},
		{name: "a firewall prohibits it",
			begin: func() { forward("reject with icmp admin-prohibited") }, end: restore,
			result: "prohibited", errno: "EHOSTUNREACH", from: "10.77.2.2"},
		{name: "a firewall rejects it",
			begin: func() { forward("reject with icmp port-unreachable") }, end: restore,
			result: "refused", errno: "ECONNREFUSED", from: "10.77.2.2"},
		{name: "a firewall prohibits a heartbeat", module: "dead_asks",
			begin: func() { forward("reject with icmp admin-prohibited") }, end: restore,
			result: "prohibited", errno: "EHOSTUNREACH", from: "10.77.2.2"},
		{name: "a firewall rejects a heartbeat", module: "dead_asks",
			begin: func() { forward("reject with icmp port-unreachable") }, end: restore,
			result: "refused", errno: "ECONNREFUSED", from: "10.77.2.2"},
		{name: "this host has no route",
			begin: func() { route(netlink.RouteDel) }, end: func() { route(netlink.RouteAdd) },
			result: "unreachable", errno: "ENETUNREACH"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, 0)
			module := cmp.Or(c.module, "dead")
			b.scrape(target, module)
			c.begin()
			dead := b.await(target, module, "the connection has ended", func(a Answer) bool {
				return total(a.Hold.Closes, "") == 1
			})
			c.end()
			if want := (ResultCount{Result: c.result, Errno: c.errno, Total: 1}); dead.Hold.Closes[0] != want {
				t.Errorf("closes: %+v, want %+v", dead.Hold.Closes, want)
			}
			if from := dead.Handshake.ICMP.From; dead.Result == c.result && (from.IsValid() != (c.from != "") ||
				from.IsValid() && from.String() != c.from) {
				t.Errorf("an ICMP error of %v, want it from %q", from, c.from)
			}
			if silent := dead.Hold.LastAnswer; time.Since(silent) < time.Second {
				t.Errorf("the last answer was at %v, want more than 1 s ago", silent)
			}
			if c.name != "the connection is forgotten" { // there, the next connection gets stuck in the same way
				b.awaitResult(target, module, "open")
			}
			// A heartbeat that is not acknowledged is a timeout before the connection ends.
			if got := <-b.changes; got != c.result && module == "dead" {
				t.Errorf("the target has changed to %s, want %s", got, c.result)
			}
		})
	}
}
