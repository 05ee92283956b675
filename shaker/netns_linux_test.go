package shaker

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// Invariant 8. Callers in two namespaces use one Shaker at the same time. The target is open in the namespace of the
// Shaker only, so every handshake in another one would be Refused.
func TestCallerInAnotherNamespace(t *testing.T) {
	other := kernel.NewNamespace(t)
	target, _ := listen(t, "127.0.0.1:0")
	shake := func(t *testing.T, s *Shaker, who string, times int) {
		for range times {
			if r := mustShake(t, s, target); r.Outcome != Open {
				t.Errorf("Shake(%v) by a caller in %s namespace = %+v, want Open as in the Shaker's", target, who, r)
				return
			}
		}
	}
	callers := func(t *testing.T, s *Shaker) {
		var group sync.WaitGroup
		for range 20 {
			group.Go(func() { shake(t, s, "the Shaker's", 500) })
		}
		for range 2 {
			group.Go(func() { other.In(func() { shake(t, s, "another", 500) }) })
		}
		group.Wait()
	}
	t.Run("callers", func(t *testing.T) { callers(t, start(t)) })
	t.Run("callers without SO_NETNS_COOKIE", func(t *testing.T) {
		s, l := startOne(t)
		setCookie(l, 0)
		callers(t, s)
	})
	t.Run("the control", func(t *testing.T) {
		// A loop that takes the other namespace for its own lets the caller open the socket there.
		s, l := startOne(t)
		other.In(func() {
			setCookie(l, threadCookie())
			awaitLoop(t, l, "the loop's goroutine sleeps", func() bool { return !l.driven })
			if r := mustShake(t, s, target); r.Outcome != Refused {
				t.Errorf("Shake(%v) in the wrong namespace = %+v, want Refused: no process listens there", target, r)
			}
		})
	})
}

// setCookie changes the namespace that a loop takes for its own.
func setCookie(l *loop, cookie uint64) {
	h := hold(l)
	l.mu.Lock()
	l.cookie = cookie
	l.mu.Unlock()
	close(h.release)
}

// A caller may take a turn only if it is known to be in the namespace of the loop. Otherwise the loop's
// goroutine starts the task, and each task is started once.
func TestWhoStartsTasks(t *testing.T) {
	other := kernel.NewNamespace(t)
	here := func(f func()) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		f()
	}
	for _, c := range []struct {
		name    string
		in      func(func())
		unknown bool // the kernel does not have SO_NETNS_COOKIE
		caller  bool // starts the task
	}{
		{name: "a caller in the namespace", in: here, caller: true},
		{name: "a caller in another namespace", in: other.In},
		{name: "a kernel without SO_NETNS_COOKIE", in: here, unknown: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, l := startOne(t)
			if c.unknown {
				setCookie(l, 0)
			}
			c.in(func() {
				awaitLoop(t, l, "the loop's goroutine sleeps", func() bool { return !l.driven })
				threads := make(chan int, 2)
				started := func() { threads <- unix.Gettid() }
				if c.unknown {
					l.submit(startTask(started), interactive, 0)
				} else {
					l.submit(socketTask(started), interactive, 0)
				}
				if by := <-threads; (by == unix.Gettid()) != c.caller {
					t.Errorf("thread %d started the task of thread %d, want its own: %t", by, unix.Gettid(), c.caller)
				}
				close(hold(l).release)
				if n := len(threads); n != 0 {
					t.Errorf("the task was started %d times, want once", n+1)
				}
			})
		})
	}
}

// Tasks that the turns of a caller in another namespace left behind are started in their order.
func TestRefusedStartsKeepTheirOrder(t *testing.T) {
	other := kernel.NewNamespace(t)
	_, l := startOne(t)
	const tasks = 10 * startsPerTurn
	order := make(chan int, tasks)
	other.In(func() {
		for i := range tasks {
			l.submit(socketTask(func() { order <- i }), interactive, 0)
		}
	})
	for i := range tasks {
		if n := <-order; n != i {
			t.Fatalf("task %d was started at place %d, want them in order", n, i)
		}
	}
}

// A socketTask is a task that opens a socket and ends.
type socketTask func()

func (s socketTask) handle(l *loop, own ticket, _ event) {
	fd, err := l.socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		s()
		closeDescriptor(fd)
		l.finish(own, nil)
	}
}

// New is called in a namespace of its own. Every handshake takes place there, and so does the lookup of
// zones, whoever calls. Close ends the threads that entered the namespace.
func TestNewInAnotherNamespace(t *testing.T) {
	other := kernel.NewNamespace(t)
	descriptors := lab.Descriptors(t)
	const device = "inside" // an interface of the other namespace
	targets := make(map[netip.AddrPort]*Options)
	var s *Shaker
	other.In(func() {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: device}, PeerName: "peer"}
		if err := netlink.LinkAdd(pair); err != nil {
			lab.Skip(t, "needs a veth pair: %v", err)
		}
		var err error
		for _, name := range []string{device, pair.PeerName} {
			var link netlink.Link
			if link, err = netlink.LinkByName(name); err == nil {
				err = netlink.LinkSetUp(link)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		addAddress(t, device, "fe80::7/64")
		for address, options := range map[string]*Options{
			"127.0.0.1:0":                {Interface: "lo"},
			"[fe80::7%" + device + "]:0": {Source: netip.MustParseAddr("fe80::7%" + device)},
		} {
			target, _ := listen(t, address)
			targets[target] = options
		}
		s, err = New(startConfig)
		if err != nil {
			t.Fatal(err)
		}
	})
	var group sync.WaitGroup
	for target, options := range targets {
		options.Timeout = 5 * time.Second
		for range 10 {
			group.Go(func() {
				for range 20 {
					r, err := s.Shake(t.Context(), target, options)
					if err != nil || r.Outcome != Open || r.Local.Addr() != target.Addr() {
						t.Errorf("Shake(%v, %+v) = %+v, error %v, want Open from its address", target, *options, r, err)
						return
					}
				}
			})
		}
		group.Go(func() {
			other.In(func() {
				if r := mustShake(t, s, target); r.Outcome != Open {
					t.Errorf("Shake(%v) in the namespace = %+v, want Open", target, r)
				}
			})
		})
	}
	group.Wait()

	silent := netip.MustParseAddrPort("[fe80::99%" + device + "]:80") // no such neighbour
	ended := make(chan error, 1)
	go func() {
		_, err := s.Shake(context.Background(), silent, nil)
		ended <- err
	}()
	lab.Eventually(t, "the handshake is running", func() bool {
		tasks := 0
		for _, l := range s.engine.loops {
			h := hold(l)
			tasks += running(l) - 1 // without the holdUp
			close(h.release)
		}
		return tasks > 0 || len(ended) > 0
	})
	s.Close()
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("Shake(%v): error %v, want %v", silent, err, ErrClosed)
	}
	lab.Eventually(t, "no thread is left in the namespace", func() bool { return other.Threads() == 0 })
	if n := lab.Descriptors(t); n != descriptors+2 { // of the listeners
		t.Errorf("%d descriptors afterwards, want %d", n, descriptors+2)
	}
}

// A namespace that the process may not enter is an error of New.
func TestNewInForbiddenNamespace(t *testing.T) {
	n := &namespace{cookie: 1, file: -1}
	n.file, _ = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0) // setns: EINVAL
	defer n.close()
	descriptors := lab.Descriptors(t)
	if l, err := newLoop(n, time.Now(), nil); !errors.Is(err, unix.EINVAL) {
		t.Errorf("newLoop in a namespace that cannot be entered = %v, error %v, want EINVAL", l, err)
	}
	if now := lab.Descriptors(t); now != descriptors {
		t.Errorf("%d descriptors afterwards, want %d as before", now, descriptors)
	}
}

// A namespace is recognized by its cookie, and without cookies by its file.
func TestIsHere(t *testing.T) {
	other := kernel.NewNamespace(t)
	file, err := unix.Open(threadNamespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(file)
	for name, n := range map[string]*namespace{
		"by its cookie": {cookie: threadCookie(), file: -1},
		"by its file":   {file: file},
	} {
		here, there := n.isHere(), true
		other.In(func() { there = n.isHere() })
		if !here || there {
			t.Errorf("%s, the namespace is here: %t, and in another one: %t, want true, false", name, here, there)
		}
	}
	if unknown := (&namespace{file: -1}); !unknown.isHere() {
		t.Error("a namespace of which nothing is known is not here, want that it is: there is only one")
	}
}
