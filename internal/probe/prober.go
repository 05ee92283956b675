package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Errors of a probe that was not performed, although no local resource was exhausted.
var (
	// ErrDenied means that the policy for targets does not permit an address.
	ErrDenied = errors.New("may not be probed")

	// ErrInFlight means that the limit of handshakes in flight is reached.
	ErrInFlight = errors.New("too many probes in flight (limit: --probe.max-in-flight)")

	// ErrAddresses means that a name has more addresses than can be probed at once, now or later:
	// more than [MaxAddresses], or than [Options.MaxInFlight].
	ErrAddresses = errors.New("too many addresses to probe at once")
)

// Options configure a [Prober]. Shaker and Config are required.
type Options struct {
	Shaker *shaker.Shaker
	Config *config.Config

	// DialDNS opens connections to DNS servers; nil means net.Dialer.DialContext.
	DialDNS func(ctx context.Context, network, address string) (net.Conn, error)

	// MaxInFlight limits the number of concurrent handshakes; 0 means no limit.
	MaxInFlight int

	// LeftOut is called when other flows of a module are left out than before, because other programs have their
	// ports, or have them no more: then the list is empty. The protocol, ip4 or ip6, is that of the addresses. There is
	// at most one call a minute for each module and protocol. nil ignores all of them.
	LeftOut func(module, protocol string, ports []uint16)
}

// A Prober performs probes. It is safe for use by any number of goroutines.
type Prober struct {
	options  Options
	config   atomic.Pointer[config.Config]
	inFlight atomic.Int64
	reserved atomic.Int64
	ports    reservedPorts
	flights  flights
	leftOut  leftOut
}

// New returns a Prober.
func New(options Options) *Prober {
	if options.DialDNS == nil {
		options.DialDNS = (&net.Dialer{}).DialContext
	}
	readNameFiles()
	if options.LeftOut == nil {
		options.LeftOut = func(string, string, []uint16) {}
	}
	p := &Prober{options: options, leftOut: leftOut{tell: options.LeftOut}}
	p.Configure(options.Config)
	return p
}

// Configure makes c the active configuration. Running probes keep the configuration that they started with.
func (p *Prober) Configure(c *config.Config) {
	p.config.Store(c)
	p.leftOut.forget()
}

// Config returns the active configuration.
func (p *Prober) Config() *config.Config { return p.config.Load() }

// InFlight returns the number of handshakes in progress, including name resolution, and those that are reserved.
func (p *Prober) InFlight() int64 { return p.inFlight.Load() + p.reserved.Load() }

// Reserved returns the number of handshakes that are reserved.
func (p *Prober) Reserved() int { return int(p.reserved.Load()) }

// errInFlight returns ErrInFlight, with the number of reserved handshakes if there are any.
func (p *Prober) errInFlight() error {
	if n := p.reserved.Load(); n > 0 {
		return fmt.Errorf("%w, %d of them reserved for watched and held targets", ErrInFlight, n)
	}
	return ErrInFlight
}

// MaxInFlight returns the maximum number of concurrent handshakes; 0 means no limit.
func (p *Prober) MaxInFlight() int { return p.options.MaxInFlight }

// admit counts n more handshakes as in flight, and reports whether the limit permits them. If it does not,
// admit counts nothing.
func (p *Prober) admit(n int64) bool {
	if n == 0 {
		return true
	}
	for {
		before := p.inFlight.Load()
		if limit := int64(p.options.MaxInFlight); limit > 0 && before+n+p.reserved.Load() > limit {
			return false
		}
		if p.inFlight.CompareAndSwap(before, before+n) {
			return true
		}
	}
}

// Enter counts a probe as in flight until leave is called. The error is [ErrInFlight] if the limit does not permit it.
func (p *Prober) Enter() (leave func(), err error) {
	if !p.admit(1) {
		return nil, p.errInFlight()
	}
	return func() { p.release(1) }, nil
}

// reservedParts is the inverse of the share of the limit that is always left for probes.
const reservedParts = 32

// CanReserve reports whether n more handshakes may be reserved, so that enough of the limit is left for probes.
func (p *Prober) CanReserve(n int) bool {
	limit := int64(p.options.MaxInFlight)
	return n <= 0 || limit == 0 || p.reserved.Load()+int64(n) <= limit-limit/reservedParts
}

// Reserve subtracts n handshakes from those that probes may have in flight, because others in the background may need
// as many descriptors. A negative n gives them back.
func (p *Prober) Reserve(n int) { p.reserved.Add(int64(n)) }

// release undoes admit.
func (p *Prober) release(n int64) { p.inFlight.Add(-n) }
