package shaker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"
)

var (
	// ErrLocal is wrapped by every error that means that this host could not measure: a local
	// resource is exhausted or missing, an option is not supported or not permitted, and also
	// [ErrUnsent] and [ErrClosed]. The error of a verdict ([Result.Err]) never wraps it. The two
	// can have the same errno: EADDRNOTAVAIL without ErrLocal means that this host has no address
	// from which it could reach the target, and with ErrLocal that no local port is free.
	ErrLocal = errors.New("this host could not measure")

	// ErrClosed is returned by all methods of a Shaker that is closed before the call, or during
	// it. It wraps [os.ErrClosed].
	ErrClosed error = &sentinel{text: "the shaker is closed", general: os.ErrClosed}

	// ErrUnsent is returned by Shake if the deadline passed without a reply, and no SYN was sent
	// early enough for the verdict [Timeout]: the deadline was over when Shake was called, or this
	// host is so overloaded that the SYN was not sent at all, or was out for less than three
	// quarters of the time between the call of Shake and the deadline. It does not wrap
	// [os.ErrDeadlineExceeded], because it is not a verdict: only the error of Timeout does.
	ErrUnsent = errors.New("no SYN was sent in time for the deadline")

	// ErrTarget is returned by Shake if no SYN can be addressed to the target: port 0, the
	// zero Addr, or a link-local IPv6 address without a zone. It is also returned if the
	// target does not match the options: the family of [Options.Source], the zone of Source,
	// or [Options.Interface]. It wraps [os.ErrInvalid].
	ErrTarget error = &sentinel{text: "invalid target", general: os.ErrInvalid}
)

// timeoutShare is the part of the time between the call of Shake and the deadline for which the SYN
// must have been out, so that the absence of a reply is the verdict Timeout. The rest is for delays
// of this host.
const timeoutShare = 0.75

// isTimeout reports whether the absence of a reply is the verdict Timeout, if the SYN was out for some
// of the time between the call of Shake and the deadline. If not, it is ErrUnsent.
func isTimeout(out, allotted time.Duration) bool {
	return float64(out) >= timeoutShare*float64(allotted)
}

// errZero is the error of the zero Shaker.
var errZero = fmt.Errorf("%w: it was not started by New", ErrClosed)

// A sentinel is an error of this package that wraps a more general one of package os.
type sentinel struct {
	text    string
	general error
}

func (e *sentinel) Error() string { return e.text }
func (e *sentinel) Unwrap() error { return e.general }

// Config configures a [Shaker]. Its zero value holds the defaults.
type Config struct {
	// Options apply to every handshake for which the caller gives no options.
	Options Options

	// Raw, if not nil, lets handshakes send SYNs without sockets, so that no final ACK can leave. It needs Linux and
	// CAP_NET_RAW.
	Raw *Raw
}

// A Shaker performs TCP handshakes. It is safe for concurrent use by any number of goroutines. The
// zero Shaker is closed: [New] returns a Shaker that works.
type Shaker struct {
	engine  *engine
	options Options
}

// New starts a Shaker. A nil config means the defaults. The caller must call [Shaker.Close] when
// it no longer needs the Shaker.
//
// On Linux a Shaker holds one descriptor and one goroutine for each processor that Go may use
// (GOMAXPROCS). If New cannot get a descriptor, the error wraps [ErrLocal] and the errno, such as
// EMFILE. If an option has a value outside its range, the error wraps [os.ErrInvalid]. New does not
// call [Options.Check].
//
// The Shaker belongs to the network namespace of the thread that calls New: see the package's
// documentation. If ordinary goroutines run in another namespace, it holds one more descriptor, and
// a locked thread for each of its goroutines. New then needs CAP_SYS_ADMIN: otherwise the error
// wraps [ErrLocal] and EPERM.
func New(config *Config) (*Shaker, error) {
	if config == nil {
		config = &Config{}
	}
	if err := config.Options.validate(); err != nil {
		return nil, fmt.Errorf("shaker: %w", err)
	}
	if config.Raw != nil {
		if err := config.Raw.Validate(); err != nil {
			return nil, fmt.Errorf("shaker: %w", err)
		}
	}
	engine, err := newEngine(config.Raw)
	if err != nil {
		return nil, &opError{what: "shaker", err: err, local: true}
	}
	return &Shaker{engine: engine, options: config.Options}, nil
}

// Shake performs one handshake with the target: SYN, SYN-ACK, RST. Nil options mean
// [Config.Options].
//
// The Result is a verdict about the target, whether the target is open or not. If there is no reply
// by the deadline, that is the verdict [Timeout], provided that the SYN was out for three quarters of
// the time since the call of Shake: otherwise the error is [ErrUnsent]. When Shake returns, the
// handshake's socket is closed.
//
// An error means that there is no verdict. The error wraps one of the following:
//   - [ErrTarget], or [os.ErrInvalid] for an option whose value is outside its range: a mistake of
//     the caller;
//   - the context's error and [context.Cause], if the context was cancelled;
//   - [ErrLocal], if this host could not measure. It then also wraps [ErrUnsent]; or [ErrClosed];
//     or the errno for an exhausted local resource, such as EMFILE, ENOBUFS or EADDRNOTAVAIL (no
//     local port is free); or EPERM if this host drops its own SYNs, for example by an output
//     firewall rule, which the kernel reports from the first retransmission on, after about 1 s;
//     or ENODEV if this host has no interface of the name or number that is the target's zone;
//     or the errno or [errors.ErrUnsupported] for an option that this host does not support or
//     permit, like the error of [Options.Check].
//
// If the context's deadline has passed, ErrUnsent comes with [context.DeadlineExceeded] and
// context.Cause.
//
// Like the errors of package net, every error has a method Timeout() bool. It returns false, because
// only the error of the verdict Timeout is a timeout.
func (s *Shaker) Shake(ctx context.Context, target netip.AddrPort, options *Options) (result Result, err error) {
	if options == nil {
		options = &s.options
	}
	if err := s.shake(ctx, target, options, &result); err != nil {
		return Result{}, newOpError(ctx, fmt.Sprintf("shake %v", target), err)
	}
	return result, nil
}

// shake is Shake without the description of the error. It and the functions below it get a pointer for the
// result, because each copy of a Result on the way would enlarge the stack of a goroutine that waits.
func (s *Shaker) shake(ctx context.Context, target netip.AddrPort, options *Options, result *Result) error {
	called := time.Now()
	target, scope, err := s.destination(target, options)
	if err != nil {
		return err
	}
	deadline, limited := ctx.Deadline()
	if options.Timeout > 0 {
		if end := called.Add(options.Timeout); !limited || end.Before(deadline) {
			deadline = end
		}
	}
	if err := ctx.Err(); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return ErrUnsent
		}
		return err
	}
	err = s.engine.shake(ctx, target, scope, options, called, deadline, result)
	result.options = options.ofRoute().share()
	return err
}

// destination returns the target as the engine takes it, and the interface index of its zone. The error is that of
// Shake for a target or options that are invalid.
func (s *Shaker) destination(target netip.AddrPort, options *Options) (netip.AddrPort, uint32, error) {
	if s.engine == nil {
		return target, 0, errZero
	}
	if !target.Addr().IsValid() || target.Port() == 0 {
		return target, 0, ErrTarget
	}
	if err := options.validate(); err != nil {
		return target, 0, err
	}
	target = netip.AddrPortFrom(target.Addr().Unmap(), target.Port())
	if needsZone(target.Addr()) {
		return target, 0, fmt.Errorf("%w: %w", ErrTarget, errNoZone)
	}
	if !options.canReach(target.Addr()) {
		return target, 0, fmt.Errorf("%w: not of the same family as the source %v", ErrTarget, options.Source.Unmap())
	}
	scope, err := s.engine.scopeID(target.Addr().Zone())
	return target, scope, err
}

// An opError is an error without a verdict.
type opError struct {
	what  string // the operation and its target
	err   error
	local bool // whether it is an ErrLocal
}

// newOpError describes an error of the engine or of the arguments. If the context has ended and is the
// reason, the error says why it has ended.
func newOpError(ctx context.Context, what string, err error) error {
	end := ended(ctx)
	switch {
	case errors.Is(err, ErrUnsent) && end != nil:
		return &opError{what: what, err: fmt.Errorf("%w: %w", err, end), local: true}
	case errors.Is(end, err):
		return &opError{what: what, err: end}
	}
	local := !errors.Is(err, os.ErrInvalid) &&
		!errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
	return &opError{what: what, err: err, local: local}
}

// ended returns why the context has ended, nil if it has not: its error, and its cause if that is
// another one.
func ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	switch deadline, ok := ctx.Deadline(); {
	case err == nil && ok && !time.Now().Before(deadline):
		return context.DeadlineExceeded // the context's timer is late
	case errors.Is(cause, err):
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

func (e *opError) Error() string        { return e.what + ": " + e.err.Error() }
func (e *opError) Unwrap() error        { return e.err }
func (e *opError) Is(target error) bool { return target == ErrLocal && e.local }

// Timeout and Temporary make it a net.Error, like the error of a verdict. Without them, a caller who
// looks for a net.Error would find the errno, and EAGAIN calls itself a timeout.

func (e *opError) Timeout() bool   { return false }
func (e *opError) Temporary() bool { return false }

// scopeID returns the index of the interface that an IPv6 zone names, or 0 for no zone. If there
// is no such interface, the error wraps ENODEV. Any other error means that the lookup failed.
func scopeID(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	iface, err := net.InterfaceByName(zone)
	if number, notNumber := strconv.ParseUint(zone, 10, 31); notNumber == nil {
		iface, err = net.InterfaceByIndex(int(number))
	}
	switch _, failed := errors.AsType[Errno](err); {
	case failed:
		return 0, fmt.Errorf("zone %q: %w", zone, err)
	case err != nil:
		return 0, &sentinel{text: fmt.Sprintf("this host has no interface %q", zone), general: enodev}
	}
	return uint32(iface.Index), nil
}

// Err returns why the Shaker cannot perform all handshakes any more, nil if it can. The error wraps [ErrLocal], and
// [ErrClosed] or the errno of a system call that is not expected to fail. Only a new Shaker helps then.
func (s *Shaker) Err() error {
	err := errZero
	if s.engine != nil {
		err = s.engine.err()
	}
	if err != nil {
		return &opError{what: "shaker", err: err, local: true}
	}
	return nil
}

// Close ends every running handshake with [ErrClosed] and releases the Shaker's descriptors and
// goroutines before it returns. A second Close does nothing. The error is always nil.
func (s *Shaker) Close() error {
	if s.engine != nil {
		s.engine.close()
	}
	return nil
}
