package probe

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

// A Resolution is the result of resolving a name.
type Resolution struct {
	Addrs []netip.Addr // in the resolver's order (RFC 6724)
	Took  time.Duration

	Result string // why there is no address; "" if there is one
	Err    error  // what the resolver reported, if there is no address
}

// A dialer opens connections to DNS servers, as net.Dialer.DialContext does.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// newResolver returns the standard resolver, for one lookup. A shared resolver would merge lookups of the
// same name, and no caller could end a merged lookup. On Linux it is always the resolver written in Go,
// which needs no thread for a lookup that hangs.
//
// The sockets of the resolver are closed as soon as the caller is gone. The resolver would keep them open for
// 5 s (timeout in resolv.conf(5)). When this time has passed, the resolver itself ends the query with a
// timeout; closing the socket then would turn the timeout into another error.
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
// From then on it opens them only if they have changed. If it cannot open them because descriptors are
// exhausted, it queries a server on this host instead, for 5 s.
func readNameFiles() {
	newResolver(func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.ErrUnsupported // the lookup of "localhost" needs no query
	}).LookupNetIP(context.Background(), "ip", "localhost")
}

// resolve looks up the addresses of a name, on "ip4", "ip6", or "ip" for both, before the deadline. An
// error is a fault, or means that the caller is gone.
func resolve(ctx context.Context, dial dialer, name, network string, deadline time.Time) (Resolution, error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	start := time.Now()
	var unsent atomic.Uintptr // the errno for which this host could not send a query
	addrs, err := newResolver(func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		// A host without IPv6 has no source address for a query to an IPv6 server.
		if errno := faultOf(err); errno != syscall.EADDRNOTAVAIL {
			unsent.CompareAndSwap(0, uintptr(errno))
		}
		return conn, err
	}).LookupNetIP(ctx, network, name)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	r := Resolution{Addrs: addrs, Took: time.Since(start), Err: err}
	fault := faultOf(err)
	if errno := syscall.Errno(unsent.Load()); errno != 0 {
		// The resolver may report that there is no address although it could query only for
		// IPv4, not for IPv6, or return an address that is not the preferred one.
		fault = errno
	}
	var dns *net.DNSError
	var addrError *net.AddrError
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return Resolution{}, ctx.Err()
	case fault != 0:
		return Resolution{}, fmt.Errorf("resolve %s: %w", name, fault)
	case ctx.Err() != nil:
		r.Result, r.Err = config.DNSTimeout, ctx.Err()
	case err == nil:
	case errors.As(err, &dns) && dns.IsNotFound, errors.As(err, &addrError):
		r.Result = config.DNSNotFound
	case errors.As(err, &dns) && dns.IsTimeout:
		r.Result = config.DNSTimeout
	default:
		r.Result = config.DNSError
	}
	return r, nil
}

// choose returns the first address of the preferred protocol, or the first address if there is none.
func choose(addrs []netip.Addr, preferred string) netip.Addr {
	for _, addr := range addrs {
		if protocol(addr) == preferred {
			return addr
		}
	}
	return addrs[0]
}

// faultOf returns the errno if a lookup failed because a local resource is exhausted, otherwise 0. The
// resolver's errors do not wrap their cause, they only have its text. EAGAIN, which package net takes
// for a timeout, is what connect(2) returns for a UDP socket when there is no local port.
func faultOf(err error) syscall.Errno {
	var dns *net.DNSError
	errors.As(err, &dns)
	for _, errno := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EAGAIN,
	} {
		if errors.Is(err, errno) || dns != nil && strings.HasSuffix(dns.Err, errno.Error()) {
			return errno
		}
	}
	return 0
}
