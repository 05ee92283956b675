package shaker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"
)

var (
	// ErrClosed is returned by Shake and Trace if the Shaker is closed before the call, or
	// during it. It wraps [os.ErrClosed].
	ErrClosed error = &sentinel{text: "the shaker is closed", general: os.ErrClosed}

	// ErrUnsent is returned by Shake if the deadline passed before a SYN was sent: either
	// the deadline was over when Shake was called, or this host is overloaded. It wraps
	// [os.ErrDeadlineExceeded].
	ErrUnsent error = &sentinel{text: "the deadline passed before a SYN was sent", general: os.ErrDeadlineExceeded}

	// ErrTarget is returned by Shake if no SYN can be addressed to the target: port 0, the
	// zero Addr, an IPv6 zone that does not exist on this host, or a link-local IPv6 address
	// without a zone. It is also returned if the target does not match the options: the
	// family of [Options.Source], the zone of Source, or [Options.Interface]. It wraps
	// [os.ErrInvalid].
	ErrTarget error = &sentinel{text: "invalid target", general: os.ErrInvalid}
)

// A sentinel is an error of this package that wraps a more general one of package os.
type sentinel struct {
	text    string
	general error
}

func (e *sentinel) Error() string { return e.text }
func (e *sentinel) Unwrap() error { return e.general }

// Config configures a [Shaker]. Its zero value holds the defaults.
type Config struct {
	// Timeout applies to handshakes whose [Options.Timeout] is 0. If both are 0, only the
	// context's deadline limits a handshake. If the context has no deadline either, the
	// kernel gives up after about two minutes (tcp_syn_retries in tcp(7)). A negative
	// Timeout is an error.
	Timeout time.Duration
}

// A Shaker performs TCP handshakes. It is safe for concurrent use by any number of goroutines.
type Shaker struct {
	engine  *engine
	timeout time.Duration
}

// New starts a Shaker. A nil config means the defaults. The caller must call [Shaker.Close] when
// it no longer needs the Shaker.
//
// On Linux a Shaker holds one descriptor and one goroutine for each processor that Go may use
// (GOMAXPROCS). If New cannot get a descriptor, the error wraps the errno, such as EMFILE.
func New(config *Config) (*Shaker, error) {
	if config == nil {
		config = &Config{}
	}
	if config.Timeout < 0 {
		return nil, fmt.Errorf("shaker: negative timeout %v", config.Timeout)
	}
	engine, err := newEngine()
	if err != nil {
		return nil, fmt.Errorf("shaker: %w", err)
	}
	return &Shaker{engine: engine, timeout: config.Timeout}, nil
}

// Shake performs one handshake with the target: SYN, SYN-ACK, RST. Nil options mean the defaults.
//
// The Result is a verdict about the target, whether the target is open or not. A deadline that
// passes after the SYN was sent is the verdict [Timeout]. When Shake returns, the handshake's
// socket is closed.
//
// An error means that there is no verdict. The error wraps
//   - the context's error, such as [context.Canceled], unless that is a passed deadline;
//   - [ErrClosed], [ErrUnsent] or [ErrTarget];
//   - the errno for an exhausted local resource, such as EMFILE, ENOBUFS or EADDRNOTAVAIL (no
//     local port is free);
//   - for options that cannot be used, the same errors as [Options.Check].
func (s *Shaker) Shake(ctx context.Context, target netip.AddrPort, options *Options) (Result, error) {
	result, err := s.shake(ctx, target, options)
	if err != nil {
		return Result{}, fmt.Errorf("shake %v: %w", target, err)
	}
	return result, nil
}

func (s *Shaker) shake(ctx context.Context, target netip.AddrPort, options *Options) (Result, error) {
	if !target.Addr().IsValid() || target.Port() == 0 {
		return Result{}, ErrTarget
	}
	if options == nil {
		options = &Options{}
	}
	if err := options.validate(); err != nil {
		return Result{}, err
	}
	timeout := s.timeout
	if options.Timeout != 0 {
		timeout = options.Timeout
	}
	deadline, limited := ctx.Deadline()
	if timeout > 0 {
		if end := time.Now().Add(timeout); !limited || end.Before(deadline) {
			deadline = end
		}
	}
	if err := ctx.Err(); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return Result{}, ErrUnsent
		}
		return Result{}, err
	}
	target = netip.AddrPortFrom(target.Addr().Unmap(), target.Port())
	if needsZone(target.Addr()) {
		return Result{}, fmt.Errorf("%w: %w", ErrTarget, errNoZone)
	}
	if source := options.Source.Unmap(); source.IsValid() && source.Is4() != target.Addr().Is4() {
		return Result{}, fmt.Errorf("%w: not of the same family as the source %v", ErrTarget, source)
	}
	scope, err := scopeID(target.Addr().Zone(), ErrTarget)
	if err != nil {
		return Result{}, err
	}
	return s.engine.shake(ctx, target, scope, options, deadline)
}

// scopeID returns the index of the interface that an IPv6 zone names, or 0 for no zone. If there
// is no such interface, the error wraps missing. Any other error means that the lookup failed.
func scopeID(zone string, missing error) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	iface, err := net.InterfaceByName(zone)
	if number, notNumber := strconv.ParseUint(zone, 10, 31); notNumber == nil {
		iface, err = net.InterfaceByIndex(int(number))
	}
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return 0, fmt.Errorf("zone %q: %w", zone, err)
	case err != nil:
		return 0, fmt.Errorf("%w: zone %q: %w", missing, zone, err)
	}
	return uint32(iface.Index), nil
}

// Close ends every running handshake with [ErrClosed] and releases the Shaker's descriptors and
// goroutines before it returns. A second Close does nothing. The error is always nil.
func (s *Shaker) Close() error {
	s.engine.close()
	return nil
}
