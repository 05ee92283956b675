//go:build !linux

package shaker

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// holding is the part of a Connection that its goroutines drive: one reads, and the other one does everything else.
type holding struct {
	engine  *engine
	options Options
	cancel  context.CancelFunc
	dialed  chan struct{} // closed when connect has returned
	ended   chan struct{} // closed when the descriptor is closed

	mu       sync.Mutex // guards the fields below
	conn     *net.TCPConn
	since    time.Time
	lastData time.Time
	local    netip.AddrPort

	// Only the goroutine that does not read uses the fields below.

	splitter splitter
	asked    time.Time // since when a greeting or an answer is missing; zero if none is
	sent     time.Time // when the last heartbeat was sent
	next     time.Time // when the next heartbeat is due or, while an answer is missing, its judgement; zero is never
	greeted  bool
	broken   error // of sending, because the connection has ended; nil if there is none
}

// arrived is what one read has returned.
type arrived struct {
	data []byte
	at   time.Time
	err  error
}

// hold starts the goroutine of a Connection.
func (e *engine) hold(c *Connection, _ uint32, options *Options) error {
	if err := options.supported(); err != nil {
		return err
	}
	if err := e.begin(); err != nil {
		return err
	}
	var ctx context.Context
	c.engine, c.options, c.dialed, c.ended = e, *options, make(chan struct{}), make(chan struct{})
	ctx, c.cancel = context.WithCancel(e.closing)
	go func() {
		defer e.running.Done()
		end := c.live(ctx)
		if end.Kind != Ended {
			end = ConnectionEvent{Kind: Ended, Time: time.Now(), Err: c.describe(ErrClosed)}
		}
		end.State, _ = c.state()
		c.close()
		c.cancel()
		c.happen(end)
	}()
	return nil
}

// close closes the descriptor, if it is not closed.
func (c *Connection) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isOver() {
		return
	}
	close(c.ended)
	if c.conn == nil {
		return
	}
	if !c.fin {
		c.conn.SetLinger(0)
	}
	c.conn.Close()
}

// live opens the connection and holds it until it ends, and returns the event of its end; the zero event if the
// context was cancelled.
func (c *Connection) live(ctx context.Context) ConnectionEvent {
	called := time.Now()
	end := ConnectionEvent{Kind: Ended}
	conn, result, err := c.engine.connect(ctx, c.target, &c.options, called, called.Add(c.options.Timeout))
	end.Time = time.Now()
	c.mu.Lock()
	c.conn = conn
	if conn != nil {
		c.since, c.local = end.Time, result.Local
	}
	c.mu.Unlock()
	close(c.dialed)
	switch {
	case ctx.Err() != nil:
		return ConnectionEvent{}
	case err != nil:
		end.Err = c.describe(err)
		return end
	case conn == nil:
		end.Result, end.Outcome, end.Errno = result, result.Outcome, result.Errno
		return end
	}
	c.mu.Lock()
	if err = conn.SetKeepAlive(false); c.keepAlive != (KeepAlive{}) {
		err = SetKeepAlive(conn, c.keepAlive)
	}
	c.mu.Unlock()
	if err != nil {
		end.Err = c.describe(err)
		return end
	}
	c.happen(ConnectionEvent{Kind: Established, Time: end.Time, Result: result})
	return c.keep(ctx, conn, end.Time)
}

// keep holds an established connection.
func (c *Connection) keep(ctx context.Context, conn *net.TCPConn, since time.Time) ConnectionEvent {
	stop := make(chan struct{})
	arrivals := make(chan arrived)
	reading := sync.WaitGroup{}
	reading.Go(func() { readAll(conn, arrivals, stop) })
	defer reading.Wait()
	defer close(stop)
	defer conn.SetReadDeadline(time.Unix(1, 0))

	c.greeted = c.greeting == 0
	switch {
	case !c.greeted:
		c.asked, c.next = since, since.Add(c.greeting)
	case c.heartbeat.Interval > 0:
		c.next = since
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var due <-chan time.Time
		if !c.next.IsZero() {
			timer.Reset(time.Until(c.next))
			due = timer.C
		}
		var err error
		select {
		case <-ctx.Done():
			return ConnectionEvent{}
		case a := <-arrivals:
			err = c.take(a)
		case <-due:
			select {
			case a := <-arrivals: // it may be the missing answer
				err = c.take(a)
			default:
				err = c.lookAfter(conn)
			}
		}
		if err != nil {
			return c.endOf(err)
		}
	}
}

// readAll reads until the connection ends, or stop is closed.
func readAll(conn *net.TCPConn, arrivals chan<- arrived, stop <-chan struct{}) {
	for {
		data := make([]byte, 4096)
		n, err := conn.Read(data)
		select {
		case arrivals <- arrived{data: data[:n], at: time.Now(), err: err}:
		case <-stop:
			return
		}
		if err != nil {
			return
		}
	}
}

// take takes what has arrived. An error ends the connection.
func (c *Connection) take(a arrived) error {
	if len(a.data) > 0 {
		c.mu.Lock()
		c.lastData = a.at
		c.mu.Unlock()
	}
	for data := a.data; ; {
		frame, rest, ok, err := c.splitter.next(&c.framing, data)
		if err != nil {
			return err
		}
		if !ok {
			if a.err == io.EOF && c.broken != nil {
				return c.broken // the system reports it once
			}
			return a.err
		}
		data = rest
		e := ConnectionEvent{Kind: Received, Time: a.at, Frame: append([]byte{}, frame...)}
		if !c.asked.IsZero() {
			e.Kind = Answered
			if !c.greeted {
				e.Kind = Greeted
			}
			e.Latency = a.at.Sub(c.asked)
			c.asked, c.greeted, c.next = time.Time{}, true, time.Time{}
			switch {
			case c.heartbeat.Interval == 0:
			case e.Kind == Greeted:
				c.next = a.at
			default:
				c.next = c.sent.Add(c.heartbeat.next(0, a.at.Sub(c.sent)))
			}
		}
		c.happen(e)
	}
}

// lookAfter sends a heartbeat, or passes on that there is no answer. An error ends the connection.
func (c *Connection) lookAfter(conn *net.TCPConn) error {
	now := time.Now()
	if c.asked.IsZero() {
		c.asked, c.sent, c.next = now, now, now.Add(c.heartbeat.Timeout)
		conn.SetWriteDeadline(c.next) // a peer that does not read takes no data
		_, err := conn.Write(c.heartbeat.Send)
		switch {
		case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
		case c.endOf(err).Err != nil:
			return err
		case ErrnoName(dialErrno(err)) != "EPIPE": // EPIPE may come after a FIN: reading gives the reason
			c.broken = err
		}
		return nil // what has arrived before an error comes first
	}
	c.happen(ConnectionEvent{Kind: Unanswered, Time: now, Outcome: Timeout, Errno: dialErrno(os.ErrDeadlineExceeded)})
	if c.next = c.next.Add(c.heartbeat.Interval); c.heartbeat.Interval == 0 {
		c.next = time.Time{}
	}
	return nil
}

// endOf returns the event of the end because of an error.
func (c *Connection) endOf(err error) ConnectionEvent {
	e := ConnectionEvent{Kind: Ended, Time: time.Now()}
	switch errno := dialErrno(err); {
	case errors.Is(err, io.EOF):
		e.Outcome = Closed
	case errors.Is(err, errLongFrame):
		e.Outcome = Mismatch
	default:
		var ok bool
		if e.Outcome, ok = verdict(errno, ICMP{}); !ok || errno == 0 {
			e.Outcome, e.Err = 0, c.describe(err)
		} else {
			e.Errno = errno
		}
	}
	return e
}

// happen passes an event on.
func (c *Connection) happen(e ConnectionEvent) {
	c.engine.calling.Lock()
	defer c.engine.calling.Unlock()
	c.pass(e)
}

func (c *Connection) state() (ConnectionState, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isOver() {
		return ConnectionState{}, ErrEnded
	}
	return ConnectionState{Established: c.since, LastData: c.lastData, Local: c.local, Peer: c.target}, nil
}

func (c *Connection) setKeepAlive(k KeepAlive) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isOver() {
		return ErrEnded
	}
	if c.conn != nil {
		if err := SetKeepAlive(c.conn, k); err != nil {
			return err
		}
	}
	c.keepAlive = k
	return nil
}

// isOver reports whether the descriptor is closed. Its caller holds mu.
func (c *Connection) isOver() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// stop does not wait for the goroutine, which may be calling the function that has called Close.
func (c *Connection) stop() {
	c.cancel()
	<-c.dialed
	c.close()
}
