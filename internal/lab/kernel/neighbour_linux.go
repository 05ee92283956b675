package kernel

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// A Neighbour is a host at the other end of a veth pair, in a network namespace of its own. It accepts
// connections and closes them.
type Neighbour struct {
	Target netip.AddrPort // where the neighbour listens
}

// nearEnd is the name of this host's end of the veth pair.
const nearEnd = "neighbour"

// NewNeighbour creates a neighbour that exists until the test ends.
func NewNeighbour(t testing.TB) *Neighbour {
	t.Helper()
	lab.Need(t)
	n := &Neighbour{netip.MustParseAddrPort("198.18.2.2:80")}
	var l net.Listener
	if err := elsewhere(enterNew, func(here netlink.NsFd) (err error) {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = "host"
		err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: nearEnd, PeerNamespace: here})
		if err != nil {
			return err
		}
		if err := setUp(attributes.Name, "198.18.2.2/24"); err != nil {
			return err
		}
		l, err = net.Listen("tcp4", n.Target.String())
		return err
	}); err != nil {
		lab.Skip(t, "needs a veth pair to another network namespace: %v", err)
	}
	acceptAll(t, l) // the listener keeps the namespace alive
	if err := setUp(nearEnd, "198.18.2.1/24"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: nearEnd}}) })
	return n
}

// acceptAll accepts connections and closes them. It closes the listener when the test ends.
func acceptAll(t testing.TB, l net.Listener) {
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			conn.Close()
		}
	})
	t.Cleanup(func() { l.Close(); accepting.Wait() })
}

// Interface returns the name of this host's end of the veth pair.
func (n *Neighbour) Interface() string { return nearEnd }

// elsewhere calls enter, which enters another network namespace, then f, and returns to the current
// namespace, which f gets as here. It also returns there if f ends the goroutine, as a test that is skipped does.
func elsewhere(enter func() error, f func(here netlink.NsFd) error) (err error) {
	runtime.LockOSThread() // each thread has a network namespace of its own
	defer runtime.UnlockOSThread()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer here.Close()
	if err := enter(); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, os.NewSyscallError("setns", unix.Setns(int(here.Fd()), unix.CLONE_NEWNET)))
	}()
	return f(netlink.NsFd(here.Fd()))
}

// enterNew enters a new network namespace. The namespace exists as long as a socket in it, or its file in
// /proc, is open.
func enterNew() error {
	return os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET))
}

// setUp adds an address to an interface and sets the interface up.
func setUp(name, prefix string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	address, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(link, address), netlink.LinkSetUp(link))
}
