package kernel

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// A Namespace is a network namespace beside the test's own. It has a loopback interface and no other.
type Namespace struct {
	t    testing.TB
	file *os.File
}

// NewNamespace makes a namespace for the rest of the test.
func NewNamespace(t testing.TB) *Namespace {
	t.Helper()
	return &Namespace{t: t, file: newNamespace(t)}
}

// In calls f on a thread in the namespace, with f's goroutine locked to the thread.
func (n *Namespace) In(f func()) {
	n.t.Helper()
	enter := func() error {
		return os.NewSyscallError("setns", unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET))
	}
	if err := elsewhere(enter, func(netlink.NsFd) error { f(); return nil }); err != nil {
		n.t.Fatal(err)
	}
}

// Command returns a command that runs a program in the namespace.
func (n *Namespace) Command(program string, args ...string) *exec.Cmd {
	n.t.Helper()
	nsenter := lab.Program(n.t, "nsenter", "util-linux")
	file := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd())
	return exec.Command(nsenter, append([]string{"--net=" + file, program}, args...)...)
}

// Link makes a veth pair between the caller's namespace and n, until the test ends. Both ends are up and have no
// address.
func (n *Namespace) Link(near, far string) {
	n.t.Helper()
	attributes := netlink.NewLinkAttrs()
	attributes.Name = near
	pair := &netlink.Veth{LinkAttrs: attributes, PeerName: far, PeerNamespace: netlink.NsFd(n.file.Fd())}
	if err := netlink.LinkAdd(pair); err != nil {
		lab.Skip(n.t, "needs a veth pair to another network namespace: %v", err)
	}
	n.t.Cleanup(func() { netlink.LinkDel(pair) })
	up := func(name string) {
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = errors.Join(setSysctl("net/ipv6/conf/"+name+"/addr_gen_mode", "1"), netlink.LinkSetUp(link))
		}
		if err != nil {
			n.t.Fatal(err)
		}
	}
	up(near)
	n.In(func() { up(far) })
}

// Threads returns how many threads of this process are in the namespace.
func (n *Namespace) Threads() (threads int) {
	n.t.Helper()
	own, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", n.file.Fd()))
	if err != nil {
		n.t.Fatal(err)
	}
	all, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		n.t.Fatal(err)
	}
	for _, thread := range all {
		if its, _ := os.Readlink(thread); its == own { // "" if the thread has just ended
			threads++
		}
	}
	return threads
}
