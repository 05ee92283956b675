package watch

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// streams are the handshakes with the addresses of targets that have flows. Targets of a module that have the same
// address, such as two names of it, need the same ports, which can have one handshake with an address at a time: they
// share a stream.
type streams struct {
	mu  sync.Mutex
	all map[streamKey]*stream
}

type streamKey struct {
	module *config.Module // the same one for all targets of the module
	peer   netip.AddrPort
}

// A stream is a Repetition whose results several targets get.
type stream struct {
	watcher    *Watcher
	key        streamKey
	name       string // of the module
	repetition *shaker.Repetition
	ports      shaker.PortRange
	taken      uint64 // the flows whose ports other programs have, as bits; only take uses it

	// Guarded by the mutex of the streams
	targets []*target     // replaced, never modified
	ending  chan struct{} // closed when the handshakes have ended; nil while there are targets
}

// join lets a target get the results of the handshakes with an address, which begin if it is the first target.
func (all *streams) join(t *target, peer netip.AddrPort, schedule *shaker.Schedule) (*stream, error) {
	all.mu.Lock()
	defer all.mu.Unlock()
	key := streamKey{module: t.Module, peer: peer}
	s := all.all[key]
	for s != nil && s.ending != nil { // until then it uses the ports
		all.mu.Unlock()
		<-s.ending
		all.mu.Lock()
		s = all.all[key]
	}
	if s == nil {
		s = &stream{watcher: t.watcher, key: key, name: t.Key.Module, ports: schedule.SourcePorts}
		var err error
		if s.repetition, err = t.watcher.options.Shaker.Repeat(peer, *schedule, s.take); err != nil {
			return nil, err
		}
		if all.all == nil {
			all.all = make(map[streamKey]*stream)
		}
		all.all[key] = s
	}
	s.targets = append(slices.Clip(s.targets), t)
	return s, nil
}

// leave undoes join. The handshakes end with the last target.
func (all *streams) leave(s *stream, t *target) {
	if all.remove(s, t) {
		all.end(s)
	}
}

// end ends the handshakes of a stream that has no target any more.
func (all *streams) end(s *stream) {
	s.repetition.Stop()
	all.mu.Lock()
	defer all.mu.Unlock()
	delete(all.all, s.key)
	close(s.ending)
}

// remove removes a target from a stream. last reports whether it was the only one: then the stream is ending.
func (all *streams) remove(s *stream, t *target) (last bool) {
	all.mu.Lock()
	defer all.mu.Unlock()
	s.targets = slices.DeleteFunc(slices.Clone(s.targets), func(other *target) bool { return other == t })
	if last = len(s.targets) == 0; last {
		s.ending = make(chan struct{})
	}
	return last
}

// targetsOf returns the targets of the stream with a key.
func (all *streams) targetsOf(key streamKey) []*target {
	all.mu.Lock()
	defer all.mu.Unlock()
	if s := all.all[key]; s != nil {
		return s.targets
	}
	return nil
}

// take takes the result of a handshake.
func (s *stream) take(r shaker.Repeated) {
	s.observe(&r)
	all := &s.watcher.streams
	all.mu.Lock()
	targets := s.targets
	all.mu.Unlock()
	for _, t := range targets {
		t.takeResult(r, s)
	}
}

// knownFlows returns what a probe can use in place of handshakes from ports that those in the background use.
func (w *Watcher) knownFlows(req *probe.Request) probe.KnownFlows {
	return func(peer netip.AddrPort) (flows []probe.Flow, err error) {
		key := streamKey{module: w.registry.Config(req), peer: peer}
		for _, t := range w.streams.targetsOf(key) {
			if flows, err = t.knownFlows(key); flows != nil || err != nil {
				break
			}
		}
		return flows, err
	}
}

// knownFlows returns the last results of the flows of a stream, nil if the target does not know all of them.
func (t *target) knownFlows(key streamKey) ([]probe.Flow, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.flows.stream; s == nil || s.key != key {
		return nil, nil
	}
	if err := t.stale(); err != nil {
		return nil, err
	}
	if !t.knowsFlows() {
		return nil, nil
	}
	flows := t.currentFlows(&probe.Resolution{})
	for i := range flows {
		flows[i].Sent = t.watcher.started.Add(time.Duration(t.flows.of(flows[i].Port).sent))
	}
	return flows, nil
}
