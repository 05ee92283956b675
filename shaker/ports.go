package shaker

import "fmt"

// Ports are local ports that this process has reserved, for [Options.SourcePort].
type Ports struct {
	PortRange
	reservation
}

// ReservePorts reserves n local ports in a row, at least 1. They are the nearest free ones below the ports that the
// system gives to ordinary sockets (net.ipv4.ip_local_port_range in ip(7)), or else above, so that the next call in the
// next process returns the same ports if no other program has taken one of them meanwhile. Until Close, no program of
// another user can use them, and no program can listen on them.
//
// The ports are those of the network namespace of the calling thread. Each takes a descriptor. The error wraps
// [ErrLocal], and EADDRINUSE if there are not so many free ports in a row. On systems other than Linux it wraps
// [errors.ErrUnsupported]. It wraps [os.ErrInvalid] if there cannot be n ports.
func ReservePorts(n int) (*Ports, error) {
	if most := 1<<16 - lowestPort; n < 1 || n > most {
		return nil, fmt.Errorf("shaker: %w", invalid("reserve %d ports, want 1 to %d", n, most))
	}
	p := &Ports{}
	if err := p.reserve(n); err != nil {
		return nil, &opError{what: fmt.Sprintf("reserve %d ports", n), err: err, local: true}
	}
	return p, nil
}

// Ephemeral reports whether the system may give one of the ports to any socket that has not chosen a port, and returns
// the range from which it does so (net.ipv4.ip_local_port_range in ip(7)). Ports in
// net.ipv4.ip_local_reserved_ports are not given. ok is also false if the range is not known, as on systems other than
// Linux.
func (r PortRange) Ephemeral() (all PortRange, ok bool) { return r.ephemeral() }
