package shaker

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A namespace is the network namespace of an engine: that of the thread that called New.
//
// A socket belongs to the namespace of the thread that opens it, and nothing else in the engine depends
// on the thread. Goroutines run on any thread that no goroutine is locked to, and these threads are all
// in one namespace. A thread in another namespace (setns(2)) belongs to the one goroutine that is locked
// to it (runtime.LockOSThread).
type namespace struct {
	// cookie identifies the namespace. It is 0 if the kernel does not have SO_NETNS_COOKIE (before
	// Linux 5.14).
	cookie uint64

	// file is open if the namespace is not the one of ordinary goroutines; otherwise it is -1.
	file int

	mu     sync.RWMutex // held by do and close
	closed bool
}

const threadNamespace = "/proc/thread-self/ns/net"

// newNamespace returns the namespace of the calling thread.
func newNamespace() (*namespace, error) {
	n := &namespace{cookie: threadCookie()}
	var err error
	n.file, err = unix.Open(threadNamespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	// gVisor has no network namespaces. It gives the file of one thread another identity each time.
	ordinary := make(chan bool, 1)
	if n.isHere() {
		go func() { ordinary <- n.isHere() }()
	} else {
		ordinary <- true
	}
	if <-ordinary {
		n.closeFile()
		return n, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: threadNamespace, Err: err}
	}
	return n, nil
}

// isHere reports whether the calling thread is in the namespace.
func (n *namespace) isHere() bool {
	if n.cookie != 0 {
		return n.cookie == threadCookie()
	}
	var own, here unix.Stat_t
	if unix.Fstat(n.file, &own) != nil || unix.Stat(threadNamespace, &here) != nil {
		return true // without /proc there is no way to know
	}
	return own.Dev == here.Dev && own.Ino == here.Ino
}

// start calls f in a new goroutine, on a thread in the namespace. If the kernel does not permit that
// (setns(2) needs CAP_SYS_ADMIN), f gets the error.
func (n *namespace) start(f func(error)) {
	if n.file < 0 {
		go f(nil)
		return
	}
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if unix.Gettid() != unix.Getpid() {
			f(n.enter())
			return
		}
		// This is the main thread, whose namespace /proc/self and /proc/net show. While this
		// goroutine is locked to it, the next one runs on another thread.
		defer runtime.UnlockOSThread()
		locked := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(locked)
			f(n.enter())
		}()
		<-locked
	}()
}

func (n *namespace) enter() error {
	if err := unix.Setns(n.file, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network namespace of New: %w", os.NewSyscallError("setns", err))
	}
	return nil
}

// do calls f on a thread in the namespace and returns when f has returned. The error is ErrClosed after close.
func (n *namespace) do(f func()) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.closed {
		return ErrClosed
	}
	done := make(chan error)
	n.start(func(err error) {
		if err == nil {
			f()
		}
		done <- err
	})
	return <-done
}

func (n *namespace) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	n.closeFile()
}

func (n *namespace) closeFile() {
	if n.file >= 0 {
		unix.Close(n.file)
		n.file = -1
	}
}

// threadCookie returns the cookie of the calling thread's namespace, 0 if it is not known.
func threadCookie() uint64 {
	fd, err := socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer closeDescriptor(fd)
	return socketCookie(fd)
}

// socketCookie returns the cookie of the socket's namespace, 0 if it is not known.
func socketCookie(fd int) (cookie uint64) {
	err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE, unsafe.Pointer(&cookie), unsafe.Sizeof(cookie))
	if err != nil {
		return 0
	}
	return cookie
}
