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
	// ErrClosed is returned by Shake when the Shaker is closed, or is being
	// closed while the handshake is under way. It wraps [os.ErrClosed].
	ErrClosed error = &sentinel{text: "the shaker is closed", wider: os.ErrClosed}

	// ErrUnsent is returned by Shake when the deadline passed before a SYN could
	// be sent. Nothing was learnt about the target: either the deadline was over
	// when Shake was called, or this machine is overloaded. It wraps
	// [os.ErrDeadlineExceeded].
	ErrUnsent error = &sentinel{text: "the deadline passed before a SYN was sent", wider: os.ErrDeadlineExceeded}

	// ErrTarget is returned by Shake for a target to which no SYN can be
	// addressed: port 0, no address, an IPv6 zone that this machine lacks, or a
	// link-local IPv6 address without one; or none from [Options.Source], which is
	// of another family, or of another zone.
	ErrTarget error = &sentinel{text: "no SYN can be addressed to it", wider: os.ErrInvalid}
)

// sentinel is an error with a wider error of the standard library behind it.
type sentinel struct {
	text  string
	wider error
}

func (e *sentinel) Error() string { return e.text }
func (e *sentinel) Unwrap() error { return e.wider }

// Config configures a [Shaker]. Its zero value holds the defaults.
type Config struct {
	// Timeout is the [Options.Timeout] of handshakes that set none. 0 means
	// that only the context limits them; without a deadline there either, the
	// kernel gives up by itself after about two minutes (tcp_syn_retries in
	// tcp(7)).
	Timeout time.Duration
}

// A Shaker performs TCP handshakes. It is safe for use by any number of
// goroutines at once.
type Shaker struct {
	engine  *engine
	timeout time.Duration
}

// New starts a Shaker. A nil config means the defaults. The caller must Close it.
//
// On Linux it holds a descriptor for each processor that Go may use (GOMAXPROCS). The
// error is that of the system call that could not provide one.
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

// Shake performs one handshake with the target: SYN, SYN-ACK, RST. Nil options
// mean the defaults.
//
// The Result is a verdict about the target, open or not; an error means that
// there is none, because this side could not measure. It wraps
//   - [context.Canceled], or whatever else ended the context but a deadline;
//   - [ErrClosed], [ErrUnsent] or [ErrTarget];
//   - the errno of what this machine lacks, such as EMFILE, ENOBUFS or
//     EADDRNOTAVAIL (no local port is left);
//   - what [Options.Check] returns, for options that cannot be used.
//
// A deadline that passes after the SYN was sent is the verdict [Timeout].
// When Shake returns, the handshake's socket is closed.
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
		return Result{}, fmt.Errorf("%w: the source %v is of another family", ErrTarget, source)
	}
	scope, err := scopeID(target.Addr().Zone(), ErrTarget)
	if err != nil {
		return Result{}, err
	}
	return s.engine.shake(ctx, target, scope, options, deadline)
}

// scopeID returns the number of the interface that an IPv6 zone names. The error wraps
// missing if there is none; any other one is this host's, which could not look.
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

// Close ends every handshake that is under way with [ErrClosed], frees all that
// the Shaker holds and returns when that is done. Closing again does nothing.
func (s *Shaker) Close() error {
	s.engine.close()
	return nil
}
