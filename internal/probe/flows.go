package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A Flow is one of the handshakes with an address that a probe with flows performs at the same time. Routers and links
// that share the load by ports send the packets of one flow along one path.
type Flow struct {
	Port uint16 // of this host
	Verdict
}

// shakeFlows performs a handshake with an address for each flow of the module. The verdict is the worst one. A flow
// whose port is in use, by another program or by another probe of the same target, is left out. If all are, or if this
// host could not perform one of the others, there is no verdict.
func (r *running) shakeFlows(ctx context.Context, addr netip.Addr, v *Verdict) error {
	first, err := r.prober.flowPorts(&r.Module)
	if err != nil {
		return err
	}
	flows := make([]Flow, r.Module.TCP.Flows)
	busy := make([]error, len(flows))
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var shaking sync.WaitGroup
	for i := range flows {
		flows[i].Port = first + uint16(i)
		shaking.Go(func() {
			err := r.shakeFrom(ctx, addr, flows[i].Port, &flows[i].Verdict)
			if errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL) {
				busy[i] = err
			} else if err != nil {
				cancel(err) // the first one is the cause
			}
		})
	}
	shaking.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	var performed []Flow
	for i := range flows {
		if busy[i] == nil {
			performed = append(performed, flows[i])
		}
	}
	if performed == nil {
		return busy[0]
	}
	worst := slices.MaxFunc(performed, func(a, b Flow) int { return r.worse(a.Verdict, b.Verdict) })
	*v = worst.Verdict
	v.Flows = performed
	return nil
}

// flowPorts returns the first of the ports from which the handshakes of a module with flows are sent. Each port is the
// next one.
func (p *Prober) flowPorts(m *config.Module) (first uint16, err error) {
	if m.TCP.SourcePorts != (shaker.PortRange{}) {
		return m.TCP.SourcePorts.First, nil
	}
	if raw := p.options.Shaker.Ports(); raw != (shaker.PortRange{}) && m.TCP.Close == config.Reset {
		return raw.First, nil
	}
	return p.ports.get()
}

// reservedPorts are reserved when they are needed for the first time, and as long as this process runs.
type reservedPorts struct {
	mu       sync.Mutex
	reserved *shaker.Ports
}

func (p *reservedPorts) get() (first uint16, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reserved == nil {
		if p.reserved, err = shaker.ReservePorts(config.MaxFlows); err != nil {
			return 0, err
		}
	}
	return p.reserved.First, nil
}

// shareProbe performs a probe of a module with flows. Several such probes of the same target at the same time would
// need the same ports: they share one probe, and each gets its report.
func (p *Prober) shareProbe(ctx context.Context, req *Request) (*Report, error) {
	key := fmt.Sprintf("%p %s %s", req.targets, req.ModuleName, req.Text) // targets is another one after a reload
	shared := p.sharing.DoChan(key, func() (any, error) {
		// The probe goes on, until its own timeout, if the first one who asked for it is gone.
		return p.perform(context.WithoutCancel(ctx), req)
	})
	select {
	case result := <-shared:
		if result.Err != nil {
			return nil, result.Err
		}
		report := *result.Val.(*Report)
		report.Request = req
		return &report, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// A Parting is where the path of a flow that fails parts from the path of one that does not.
type Parting struct {
	Good   Flow         // the one that does not fail
	Path   *shaker.Path // of the good flow
	Shared shaker.Hop   // the last hop on both paths; the zero Hop if there is none
	Failed shaker.Hop   // the first hop that only the path of the flow that fails has; the zero Hop if none answered
}

// goodFlow returns a flow with a valid result, provided that another one of the same address has an invalid result. ok
// is false if there is none.
func (r *Report) goodFlow() (good Flow, ok bool) {
	if r.Valid(r.Result) {
		return Flow{}, false
	}
	for _, f := range r.Flows {
		if r.Valid(f.Result) {
			return f, true
		}
	}
	return Flow{}, false
}

// part finds where the path of a flow that fails parts from that of a good one.
func (p *Parting) part(failing *shaker.Path) {
	good := make(map[netip.Addr]int)
	for _, h := range p.Path.Hops {
		if h.From.IsValid() {
			good[h.From] = h.TTL
		}
	}
	for _, h := range failing.Hops {
		switch ttl, shared := good[h.From]; {
		case !h.From.IsValid():
		case !shared:
			p.Failed = h
			return
		case ttl == h.TTL:
			p.Shared = h
		}
	}
}
