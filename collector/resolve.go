package collector

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

// resolution is what became of a name.
type resolution struct {
	addrs []netip.Addr // that were found, in the resolver's order (RFC 6724)
	took  time.Duration

	result string // why there is no address; "" if there is one
	err    error  // what the resolver said about that
}

// A dialer opens connections to DNS servers, as net.Dialer.DialContext does.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// newResolver returns the standard resolver, for one lookup: it would share a lookup with
// others of the same name, which then nobody could end. On Linux it is always the one
// written in Go, which needs no thread for a lookup that hangs. Its sockets are closed as
// soon as nobody waits for the lookup any more; by itself it would keep them for 5 s
// (timeout in resolv.conf(5)). After those it gives a query up by itself: to close its
// socket, too, would make an error of what is a timeout.
func newResolver(dial dialer) *net.Resolver {
	return &net.Resolver{PreferGo: runtime.GOOS == "linux",
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			if err == nil {
				context.AfterFunc(ctx, func() {
					if errors.Is(ctx.Err(), context.Canceled) {
						conn.Close()
					}
				})
			}
			return conn, err
		}}
}

// readNameFiles makes the net package read resolv.conf(5), hosts(5) and nsswitch.conf(5).
// From then on it opens them only if they have changed. Where it cannot open them for want
// of a descriptor, it asks a server on this host instead, for 5 s.
func readNameFiles() {
	newResolver(func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.ErrUnsupported // "localhost" is not worth a query
	}).LookupNetIP(context.Background(), "ip", "localhost")
}

// resolve looks for the addresses of a name, on "ip4", "ip6", or either as "ip", before the
// deadline. An error is a fault of this host, or the end of the caller.
func resolve(ctx context.Context, dial dialer, name, network string, deadline time.Time) (resolution, error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	start := time.Now()
	var unsent atomic.Uintptr // errno of this host's, for which there is a query that was not sent
	addrs, err := newResolver(func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		// A host without IPv6 has no address to send from to an IPv6 server.
		if errno := faultOf(err); errno != syscall.EADDRNOTAVAIL {
			unsent.CompareAndSwap(0, uintptr(errno))
		}
		return conn, err
	}).LookupNetIP(ctx, network, name)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	r := resolution{addrs: addrs, took: time.Since(start), err: err}
	fault := faultOf(err)
	if errno := syscall.Errno(unsent.Load()); errno != 0 {
		// The resolver may say that there is no address when it could ask for one of
		// IPv4 and not for one of IPv6, or give an address that is not the preferred one.
		fault = errno
	}
	var dns *net.DNSError
	var addrError *net.AddrError
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return resolution{}, ctx.Err()
	case fault != 0:
		return resolution{}, fmt.Errorf("resolve %s: %w", name, fault)
	case ctx.Err() != nil:
		r.result, r.err = config.DNSTimeout, ctx.Err()
	case err == nil:
	case errors.As(err, &dns) && dns.IsNotFound, errors.As(err, &addrError):
		r.result = config.DNSNotFound
	case errors.As(err, &dns) && dns.IsTimeout:
		r.result = config.DNSTimeout
	default:
		r.result = config.DNSError
	}
	return r, nil
}

// choose returns the first address of the preferred protocol, or else the first one.
func choose(addrs []netip.Addr, preferred string) netip.Addr {
	for _, addr := range addrs {
		if protocol(addr) == preferred {
			return addr
		}
	}
	return addrs[0]
}

// faultOf returns the errno if a lookup failed because this host lacks something, or 0. The
// resolver's errors do not wrap their cause, they only have its text. EAGAIN, which the net
// package takes for a timeout, is what connect(2) says of a UDP socket when there is no
// local port.
func faultOf(err error) syscall.Errno {
	var dns *net.DNSError
	errors.As(err, &dns)
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EAGAIN} {
		if errors.Is(err, errno) || dns != nil && strings.HasSuffix(dns.Err, errno.Error()) {
			return errno
		}
	}
	return 0
}
