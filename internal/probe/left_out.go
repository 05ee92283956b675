package probe

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// errPortsTaken returns the error of flows of which none could be performed, because other programs have their ports.
func errPortsTaken(ports shaker.PortRange, err error) error {
	return fmt.Errorf("all ports of the flows, %v, are in use by other programs, or reserved by an exporter of "+
		"another user or with --probe.engine=raw, want other source ports: %w", ports, err)
}

// errPortBusy returns the error of a flow whose port another handshake with the address has, which is EADDRNOTAVAIL.
func errPortBusy(m *config.Module, err error) error {
	if m.TCP.SourceIPAddress.IsValid() {
		return fmt.Errorf("%w: another handshake with this address has the port, try again; or this host does not "+
			"have the address %v", err, m.TCP.SourceIPAddress)
	}
	return fmt.Errorf("%w: another handshake with this address has the port, try again", err)
}

// leftOutPause is the minimum time between two calls of [Options.LeftOut] about the same flows.
const leftOutPause = time.Minute

// leftOut are the flows that are left out because other programs have their ports. A probe that leaves flows out
// may succeed, so the operator has to be told otherwise.
type leftOut struct {
	tell func(module, protocol string, ports []uint16)

	mu  sync.Mutex
	all map[flowSet]*leftOutPorts
}

// A flowSet is the flows of a module to addresses of a protocol: a program may have a port for only one protocol.
type flowSet struct{ module, protocol string }

func newFlowSet(module string, addr netip.Addr) flowSet {
	return flowSet{module: module, protocol: protocol(addr)}
}

// leftOutPorts are ports in their order.
type leftOutPorts struct {
	now, told []uint16
	pause     *time.Timer // until the next call, nil if there was none for so long
}

// set notes which ports of a set of flows other programs have.
func (l *leftOut) set(of flowSet, ports []uint16) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.change(of, ports)
}

// note notes whether another program has one of the ports of a set of flows.
func (l *leftOut) note(of flowSet, port uint16, taken bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ports []uint16
	if p := l.all[of]; p != nil {
		ports = slices.DeleteFunc(slices.Clone(p.now), func(other uint16) bool { return other == port })
	}
	if taken {
		ports = append(ports, port)
		slices.Sort(ports)
	}
	l.change(of, ports)
}

// change is like set. Its caller holds mu.
func (l *leftOut) change(of flowSet, ports []uint16) {
	p := l.all[of]
	if p == nil {
		if len(ports) == 0 {
			return
		}
		if l.all == nil {
			l.all = make(map[flowSet]*leftOutPorts)
		}
		p = new(leftOutPorts)
		l.all[of] = p
	}
	p.now = ports
	if p.pause == nil {
		l.tellOf(of, p)
	}
}

// tellOf passes the left-out flows of a set on to tell, unless they are the same as at its last call. Its caller holds
// mu.
func (l *leftOut) tellOf(of flowSet, p *leftOutPorts) {
	if slices.Equal(p.now, p.told) {
		p.pause = nil
		return
	}
	p.told = p.now
	p.pause = time.AfterFunc(leftOutPause, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.all[of] == p {
			l.tellOf(of, p)
		}
	})
	l.tell(of.module, of.protocol, p.now)
}

// forget forgets everything, because modules may have other ports now. The next probes find out which are taken.
func (l *leftOut) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.all {
		if p.pause != nil {
			p.pause.Stop()
		}
	}
	clear(l.all)
}

// NoteTaken notes whether another program has the port of a flow to an address, for [Options.LeftOut]. It is for
// handshakes that the Prober does not perform itself. Call it now and then while a port is taken.
func (p *Prober) NoteTaken(module string, addr netip.Addr, port uint16, taken bool) {
	p.leftOut.note(newFlowSet(module, addr), port, taken)
}
