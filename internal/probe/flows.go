package probe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A Flow is one of the handshakes with an address that a probe with flows performs at the same time. Routers and links
// that share the load by ports send the packets of one flow along one path.
type Flow struct {
	Port uint16 // of this host
	Verdict
}

// performFlows performs a handshake with an address from each port, until the end of the context at the latest. The
// verdict is the worst one. A flow whose port another program has is left out. If all are, or if this host could not
// perform one of the others, there is no verdict.
func (r *running) performFlows(ctx context.Context, addr netip.Addr, ports shaker.PortRange, v *Verdict) error {
	flows := make([]Flow, r.Module.TCP.Flows)
	errs := make([]error, len(flows))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var shaking sync.WaitGroup
	var failed sync.Once
	var fault error // the first one is the cause of the others
	for i := range flows {
		flows[i].Port = ports.First + uint16(i)
		shaking.Go(func() {
			errs[i] = r.shakeFlow(ctx, addr, flows[i].Port, &flows[i].Verdict)
			if err := errs[i]; err != nil && !errors.Is(err, syscall.EADDRINUSE) {
				failed.Do(func() { fault = fmt.Errorf("flow from port %d: %w", flows[i].Port, err) })
				cancel()
			}
		})
	}
	shaking.Wait()
	var performed []Flow
	var leftOut []uint16
	for i, err := range errs {
		switch {
		case err == nil:
			performed = append(performed, flows[i])
		case errors.Is(err, syscall.EADDRINUSE):
			leftOut = append(leftOut, flows[i].Port)
		}
	}
	if fault != nil {
		if performed != nil {
			part := r.VerdictOf(performed)
			part.LeftOut = leftOut
			r.reportPart(part)
		}
		return fault
	}
	r.prober.leftOut.set(newFlowSet(r.ModuleName, addr), leftOut)
	if performed == nil {
		return errPortsTaken(ports, errs[0])
	}
	*v = r.VerdictOf(performed)
	v.LeftOut = leftOut
	return nil
}

// busyWait is how long a probe waits before it tries again to use a port that another handshake with the address has.
const busyWait = 20 * time.Millisecond

// shakeFlow is shakeFrom for a flow. Another process may have a handshake with the address from the same port, such as
// the command line beside an exporter. The probe waits for the port for as long as the handshake would still have the
// time that it needs.
func (r *running) shakeFlow(ctx context.Context, addr netip.Addr, port uint16, v *Verdict) error {
	waited := false
	for {
		err := r.shakeFrom(ctx, addr, port, v)
		switch {
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			err = r.errPortBusy(err)
		case waited && errors.Is(err, shaker.ErrUnsent):
			return fmt.Errorf("%w, because another handshake with this address had the port for too long", err)
		default:
			return err
		}
		if time.Until(r.deadline())-busyWait < needed(r.budget()) {
			return err
		}
		waited = true
		select {
		case <-time.After(busyWait):
		case <-ctx.Done():
			return err
		}
	}
}

// VerdictOf returns the verdict about an address, given those of its flows, at least one: the worst one.
func (r *Report) VerdictOf(flows []Flow) Verdict {
	v := slices.MaxFunc(flows, func(a, b Flow) int { return r.worse(a.Verdict, b.Verdict) }).Verdict
	v.Flows = flows
	return v
}

// FlowPorts returns the ports from which the handshakes of a module with flows are sent, one for each flow. They are
// the zero range for a module without flows. Of the ports that this process reserves, modules have different ones.
func (p *Prober) FlowPorts(m *config.Module) (ports shaker.PortRange, err error) {
	if m.TCP.Flows == 0 {
		return ports, nil
	}
	before, flows := m.TCP.FlowsBefore, int(m.TCP.Flows)
	raw := p.options.Shaker.Ports()
	switch {
	case m.TCP.SourcePorts != shaker.PortRange{}:
		ports.First = m.TCP.SourcePorts.First
	case m.TCP.Close == config.Reset && int(raw.First)+before+flows <= int(raw.Last)+1:
		ports.First = raw.First + uint16(before)
	default:
		block, err := p.ports.get(before / config.MaxFlows)
		if err != nil {
			return ports, err
		}
		ports.First = block + uint16(before%config.MaxFlows)
	}
	ports.Last = ports.First + uint16(flows) - 1
	return ports, nil
}

// ModuleFlows are the flows of a module.
type ModuleFlows struct {
	Module   string
	Ports    shaker.PortRange
	Raw      bool // whether the ports are those of an engine without sockets
	Reserved bool // whether they are neither these nor tcp.source_ports of the module
}

// ReserveFlowPorts reserves the ports of the flows of all modules in the active configuration, so that no other program
// takes them before the first probe. It returns the modules that have flows, in the order of their names. An error
// means that probes with at least one of them are faults.
func (p *Prober) ReserveFlowPorts() (all []ModuleFlows, err error) {
	modules := p.Config().Modules
	for _, name := range slices.Sorted(maps.Keys(modules)) {
		m := modules[name]
		if m.TCP.Flows == 0 {
			continue
		}
		ports, portsErr := p.FlowPorts(&m)
		if portsErr != nil {
			err = portsErr
			continue
		}
		own := p.options.Shaker.Ports()
		raw := own.First <= ports.First && ports.Last <= own.Last
		all = append(all, ModuleFlows{
			Module: name, Ports: ports, Raw: raw, Reserved: !raw && m.TCP.SourcePorts == shaker.PortRange{},
		})
	}
	return all, err
}

// IsRaw reports whether handshakes use no sockets.
func (p *Prober) IsRaw() bool { return p.options.Shaker.Ports() != shaker.PortRange{} }

// reservedPorts are blocks of ports that are reserved when a module needs them for the first time, and as long as this
// process runs.
type reservedPorts struct {
	mu     sync.Mutex
	blocks []*shaker.Ports
}

// get returns the first port of a block. All blocks before it are reserved first, so that each has the same ports after
// a restart.
func (p *reservedPorts) get(block int) (first uint16, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.blocks) <= block {
		reserved, err := shaker.ReservePorts(config.MaxFlows)
		if err != nil {
			return 0, err
		}
		p.blocks = append(p.blocks, reserved)
	}
	return p.blocks[block].First, nil
}

// FailedFlows returns those flows of a verdict whose results are not valid.
func (r *Report) FailedFlows(v *Verdict) []Flow {
	var failed []Flow
	for _, f := range v.Flows {
		if !r.Valid(f.Result) {
			failed = append(failed, f)
		}
	}
	return failed
}
