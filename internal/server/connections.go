package server

import (
	"container/list"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// otherConnections is how many connections may be open in addition to those of the probes in flight: for
	// the pages and metrics of the exporter, for requests that are rejected, and for idle connections.
	otherConnections = 32

	// maxWaiting is how many connections may wait for a request. Prometheus keeps at most 1000 idle ones.
	maxWaiting = 1000

	// firstRequest is how long a new connection may wait for the end of its first request's header while there
	// are too many connections. At other times it may wait for [requestLimit].
	firstRequest = time.Second
)

// maxConnections returns the limit of connections for a limit of probes in flight, and the one that is derived from
// the resources of the process. 0 means no limit.
func maxConnections(inFlight, derived int) int {
	if inFlight == 0 {
		return 0
	}
	if derived > 0 {
		// A probe of an address needs no descriptors for DNS, so there may be more of them than derived.
		inFlight = min(inFlight, derived+derived/2)
	}
	return inFlight + otherConnections
}

// connections limits the connections of a server, so that none of the probes lacks the descriptors or the memory
// that other connections hold. If there are too many, it closes one that has not sent its first request in time, or
// else the one that has been idle for the longest time. If there is no such connection, the server accepts the next
// one later. It never closes a connection with a running request.
type connections struct {
	limit   int // of all connections
	waiting int // limit of those without a running request
	first   time.Duration

	// reserved returns how many of limit must not be open now, because others need their descriptors; nil means none.
	reserved func() int

	mu      sync.Mutex
	changed sync.Cond // on mu
	open    map[net.Conn]*connection
	closing int       // number of the open ones that are being closed
	unasked list.List // of *connection, without any request so far, oldest first
	idle    list.List // of *connection, between two requests, longest idle first
}

// A connection is an open one.
type connection struct {
	net.Conn
	since   time.Time // when it was accepted
	closing bool
	list    *list.List    // in which the connection is, nil while a request runs
	element *list.Element // in list
}

// limitConnections limits the number of the server's connections, and that of its running requests.
func limitConnections(server *http.Server, limit int) *connections {
	c := &connections{limit: limit, waiting: min(limit, maxWaiting), first: firstRequest}
	c.open = make(map[net.Conn]*connection)
	c.changed.L = &c.mu
	server.ConnState = c.follow
	server.Handler = limitRequests(server.Handler, limit)
	return c
}

// limitRequests limits the number of running requests. This only has an effect with HTTP/2, where a connection may
// have hundreds of them.
func limitRequests(next http.Handler, limit int) http.Handler {
	running := make(chan struct{}, limit)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case running <- struct{}{}:
			defer func() { <-running }()
			next.ServeHTTP(w, r)
		default: // without a body, for which the client could let the server wait
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
}

// follow is the server's http.Server.ConnState. The server calls it for a new connection before it accepts another
// one, and so accepts none until follow returns.
func (c *connections) follow(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.changed.Broadcast()
	switch state {
	case http.StateNew:
		n := &connection{Conn: conn, since: time.Now()}
		c.open[conn] = n
		c.move(n, &c.unasked)
		c.makeRoom(n)
	case http.StateActive:
		c.move(c.open[conn], nil)
	case http.StateIdle:
		c.move(c.open[conn], &c.idle)
		if c.tooMany() {
			c.evict()
		}
	case http.StateClosed, http.StateHijacked:
		if n := c.open[conn]; n.closing {
			c.closing--
		} else {
			c.move(n, nil)
		}
		delete(c.open, conn)
	}
}

// move moves a connection to the end of a list, or to none if to is nil.
func (c *connections) move(n *connection, to *list.List) {
	if n.closing {
		return
	}
	if n.list != nil {
		n.list.Remove(n.element)
	}
	if n.list = to; to != nil {
		n.element = to.PushBack(n)
	}
}

// makeRoom returns when the limits permit a new connection, which has been added already.
func (c *connections) makeRoom(added *connection) {
	for !added.closing && (len(c.open) > c.most() || c.tooMany()) {
		if c.tooMany() && c.evict() {
			continue
		}
		c.wait()
	}
}

// wait returns when a connection has changed its state, or when the oldest one without a request may be closed.
func (c *connections) wait() {
	if oldest := c.unasked.Front(); oldest != nil {
		left := c.first - time.Since(oldest.Value.(*connection).since)
		defer time.AfterFunc(left, func() {
			c.mu.Lock() // not before Wait
			defer c.mu.Unlock()
			c.changed.Broadcast()
		}).Stop()
	}
	c.changed.Wait()
}

// most returns how many connections may be open now.
func (c *connections) most() int {
	if c.reserved == nil {
		return c.limit
	}
	return max(min(c.limit, otherConnections), c.limit-c.reserved())
}

// tooMany reports whether there are too many connections, without those that are being closed.
func (c *connections) tooMany() bool {
	return len(c.open)-c.closing > c.most() || c.unasked.Len()+c.idle.Len() > c.waiting
}

// evict closes a connection that waits for a request, and reports whether there is one that may be closed.
func (c *connections) evict() bool {
	victim := c.unasked.Front()
	if victim == nil || time.Since(victim.Value.(*connection).since) < c.first {
		victim = c.idle.Front()
	}
	if victim == nil {
		return false
	}
	n := victim.Value.(*connection)
	c.move(n, nil)
	n.closing = true
	c.closing++
	go n.Close() // may have to wait for a TLS client
	return true
}
