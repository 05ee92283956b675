package probe

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
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
// same name, and no caller could end a merged lookup. isGo reports whether it must be the resolver written in Go,
// the only one that uses the dialer.
//
// The dialer closes a socket as soon as the caller is gone; the resolver would keep it for 5 s (timeout in
// resolv.conf(5)). It does not close the socket at the deadline, because that would turn the timeout into another
// error.
func newResolver(dial dialer, isGo bool) *net.Resolver {
	return &net.Resolver{PreferGo: isGo,
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
func readNameFiles() { newPlan("localhost", onlyGo) }

// onlyGo reports whether the resolver is always the one written in Go. It needs no thread for a lookup that hangs.
const onlyGo = runtime.GOOS == "linux"

// A plan is how the resolver looks up a name.
type plan struct {
	names   []string // full names for which it queries DNS servers, in their order
	servers int      // number of DNS servers
	queries int      // how often it queries one of them for one full name and IP version, if none replies

	// If there are no names, these are the addresses that hosts(5) has for the name, or the resolver's error.
	addrs []netip.Addr
	err   error
}

// newPlan returns how the resolver would look up a name. The names are usually the name itself, or with each search
// domain of resolv.conf(5). isGo reports whether it is the resolver written in Go. If it is not, the plan has the name
// only: the system's resolver has its own rules.
//
// The resolver looks up the search list for both IP versions at once and reports neither which full name an
// address belongs to, nor that one IP version failed. Package net exports neither the list nor the servers, so newPlan
// lets the resolver query servers that have no answer, and notes the names and the servers. No packet is sent.
func newPlan(name string, isGo bool) (p plan) {
	if !isGo {
		return plan{names: []string{name}}
	}
	var mu sync.Mutex
	servers := make(map[string]bool)
	resolver := newResolver(func(_ context.Context, _, server string) (net.Conn, error) {
		return &refusal{asked: func(name string, kind uint16) (rcode byte) {
			mu.Lock()
			defer mu.Unlock()
			if !slices.Contains(p.names, name) { // it is asked for each IP version
				p.names = append(p.names, name)
			}
			if len(p.names) > 1 {
				return nxdomain // the other servers would be asked for the first name again
			}
			if kind == typeA {
				servers[server] = true
				p.queries++
			}
			return servfail
		}}, nil
	}, true)
	p.addrs, p.err = resolver.LookupNetIP(context.Background(), "ip", name) // nothing there can hang
	p.servers = len(servers)
	return p
}

// Values in DNS messages (RFC 1035, sections 3.2.2 and 4.1.1).
const (
	typeA    = 1
	servfail = 2 // the resolver then asks the next server
	nxdomain = 3 // the resolver then asks no other server
)

// A refusal is a connection to a DNS server that does not exist, which has no answer to any query. It is a TCP
// connection to the resolver: two bytes with the length precede each message (RFC 1035, section 4.2.2).
type refusal struct {
	net.Conn // nil: the resolver uses no other method
	asked    func(name string, kind uint16) (rcode byte)
	answer   bytes.Buffer
}

func (r *refusal) Write(query []byte) (int, error) {
	const flags, question = 2 + 2, 2 + 12 // offsets of the header's flags and of the name
	var name strings.Builder
	at := question
	for ; query[at] > 0; at += 1 + int(query[at]) {
		name.Write(query[at+1 : at+1+int(query[at])])
		name.WriteByte('.')
	}
	answer := slices.Clone(query)
	answer[flags] |= 0x80 // a response
	answer[flags+1] |= r.asked(name.String(), binary.BigEndian.Uint16(query[at+1:]))
	r.answer.Write(answer)
	return len(query), nil
}

func (r *refusal) Read(b []byte) (int, error)  { return r.answer.Read(b) }
func (r *refusal) SetDeadline(time.Time) error { return nil }
func (r *refusal) Close() error                { return nil }

// resolve looks up the addresses of a full name in one network, "ip4" or "ip6", until the context ends. Messages have
// the name that the target contains.
func (l *lookup) resolve(full, network string) answer {
	var unsent atomic.Uintptr // the errno for which this host could not send a query
	queries := turn{shares: l.shares, dial: l.dial}
	addrs, err := newResolver(func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := queries.query(ctx, network, cmp.Or(l.server, address))
		// A host without IPv6 has no source address for a query to an IPv6 server.
		if errno := faultOf(err); errno != syscall.EADDRNOTAVAIL {
			unsent.CompareAndSwap(0, uintptr(errno))
		}
		return conn, err
	}, l.isGo()).LookupNetIP(l.ctx, network, full)
	var dns *net.DNSError
	if errors.As(err, &dns) {
		dns.Name, dns.Server = l.name, cmp.Or(l.server, dns.Server)
	}
	fault := faultOf(err)
	if errno := syscall.Errno(unsent.Load()); errno != 0 {
		fault = errno // even if the resolver got an answer from another server
	}
	if fault != 0 {
		return answer{network: network, fault: fmt.Errorf("resolve %s: %w", l.name, fault)}
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
