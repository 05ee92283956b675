package shaker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// checkTimeout limits a Check that neither its context nor the options limit.
const checkTimeout = 5 * time.Second

// Check checks the port of an address in the form "host:port", as in [net.Dial]: it returns nil if
// the port is open. It takes the place of a dial whose connection is closed at once.
//
// Check resolves the host by [net.DefaultResolver], and shakes hands with its addresses one after
// the other until one is open. The handshakes have the [Config.Options]. The time that is left is
// divided evenly among the addresses that are left. Check ends when the context's deadline or
// [Options.Timeout] passes, name resolution included; without either of them, after 5 s.
//
// If no address is open, the error is one of the following:
//   - the error of the first verdict, as [Result.Err] returns it;
//   - an error that wraps [ErrLocal], if this host could not measure one of the addresses: the state
//     of the port is then unknown;
//   - an error that wraps a [*net.DNSError], if the host has no address or the lookup failed for
//     another reason. The resolver does not report whether this host is that reason;
//   - an error that wraps [ErrTarget], if the address is not in the form "host:port", or has no
//     address of the family of [Options.Source];
//   - the context's error and [context.Cause], if the context was cancelled.
//
// Only the verdict [Timeout] is an [os.ErrDeadlineExceeded].
func (s *Shaker) Check(ctx context.Context, address string) error {
	timeout := s.options.Timeout
	deadline, limited := ctx.Deadline()
	if timeout == 0 && !limited {
		timeout = checkTimeout
	}
	if end := time.Now().Add(timeout); timeout > 0 && (!limited || end.Before(deadline)) {
		deadline = end
	}
	lookup, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	targets, err := s.resolve(lookup, address)
	if err != nil {
		if end := ended(ctx); end != nil {
			err = fmt.Errorf("%w: %w", err, end)
		}
		return &opError{what: "check " + address, err: err, local: errors.Is(err, ErrClosed)}
	}
	return s.checkEach(ctx, targets, deadline)
}

// resolve returns the addresses with which Check shakes hands: at least one.
func (s *Shaker) resolve(ctx context.Context, address string) ([]netip.AddrPort, error) {
	if s.engine == nil {
		return nil, errZero
	}
	host, service, err := net.SplitHostPort(address)
	if err == nil && host == "" {
		err = errors.New("missing host")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTarget, err)
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTarget, err)
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var targets []netip.AddrPort
	for _, addr := range addrs {
		if s.options.canReach(addr) {
			targets = append(targets, netip.AddrPortFrom(addr.Unmap(), uint16(port)))
		}
	}
	if len(targets) == 0 {
		return nil, fmt.Errorf("%w: no address of the same family as the source %v", ErrTarget, s.options.Source)
	}
	return targets, nil
}

// checkEach shakes hands with the targets until one is open.
func (s *Shaker) checkEach(ctx context.Context, targets []netip.AddrPort, deadline time.Time) (failed error) {
	options := s.options
	for i, target := range targets {
		options.Timeout = max(1, time.Until(deadline)/time.Duration(len(targets)-i))
		result, err := s.Shake(ctx, target, &options)
		if err == nil {
			err = result.Err()
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(ctx.Err(), context.Canceled):
			return err
		case failed == nil, errors.Is(err, ErrLocal) && !errors.Is(failed, ErrLocal):
			failed = err
		}
	}
	return failed
}
