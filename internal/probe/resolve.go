package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

// A dialer opens connections to DNS servers, as net.Dialer.DialContext does.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// newResolver returns the standard resolver, for one lookup. A shared resolver would merge lookups of the
// same name, and no caller could end a merged lookup. On Linux it is always the resolver written in Go,
// which needs no thread for a lookup that hangs.
//
// The dialer closes a socket as soon as the caller is gone; the resolver would keep it for 5 s (timeout in
// resolv.conf(5)). It does not close the socket at the deadline, because that would turn the timeout into another
// error.
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
func readNameFiles() { searchList("localhost") }

// searchList returns the full names for which the resolver would query DNS servers to look up a name, in their
// order: usually the name itself, or with each search domain of resolv.conf(5). If there are none, it returns the
// addresses that hosts(5) has for the name, or the resolver's error.
//
// The resolver looks up the search list for both IP versions at once and reports neither which full name an
// address belongs to, nor that one IP version failed. Package net does not export the list, so searchList lets the
// resolver query a server that denies every name, and notes the names. No packet is sent.
func searchList(name string) (names []string, addrs []netip.Addr, err error) {
	if runtime.GOOS != "linux" {
		return []string{name}, nil, nil // the system's resolver has its own rules
	}
	var mu sync.Mutex
	resolver := newResolver(func(context.Context, string, string) (net.Conn, error) {
		return &denial{asked: func(name string) {
			mu.Lock()
			defer mu.Unlock()
			if !slices.Contains(names, name) { // it is asked for each IP version
				names = append(names, name)
			}
		}}, nil
	})
	addrs, err = resolver.LookupNetIP(context.Background(), "ip", name) // nothing there can hang
	return names, addrs, err
}

// A denial is a connection to a DNS server that does not exist, which denies that any name exists. It is a TCP
// connection to the resolver: two bytes with the length precede each message (RFC 1035, section 4.2.2).
type denial struct {
	net.Conn // nil: the resolver uses no other method
	asked    func(name string)
	answer   bytes.Buffer
}

func (d *denial) Write(query []byte) (int, error) {
	const flags, question = 2 + 2, 2 + 12 // offsets of the header's flags and of the name
	answer := slices.Clone(query)
	answer[flags] |= 0x80  // a response
	answer[flags+1] |= 0x3 // NXDOMAIN
	d.answer.Write(answer)
	var name strings.Builder
	for at := question; query[at] > 0; at += 1 + int(query[at]) {
		name.Write(query[at+1 : at+1+int(query[at])])
		name.WriteByte('.')
	}
	d.asked(name.String())
	return len(query), nil
}

func (d *denial) Read(b []byte) (int, error)  { return d.answer.Read(b) }
func (d *denial) SetDeadline(time.Time) error { return nil }
func (d *denial) Close() error                { return nil }

// resolve looks up the addresses of a full name in one network, "ip4" or "ip6", until the context ends. The name is
// for messages: it is what the target contains.
func resolve(ctx context.Context, dial dialer, name, full, network string) answer {
	var unsent atomic.Uintptr // the errno for which this host could not send a query
	addrs, err := newResolver(func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		// A host without IPv6 has no source address for a query to an IPv6 server.
		if errno := faultOf(err); errno != syscall.EADDRNOTAVAIL {
			unsent.CompareAndSwap(0, uintptr(errno))
		}
		return conn, err
	}).LookupNetIP(ctx, network, full)
	var dns *net.DNSError
	if errors.As(err, &dns) {
		dns.Name = name
	}
	fault := faultOf(err)
	if errno := syscall.Errno(unsent.Load()); errno != 0 {
		fault = errno // even if the resolver got an answer from another server
	}
	if fault != 0 {
		return answer{network: network, fault: fmt.Errorf("resolve %s: %w", name, fault)}
	}
	return newAnswer(network, addrs, err)
}

var errNoAddress = errors.New("no address of this IP version")

// newAnswer returns the answer of a network, given addresses of any network and the resolver's error.
func newAnswer(network string, addrs []netip.Addr, err error) answer {
	a := answer{network: network}
	for _, addr := range addrs {
		if protocol(addr) == network {
			a.addrs = append(a.addrs, addr.Unmap())
		}
	}
	var dns *net.DNSError
	var addrError *net.AddrError
	switch {
	case len(a.addrs) > 0:
	case err == nil, errors.As(err, &addrError): // the error is about addresses of the other IP version
		a.err = &nameError{result: config.DNSNotFound, err: errNoAddress}
	case errors.As(err, &dns) && dns.IsNotFound:
		a.err = &nameError{result: config.DNSNotFound, err: err}
	case errors.As(err, &dns) && dns.IsTimeout:
		a.err = &nameError{result: config.DNSTimeout, err: err}
	default:
		a.err = &nameError{result: config.DNSError, err: err}
	}
	return a
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
