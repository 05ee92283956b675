package probe

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A Flow is one of the handshakes with an address that a probe with flows performs at the same time. Routers and links
// that share the load by ports send the packets of one flow along one path.
type Flow struct {
	Port uint16 // of this host
	Verdict

	// Sent is when the SYN was sent if the result was known before the probe, see [Request.ReuseFlows]. Otherwise it is
	// zero.
	Sent time.Time
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
	Module string
	Ports  shaker.PortRange
	Raw    bool // whether the ports are those of an engine without sockets
	Fixed  bool // whether they are tcp.source_ports of the module
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
		all = append(all, ModuleFlows{
			Module: name, Ports: ports, Raw: p.IsRawFor(&m), Fixed: m.TCP.SourcePorts != shaker.PortRange{},
		})
	}
	return all, err
}

// IsRawFor reports whether the handshakes of a module use no sockets.
func (p *Prober) IsRawFor(m *config.Module) bool {
	ports, err := p.FlowPorts(m)
	options := m.Options()
	options.SourcePort = ports.First // 0 without flows
	return err == nil && p.options.Shaker.IsRaw(&options)
}

// IsRaw reports whether handshakes use no sockets, except those of some modules.
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
