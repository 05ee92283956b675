package shaker

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A keyed engine is what this package's must not be: callers open and close their sockets,
// and the loop finds out whom an event is for by the descriptor's number. By the time it
// looks, the number may be another socket's.
type keyed struct {
	epoll   int
	mu      sync.Mutex
	waiters map[int]chan unix.Errno // by descriptor
}

func startKeyed(t *testing.T) *keyed {
	t.Helper()
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	k := &keyed{epoll: epoll, waiters: make(map[int]chan unix.Errno)}
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
	k.mu.Lock()
	defer k.mu.Unlock()
	if waiter := k.waiters[fd]; waiter != nil {
		select {
		case waiter <- errno:
		default:
		}
	}
}

func (k *keyed) shake(ctx context.Context, target netip.AddrPort, options *Options) (Result, error) {
	h := &handshake{withholdACK: true}
	h.peer, h.family = newRawAddress(target, 0)
	if err := h.openSocket(); err != nil {
		return Result{}, err
	}
	defer h.closeSocket()
	waiter := make(chan unix.Errno, 1)
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
	if err := epollAdd(k.epoll, h.fd, unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLET, Fd: int32(h.fd)}); err != nil {
		return Result{}, err
	}
	timer := time.NewTimer(options.Timeout)
	defer timer.Stop()
	r := Result{Peer: target}
	select {
	case r.Errno = <-waiter:
		r.Outcome, _ = verdict(r.Errno, ICMP{})
		if r.Errno == 0 {
			r.Outcome = Open
			r.Handshake = time.Since(began)
			r.SYNRetransmits = 1 // it does not say: let that pass
		}
	case <-timer.C:
		r.Outcome, r.Errno = Timeout, unix.ETIMEDOUT
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
	return r, nil
}
