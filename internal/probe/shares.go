package probe

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"time"
)

// Shares divide the time for the lookup of a name among the queries of the resolver, so that neither a DNS server that
// does not reply nor a lost packet uses up all of it. The resolver itself waits for each server for 5 s, or for the
// timeout in resolv.conf(5), whatever the deadline is.
//
// The resolver asks one server after the other, and all of them again if none has replied (attempts in
// resolv.conf(5), by default 2). The first round is short, so that a silent target still has the time that it needs,
// and a server that did not reply to another query of the lookup is left out. In the further rounds, the queries share
// the time that is left, so that a server that is only slow has a chance, too. The last query has no limit except that
// of the resolver and of the lookup.
type shares struct {
	servers, queries int       // of the resolver, for each full name and IP version
	early, end       time.Time // of the first round, and of the lookup

	mu     sync.Mutex
	silent map[string]bool // servers that did not reply
}

// A turn is the sequence of queries for one full name and IP version. The resolver dials a server for each query, and
// again, with TCP, if the reply was truncated.
type turn struct {
	shares *shares
	dial   dialer

	asked int // number of queries

	// Of the last query. Its end is zero if it has no share.
	network, server string
	end             time.Time
}

// errSilent is the error of a query that is not sent. The resolver continues with the next one.
var errSilent = errors.New("the server did not reply to another query of this lookup")

// newShares returns the shares of a lookup that may last from start to end. budget is the time for the lookup and for
// the handshakes.
func newShares(p plan, start, end time.Time, budget time.Duration) *shares {
	first := budget - needed(budget)
	if p.servers > 1 {
		first /= 2 // the address of the preferred protocol is not waited for longer: see patience
	}
	first = min(first, end.Sub(start)/2)
	return &shares{servers: p.servers, queries: p.queries, early: start.Add(first), end: end}
}

// query is a dialer that limits each query to its share.
func (t *turn) query(ctx context.Context, network, server string) (net.Conn, error) {
	if !t.end.IsZero() && !time.Now().Before(t.end) {
		t.shares.setSilent(t.server)
	}
	if truncated := network == "tcp" && t.network == "udp"; !truncated {
		t.asked++
	}
	t.network, t.server, t.end = network, server, time.Time{}
	share, ok := t.shares.of(t.asked, server, time.Now())
	if !ok {
		return nil, errSilent
	}
	if share == 0 {
		return t.dial(ctx, network, server)
	}
	ctx, cancel := context.WithTimeout(ctx, share)
	t.end, _ = ctx.Deadline() // that of the resolver may be sooner
	conn, err := t.dial(ctx, network, server)
	if err != nil {
		cancel()
		return nil, err
	}
	context.AfterFunc(ctx, func() {
		cancel()
		conn.Close() // the resolver then continues with the next query
	})
	return conn, nil
}

// of returns the share of the n-th query, counted from 1. It is 0 if the query has no limit. ok is false if the server
// should not be asked.
func (s *shares) of(n int, server string, now time.Time) (share time.Duration, ok bool) {
	switch early := s.early.Sub(now); {
	case n >= s.queries:
		return 0, true
	case n <= s.servers && s.isSilent(server):
		return 0, false
	case n <= s.servers && early > 0:
		return early / time.Duration(s.servers-n+1), true
	}
	return max(1, s.end.Sub(now)/time.Duration(s.queries-n+1)), true
}

func (s *shares) setSilent(server string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.silent == nil {
		s.silent = make(map[string]bool)
	}
	s.silent[server] = true
}

func (s *shares) isSilent(server string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.silent[server]
}

// allSilent returns the servers that did not reply, in the order of their addresses. There are none without queries.
func (s *shares) allSilent() []string {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.silent))
}
