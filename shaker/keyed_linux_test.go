package shaker

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A keyed engine has the bug that the engine of this package must not have. Its callers open and close
// the sockets, and its loop finds the caller for an event by the number of the descriptor. By then
// the number may belong to another socket.
type keyed struct {
	epoll   int
	mu      sync.Mutex
	waiters map[int]chan Result // by descriptor
}

func startKeyed(t *testing.T) *keyed {
	t.Helper()
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	k := &keyed{epoll: epoll, waiters: make(map[int]chan Result)}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		events := make([]unix.EpollEvent, 256)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, _ := unix.EpollWait(epoll, events, 10)
			for _, event := range events[:max(n, 0)] {
				k.handle(int(event.Fd))
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
		unix.Close(epoll)
	})
	return k
}

func (k *keyed) handle(fd int) {
	errno, err := socketError(fd)
	if err != nil {
		return
	}
	// This engine does not count SYNs: 2 is what the crowd accepts for lossy targets, too.
	r := Result{Outcome: Open, Errno: errno, SYNs: 2}
	if errno != 0 {
		r.ICMP, _ = readErrorQueue(fd, make([]byte, 128))
		r.Outcome, _ = verdict(errno, r.ICMP)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if waiter := k.waiters[fd]; waiter != nil {
		select {
		case waiter <- r:
		default:
		}
	}
}

func (k *keyed) shake(ctx context.Context, target netip.AddrPort, options *Options) (Result, error) {
	h := newHandshake()
	h.aim(target, 0)
	var err error
	if h.fd, err = socket(h.family, tcpSocket, unix.IPPROTO_TCP); err != nil {
		return Result{}, err
	}
	defer h.closeSocket()
	if err := h.configure(); err != nil {
		return Result{}, err
	}
	waiter := make(chan Result, 1)
	k.mu.Lock()
	k.waiters[h.fd] = waiter
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		delete(k.waiters, h.fd)
		k.mu.Unlock()
	}()
	began := time.Now()
	if errno := connect(h.fd, &h.peer); errno != unix.EINPROGRESS {
		return Result{}, errno
	}
	event := unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLET, Fd: int32(h.fd)}
	if errno := epollControl(k.epoll, unix.EPOLL_CTL_ADD, h.fd, &event); errno != 0 {
		return Result{}, errno
	}
	timer := time.NewTimer(options.Timeout)
	defer timer.Stop()
	r := Result{Outcome: Timeout, Errno: unix.ETIMEDOUT}
	select {
	case r = <-waiter:
		if r.Outcome == Open {
			r.Handshake = time.Since(began)
		}
	case <-timer.C:
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
	r.Peer = target
	return r, nil
}
