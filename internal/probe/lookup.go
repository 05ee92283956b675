package probe

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

// A lookup looks up the addresses of a name for one probe. It asks for the IPv4 addresses and for the IPv6
// addresses at the same time, and keeps the two answers apart: the probe decides for each how long to wait, and
// what it means if there is none.
type lookup struct {
	ctx      context.Context
	end      context.CancelFunc // ends the queries and closes their sockets
	dial     dialer
	server   string // the module's own DNS server, "" for those of resolv.conf(5)
	shares   *shares
	name     string
	networks []string // "ip4", "ip6" or both

	asked   bool        // queries were sent: the answer is not from hosts(5)
	rest    []string    // full names of the search list that have not been asked for
	answers chan answer // has room for one answer of each network, so that no query outlives the probe
	waiting []string    // networks whose answer for the current full name is not known yet
	found   bool        // there are addresses: the rest of the search list does not count
	failed  *nameError  // first failure for the current full name
	earlier *nameError  // first failure for the full names before it
	absent  *nameError  // first answer that there is no address
}

// newLookup starts to look up the name of a target. The caller must call end.
func newLookup(ctx context.Context, dial dialer, r *Report) *lookup {
	networks := r.networks()
	l := &lookup{dial: dial, name: r.Name, networks: networks, answers: make(chan answer, len(networks))}
	l.ctx, l.end = context.WithCancel(ctx)
	if own := r.Module.TCP.DNSServer; own.IsValid() {
		l.server = own.String()
	}
	plan := newPlan(r.Name, l.isGo())
	if l.server != "" {
		plan.servers = 1
	}
	if len(plan.names) > 0 {
		l.rest = plan.names
		l.shares = newShares(plan, r.Start, r.Start.Add(r.lookupTime()), r.budget())
		l.ask()
		return l
	}
	// hosts(5) has the name, or there is no such name and none to ask a server for.
	l.waiting = slices.Clone(networks)
	for _, network := range networks {
		l.answers <- newAnswer(network, plan.addrs, plan.err)
	}
	return l
}

// isGo reports whether the resolver must be the one written in Go: the system's resolver does not take a DNS server.
func (l *lookup) isGo() bool { return onlyGo || l.server != "" }

// ask asks for the next full name of the search list. It is called when there are no addresses for the ones before
// it. Both networks continue together: the IPv4 addresses of one name and the IPv6 addresses of another one would
// not be of the same host.
func (l *lookup) ask() {
	l.asked = true
	if l.earlier == nil {
		l.earlier = l.failed
	}
	l.failed = nil
	full := l.rest[0]
	l.rest = l.rest[1:]
	l.waiting = slices.Clone(l.networks)
	for _, network := range l.networks {
		go func() { l.answers <- l.resolve(full, network) }()
	}
}

// next waits for an answer. ok is false if there is no further answer, or none until the given time or the end of
// the context.
func (l *lookup) next(until time.Time) (a answer, ok bool) {
	if len(l.waiting) == 0 {
		return answer{}, false
	}
	if a, ok = l.receive(until); !ok {
		return answer{}, false
	}
	l.waiting = slices.DeleteFunc(l.waiting, func(network string) bool { return network == a.network })
	switch {
	case a.err == nil:
		l.found = true
	case a.err.result == config.DNSNotFound && l.absent == nil:
		l.absent = a.err
	case a.err.result != config.DNSNotFound && l.failed == nil:
		l.failed = a.err
	}
	if len(l.waiting) == 0 && !l.found && len(l.rest) > 0 {
		l.ask()
	}
	return a, true
}

// receive receives an answer. ok is false if there is none until the given time or the end of the context.
func (l *lookup) receive(until time.Time) (a answer, ok bool) {
	select {
	case a = <-l.answers:
		return a, true
	default: // a timer is worth its cost only if there is something to wait for
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case a = <-l.answers:
		return a, true
	case <-timer.C:
	case <-l.ctx.Done():
	}
	return answer{}, false
}

// isWaiting reports whether the answer of a network is not known yet.
func (l *lookup) isWaiting(network string) bool { return slices.Contains(l.waiting, network) }

// failure returns why the addresses of the name are not all known. It returns nil if they are, even if there are
// none.
func (l *lookup) failure() *nameError {
	switch {
	case len(l.waiting) > 0:
		return &nameError{result: config.DNSTimeout, err: context.DeadlineExceeded}
	case l.failed == nil && !l.found:
		return l.earlier
	}
	return l.failed
}

// An answer is what was found out about the addresses of a name in one network.
type answer struct {
	network string
	addrs   []netip.Addr // in the resolver's order (RFC 6724)
	err     *nameError   // why there are none
	fault   error        // why this host could not ask
}

// A nameError is the reason why a name has no address, or why its addresses are not known.
type nameError struct {
	result string // of the probe
	err    error
}
