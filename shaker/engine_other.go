//go:build !linux

package shaker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"
)

// An engine on this platform completes the handshake with the standard dialer and then resets the
// connection, because nothing on this platform can withhold the final ACK.
type engine struct {
	closing context.Context // done when close has been called
	cancel  context.CancelFunc

	mu      sync.Mutex // makes checking closing and adding to running one step
	running sync.WaitGroup

	calling sync.Mutex // held to pass on a result of a Repetition
}

func newEngine(raw *Raw) (*engine, error) {
	if raw != nil {
		return nil, fmt.Errorf("SYNs without a socket: %w on %s", errors.ErrUnsupported, runtime.GOOS)
	}
	e := &engine{}
	e.closing, e.cancel = context.WithCancel(context.Background())
	return e, nil
}

func (e *engine) close() {
	e.mu.Lock()
	e.cancel()
	e.mu.Unlock()
	e.running.Wait()
}

// err returns ErrClosed if the engine is closed.
func (e *engine) err() error {
	if e.closing.Err() != nil {
		return ErrClosed
	}
	return nil
}

func (e *engine) strays() Strays   { return Strays{} }
func (e *engine) resets() Resets   { return Resets{} }
func (e *engine) ports() PortRange { return PortRange{} }

func (e *engine) isRaw(*Options) bool { return false }

// begin counts a handshake as running, unless the engine is closed.
func (e *engine) begin() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing.Err() != nil {
		return ErrClosed
	}
	e.running.Add(1)
	return nil
}

func (*engine) scopeID(zone string) (uint32, error) { return scopeID(zone) }

func (e *engine) shake(
	ctx context.Context, target netip.AddrPort, _ uint32, options *Options, called, deadline time.Time,
	result *Result,
) (err error) {
	*result, err = e.dial(ctx, target, options, called, deadline)
	return err
}

// dial completes a handshake and resets the connection.
func (e *engine) dial(
	ctx context.Context, target netip.AddrPort, options *Options, called, deadline time.Time,
) (Result, error) {
	if err := options.supported(); err != nil {
		return Result{}, err
	}
	if err := e.begin(); err != nil {
		return Result{}, err
	}
	defer e.running.Done()
	conn, r, err := e.connect(ctx, target, options, called, deadline)
	if conn != nil {
		if !options.FIN {
			conn.SetLinger(0)
		}
		conn.Close()
	}
	return r, err
}

// connect completes a handshake. It returns a connection if the outcome is Open.
func (e *engine) connect(
	ctx context.Context, target netip.AddrPort, options *Options, called, deadline time.Time,
) (*net.TCPConn, Result, error) {
	if !deadline.IsZero() && !time.Now().Before(deadline) {
		return nil, Result{}, ErrUnsent
	}
	dialing, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.closing, cancel)()

	r := Result{Peer: target}
	dialer := net.Dialer{Deadline: deadline}
	dialer.SetMultipathTCP(false)
	if source := options.Source.Unmap(); source.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	}
	start := time.Now()
	conn, err := dialer.DialContext(dialing, "tcp", target.String())
	if err == nil {
		r.Outcome = Open
		r.Handshake = time.Since(start)
		r.Waited = r.Handshake
		r.ACKSent = true
		r.Local = conn.LocalAddr().(*net.TCPAddr).AddrPort()
		return conn.(*net.TCPConn), r, nil
	}
	errno := dialErrno(err)
	switch {
	case e.closing.Err() != nil:
		return nil, Result{}, ErrClosed
	case ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, Result{}, ctx.Err()
	case beforeConnect(err), errno == 0:
		return nil, Result{}, err
	}
	outcome, ok := verdict(errno, ICMP{})
	if !ok {
		return nil, Result{}, err
	}
	r.Waited = time.Since(start)
	if outcome == Timeout && !deadline.IsZero() && !isTimeout(r.Waited, deadline.Sub(called)) {
		return nil, Result{}, ErrUnsent
	}
	r.Outcome, r.Errno = outcome, errno
	return nil, r, nil
}

// beforeConnect reports whether the error is that of a system call before connect(2), such as
// socket(2) or bind(2).
func beforeConnect(err error) bool {
	call, ok := errors.AsType[*os.SyscallError](err)
	return ok && !strings.HasPrefix(call.Syscall, "connect") // connect, or ConnectEx on Windows
}

// supported returns an error for an option that the standard dialer does not have.
func (o *Options) supported() error {
	for _, option := range []struct {
		name string
		set  bool
	}{
		{"source port", o.SourcePort != 0},
		{"source ports", o.SourcePorts != PortRange{}},
		{"interface", o.Interface != ""},
		{"DSCP", o.DSCP != 0},
		{"mark", o.Mark != 0},
		{"TTL", o.TTL != 0},
	} {
		if option.set {
			return fmt.Errorf("%s: %w on %s", option.name, errors.ErrUnsupported, runtime.GOOS)
		}
	}
	return nil
}

// try returns an error for an option that is not supported, and for a source that is not an address
// of this host.
func (o *Options) try() error {
	if err := o.supported(); err != nil || !o.Source.IsValid() {
		return err
	}
	source := o.Source.Unmap()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)))
	if err != nil {
		if errno := dialErrno(err); errno != 0 {
			err = errno
		}
		return fmt.Errorf("source %v: %w", source, err)
	}
	return conn.Close()
}

func (s *Shaker) tracePath(context.Context, Result, TraceOptions) (Path, error) {
	return Path{}, fmt.Errorf("%w on %s", errors.ErrUnsupported, runtime.GOOS)
}
