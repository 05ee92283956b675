package watched

import (
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// A farm is many targets of one kernel, behind a firewall that can drop the SYNs to half of them. The firewall counts
// the handshakes with each target.
type farm struct {
	t       *testing.T
	nft     string
	targets []string
	blocked []string // those of the targets that are firewalled now and then
}

// wireCounts are the numbers of handshakes on the wire, by target: those whose SYN was lost, those whose SYN passed the
// firewall, and those of the lost ones of which a second SYN passed it.
type wireCounts struct{ lost, passed, rescued map[string]float64 }

const farmPort = "443"

func newFarm(t *testing.T, targets int) *farm {
	t.Helper()
	lab.Need(t)
	f := &farm{t: t, nft: lab.Program(t, "nft", "nftables")}
	for i := range targets {
		target := net.JoinHostPort(fmt.Sprintf("10.17.%d.%d", i>>8, i&255), farmPort)
		f.targets = append(f.targets, target)
		if i%2 == 1 {
			f.blocked = append(f.blocked, target)
		}
	}
	_, all, err := net.ParseCIDR("10.17.0.0/16")
	if err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: all, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL,
		Scope: netlink.SCOPE_HOST,
	}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatalf("adding a local route to %v: %v", all, err)
	}
	t.Cleanup(func() { netlink.RouteDel(route) })
	l, err := net.Listen("tcp4", ":"+farmPort)
	if err != nil {
		t.Fatal(err)
	}
	kernel.ServeUntilEOF(t, l)
	// The kernel sends a SYN again, with the same sequence number, if the exporter is late to end the handshake.
	const rules = `
table ip farm {
	set blocked { type ipv4_addr; }
	set seen { typeof ip daddr . tcp sport . tcp sequence; size 65535; flags dynamic, timeout; timeout 5s; }
	set lost { type ipv4_addr; size 65535; flags dynamic; counter; }
	set passed { type ipv4_addr; size 65535; flags dynamic; counter; }
	set rescued { type ipv4_addr; size 65535; flags dynamic; counter; }
	chain input {
		type filter hook input priority filter;
		tcp dport != ` + farmPort + ` accept
		tcp flags & (syn | ack) != syn accept
		ip daddr . tcp sport . tcp sequence @seen goto again
		add @seen { ip daddr . tcp sport . tcp sequence }
		ip daddr @blocked add @lost { ip daddr counter } drop
		add @passed { ip daddr counter }
	}
	chain again {
		ip daddr @blocked drop
		add @rescued { ip daddr counter }
	}
	chain output { type filter hook output priority filter; }
}`
	file := lab.Write(t, t.TempDir(), "farm.nft", rules)
	if out, err := exec.Command(f.nft, "-f", file).CombinedOutput(); err != nil {
		lab.Skip(t, "needs a kernel that supports these nftables rules: %v: %s\n%s", err, out, rules)
	}
	t.Cleanup(func() { f.run("delete table ip farm") })
	return f
}

// run runs a command of nft and returns its output.
func (f *farm) run(args ...string) []byte {
	f.t.Helper()
	out, err := exec.Command(f.nft, args...).CombinedOutput()
	if err != nil {
		f.t.Fatalf("nft %.100q: %v: %s", args, err, out)
	}
	return out
}

// block lets the firewall drop the SYNs to the blocked targets.
func (f *farm) block() {
	f.t.Helper()
	var addresses []string
	for _, target := range f.blocked {
		address, _, _ := net.SplitHostPort(target)
		addresses = append(addresses, address)
	}
	f.run("add element ip farm blocked { " + strings.Join(addresses, ", ") + " }")
}

// restore ends block.
func (f *farm) restore() {
	f.t.Helper()
	f.run("flush set ip farm blocked")
}

// refuse lets the firewall refuse the SYNs to all targets where they would leave this host. It does not count them.
func (f *farm) refuse() {
	f.t.Helper()
	f.run("add rule ip farm output tcp dport " + farmPort + " tcp flags & (syn | ack) == syn reject with tcp reset")
}

// counts returns what the firewall has counted.
func (f *farm) counts() wireCounts {
	f.t.Helper()
	return wireCounts{
		lost: f.counters("lost"), passed: f.counters("passed"), rescued: f.counters("rescued"),
	}
}

// counters returns the counters of a set of the firewall.
func (f *farm) counters(set string) map[string]float64 {
	f.t.Helper()
	var answer struct {
		NFTables []struct {
			Set struct {
				Elem []struct {
					Elem struct {
						Val     string
						Counter struct{ Packets float64 }
					}
				}
			}
		}
	}
	if err := json.Unmarshal(f.run("-j", "list set ip farm "+set), &answer); err != nil {
		f.t.Fatalf("the counters of the set %s: %v", set, err)
	}
	counters := make(map[string]float64)
	for _, object := range answer.NFTables {
		for _, e := range object.Set.Elem {
			counters[net.JoinHostPort(e.Elem.Val, farmPort)] = e.Elem.Counter.Packets
		}
	}
	return counters
}

// await waits until a condition is true for the counts of the firewall.
func (f *farm) await(what string, is func(wireCounts) bool) {
	f.t.Helper()
	lab.Eventually(f.t, what, func() bool {
		if is(f.counts()) {
			return true
		}
		time.Sleep(200 * time.Millisecond) // the counts of thousands of targets take CPU time
		return false
	})
}

// each reports whether a condition is true for each of the targets.
func (f *farm) each(targets []string, is func(target string) bool) bool {
	return !slices.ContainsFunc(targets, func(target string) bool { return !is(target) })
}
