package probe

import (
	"cmp"
	"math"
	"net/netip"
	"slices"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A Parting is where flows that fail part from those that do not.
type Parting struct {
	Ports  []uint16   // of the flows that fail there, as far as they were traced
	Shared shaker.Hop // the last hop that flows with and without a failure pass; the zero Hop if there is none
	Failed shaker.Hop // the hop at or behind which the flows fail; the zero Hop if it is not known
	Paths  []FlowPath // all that were compared
}

// String describes where the paths part.
func (p *Parting) String() string { return DescribeParting(hopOf(p.Shared), hopOf(p.Failed)) }

// isSame reports whether flows part at the same place, as far as is known.
func (p *Parting) isSame(other Parting) bool {
	if p.Failed.From != other.Failed.From {
		return false
	}
	oneIsUnknown := p.Failed.From.IsValid() && p.Shared.From.IsValid() != other.Shared.From.IsValid()
	return p.Shared.From == other.Shared.From || oneIsUnknown
}

// A FlowPath is the path of a flow. Its hops are only those from which the port of the flow is known to have got an
// answer, or none: a SYN from another port may have taken another path.
type FlowPath struct {
	Flow
	Hops []shaker.Hop
	Err  error // not nil if the path is incomplete

	// Counts has the number of probes and answers of each hop, in all traces of the flow; nil unless
	// [Request.TraceFlows] was called.
	Counts []HopCount
}

// A HopCount is how often a hop was probed from the port of a flow, and how often it answered.
type HopCount struct{ Probes, Answers int }

// count counts the hops of a path that were probed from the port of the flow. Without sockets, all were. With sockets,
// those behind the first silent one were not, if the flow fails.
func (p *FlowPath) count(path *shaker.Path, options *shaker.TraceOptions, raw bool) {
	probed := len(p.Hops)
	switch foreign := probed < len(path.Hops) && path.Hops[probed].Local.IsValid() &&
		path.Hops[probed].Local.Port() != p.Port; {
	case foreign, p.Err != nil, p.Reached():
	case raw:
		probed = options.MaxHops
	default:
		probed = min(probed+1, options.MaxHops)
	}
	p.Counts = make([]HopCount, probed)
	for i := range p.Counts {
		p.Counts[i].Probes = 1
		if i < len(p.Hops) && p.Hops[i].From.IsValid() {
			p.Counts[i].Answers = 1
		}
	}
}

// AddCounts returns the sums of the counts of two traces.
func AddCounts(a, b []HopCount) []HopCount {
	sum := make([]HopCount, max(len(a), len(b)))
	for _, counts := range [][]HopCount{a, b} {
		for i, n := range counts {
			sum[i].Probes += n.Probes
			sum[i].Answers += n.Answers
		}
	}
	return sum
}

// newFlowPath returns the path of a flow, given what a trace has found.
func newFlowPath(f Flow, path *shaker.Path, err error) FlowPath {
	return FlowPath{Flow: f, Hops: ownPath(f.Port, *path).Hops, Err: err}
}

// ownPath returns the part of a path that was traced from a port. Where the port was in use, or more than one SYN had
// to be sent at the same time, the kernel chose others.
func ownPath(port uint16, path shaker.Path) shaker.Path {
	other := func(h shaker.Hop) bool { return h.Local.IsValid() && h.Local.Port() != port } // a silent hop may lack it
	if end := slices.IndexFunc(path.Hops, other); end >= 0 {
		path.Hops = path.Hops[:end]
	}
	for n := len(path.Hops); n > 0 && !path.Hops[n-1].From.IsValid(); n-- {
		path.Hops = path.Hops[:n-1]
	}
	if path.Reached > len(path.Hops) {
		path.Reached = 0
	}
	return path
}

// last returns the last hop that answered.
func (p *FlowPath) last() shaker.Hop {
	for _, h := range slices.Backward(p.Hops) {
		if h.From.IsValid() {
			return h
		}
	}
	return shaker.Hop{}
}

// Reached reports whether the path ends at a hop that did not send the ICMP error of a router on the path.
func (p *FlowPath) Reached() bool {
	h := p.last()
	return h.From.IsValid() && h.ICMP.String() != TTLExceeded
}

// answers returns how many hops of the path answered.
func (p *FlowPath) answers() (n int) {
	for _, h := range p.Hops {
		if h.From.IsValid() {
			n++
		}
	}
	return n
}

// isBetter reports whether the trace shows more of the path than another one: it is complete and the other is not, or
// more hops have answered.
func (p *FlowPath) isBetter(other *FlowPath) bool {
	if (p.Err == nil) != (other.Err == nil) {
		return p.Err == nil
	}
	return p.answers() > other.answers()
}

// routers returns the hops that sent ICMP errors, each router once. An answer in the target's name does not show a
// hop: a firewall may have sent it.
func (p *FlowPath) routers() []shaker.Hop {
	var routers []shaker.Hop
	for _, h := range p.Hops {
		if h.ICMP.From.IsValid() && h.From != p.Handshake.Peer.Addr().WithZone("") && indexOf(routers, h.From) < 0 {
			routers = append(routers, h)
		}
	}
	return routers
}

// indexOf returns the index of a router in a list of hops, -1 if it is not there.
func indexOf(hops []shaker.Hop, router netip.Addr) int {
	return slices.IndexFunc(hops, func(h shaker.Hop) bool { return h.From == router })
}

// lastRouter returns the last one of the routers, the zero Hop if there is none.
func (p *FlowPath) lastRouter() shaker.Hop {
	if routers := p.routers(); len(routers) > 0 {
		return routers[len(routers)-1]
	}
	return shaker.Hop{}
}

// passes reports whether the path leads over a hop. known is false if that is not certain: the path has no answer at
// its distance, and does not end before.
func (p *FlowPath) passes(hop shaker.Hop) (passes, known bool) {
	if indexOf(p.routers(), hop.From) >= 0 {
		return true, true
	}
	return false, p.answersAt(hop.TTL)
}

// answersAt reports whether the flow got an answer at a distance, or at the end of its path before.
func (p *FlowPath) answersAt(ttl int) bool {
	if ttl <= len(p.Hops) {
		return p.Hops[ttl-1].From.IsValid()
	}
	return p.Reached()
}

// rejects returns the router that has rejected the SYNs of the flow, as its ICMP error says to the handshake or to the
// trace. ok is false if none has.
func (p *FlowPath) rejects() (router netip.Addr, ok bool) {
	for _, icmp := range []shaker.ICMP{p.Handshake.ICMP, p.last().ICMP} {
		if icmp.From.IsValid() && !icmp.Own && icmp.String() != TTLExceeded &&
			icmp.From != p.Handshake.Peer.Addr().WithZone("") {
			return icmp.From, true
		}
	}
	return netip.Addr{}, false
}

// A comparison is what the paths of flows show together.
type comparison struct {
	failing []FlowPath            // those that fail, and perhaps others that have lost a SYN
	good    []FlowPath            // the others
	valid   func(shaker.Hop) bool // reports whether a hop has answered as the target does to a good flow
}

// compare compares the paths of flows. A flow that the target does not answer any more is not a good one.
func (r *Report) compare(paths []FlowPath) *comparison {
	c := &comparison{valid: func(h shaker.Hop) bool {
		return h.From.IsValid() && !h.ICMP.From.IsValid() && r.Valid(h.Outcome.String())
	}}
	clean := slices.ContainsFunc(paths, func(p FlowPath) bool { return r.isClean(&p.Flow) })
	for _, path := range paths {
		switch {
		case !r.isGood(&path.Flow, clean):
			c.failing = append(c.failing, path)
		case path.Err == nil && path.Reached():
			c.good = append(c.good, path)
		}
	}
	return c
}

// isGood reports whether a flow does not fail, and has not lost a SYN, unless all have. One that has lost a SYN shows
// where packets get lost, as those that fail do.
func (r *Report) isGood(f *Flow, clean bool) bool { return r.isClean(f) || !clean && r.Valid(f.Result) }

func (r *Report) isClean(f *Flow) bool { return r.Valid(f.Result) && f.Handshake.SYNs <= 1 }

// partings returns where flows that fail part from flows that do not, one for each place: the best known ones first,
// and of these the ones with the most flows. There are none if all flows fail or none does.
//
// A failing flow whose SYNs a router rejects parts there. Otherwise each router on its path is compared with the paths
// of the good flows at its distance. A router is shared if good flows pass it at least half as often as failing ones
// do, and a suspect if not. A router at a distance at which no good flow has an answer is neither.
//
// A suspect fails for one of two reasons. Either so many failing flows pass it that this is hardly by chance, and most
// of them have no answer from a shared router behind it: this finds a router that loses some of the packets. Or the
// trace ends there, behind all shared routers, although the good flows have an answer at the next distance. Routers
// limit their ICMP errors, so that silence alone means nothing.
func (r *Report) partings(paths []FlowPath) []Parting {
	c := r.compare(paths)
	if len(c.good) == 0 {
		return nil
	}
	var partings []Parting
	for i := range c.failing {
		if r.Valid(c.failing[i].Result) {
			continue
		}
		p := c.part(&c.failing[i])
		if p == nil {
			continue
		}
		same := slices.IndexFunc(partings, p.isSame)
		if same < 0 {
			partings = append(partings, *p)
			same = len(partings) - 1
		}
		if !partings[same].Shared.From.IsValid() { // it has not answered the other flow
			partings[same].Shared = p.Shared
		}
		partings[same].Ports = append(partings[same].Ports, c.failing[i].Port)
	}
	slices.SortStableFunc(partings, func(p, q Parting) int {
		return cmp.Or(
			-compare(p.Failed.From.IsValid(), q.Failed.From.IsValid()),
			-compare(p.Shared.From.IsValid(), q.Shared.From.IsValid()),
			cmp.Compare(len(q.Ports), len(p.Ports)))
	})
	for i := range partings {
		slices.Sort(partings[i].Ports)
		partings[i].Paths = paths
	}
	return partings
}

// Partings returns all places where the paths of the flows part, the first one being the Parting of the report. There
// are none unless all flows were traced.
func (r *Report) Partings() []Parting { return r.partings(r.FlowPaths) }

// part returns where a failing flow parts from the good ones. It is nil if the end of its path is not known, or if the
// flow does not fail any more, so that its path ends nowhere.
func (c *comparison) part(flow *FlowPath) *Parting {
	routers := flow.routers()
	if router, ok := flow.rejects(); ok {
		return c.rejected(flow, router)
	}
	least, most := rare, -1
	for i, hop := range routers {
		chance := c.count(hop).chance()
		if chance >= least || most >= 0 && !c.isBypassed(routers[most], hop) {
			continue
		}
		if _, forwarded := c.fates(hop); 2*forwarded <= c.count(hop).failing {
			least, most = chance, i
		}
	}
	switch {
	case most >= 0:
		return &Parting{Shared: c.lastShared(routers[:most]), Failed: routers[most]}
	case flow.Err != nil, c.valid(flow.last()):
		return nil
	}
	p := &Parting{Shared: c.lastShared(routers)}
	next := slices.IndexFunc(routers, func(h shaker.Hop) bool { return h.TTL > p.Shared.TTL && c.count(h).isSuspect() })
	if next >= 0 && c.ends(flow, routers[next]) {
		p.Failed = routers[next]
	}
	return p
}

// ends reports whether the end of a failing flow's path means that a router on it fails, or the link behind.
func (c *comparison) ends(flow *FlowPath, router shaker.Hop) bool {
	stopped, forwarded := c.fates(router)
	return stopped >= forwarded && c.silenceCounts(flow, router) && !c.endsElsewhere(flow)
}

// endsElsewhere reports whether another failing flow's path ends at the same distance, at a router that is shared: the
// reason may be the one for which this flow's path ends.
func (c *comparison) endsElsewhere(flow *FlowPath) bool {
	ttl := flow.lastRouter().TTL
	return slices.ContainsFunc(c.failing, func(other FlowPath) bool {
		router := other.lastRouter()
		return router.TTL == ttl && !c.valid(other.last()) && c.isShared(router)
	})
}

// isBypassed reports whether good flows pass a router, and then not another one behind it.
func (c *comparison) isBypassed(router, behind shaker.Hop) bool {
	return slices.ContainsFunc(c.good, func(flow FlowPath) bool {
		passes, _ := flow.passes(router)
		passesBehind, known := flow.passes(behind)
		return passes && known && !passesBehind
	})
}

// rejected returns where a flow parts whose SYNs a router rejects. If its trace does not show how far the router is,
// another one may do, or it is the next one.
func (c *comparison) rejected(flow *FlowPath, router netip.Addr) *Parting {
	hop := shaker.Hop{TTL: flow.last().TTL + 1, From: router, ICMP: flow.Handshake.ICMP}
	for _, path := range slices.Concat([]FlowPath{*flow}, c.failing, c.good) {
		hops := path.routers()
		if i := indexOf(hops, router); i >= 0 {
			hop = hops[i]
			break
		}
	}
	before := slices.DeleteFunc(flow.routers(), func(h shaker.Hop) bool { return h.From == router || h.TTL > hop.TTL })
	return &Parting{Shared: c.lastShared(before), Failed: hop}
}

// lastShared returns the last one of some routers that is shared, the zero Hop if none is.
func (c *comparison) lastShared(routers []shaker.Hop) shaker.Hop {
	for _, hop := range slices.Backward(routers) {
		if c.isShared(hop) {
			return hop
		}
	}
	return shaker.Hop{}
}

func (c *comparison) isShared(router shaker.Hop) bool {
	n := c.count(router)
	return n.good > 0 && !n.isSuspect()
}

// fates returns how many of the failing flows that pass a router are known to be stopped at or behind it, and how many
// it has forwarded: to a router that is shared, or that replies in the target's name. A flow that is the only one to
// pass a router also shows that it was forwarded if any router behind replies.
func (c *comparison) fates(router shaker.Hop) (stopped, forwarded int) {
	alone := c.count(router).failing == 1
	for i := range c.failing {
		path := &c.failing[i]
		routers, last := path.routers(), path.last()
		at := indexOf(routers, router.From)
		if at < 0 || c.valid(last) { // it does not pass the router, or does not fail any more
			continue
		}
		behind := routers[at+1:]
		switch {
		case c.lastShared(behind).From.IsValid(), alone && len(behind) > 0,
			!last.ICMP.From.IsValid() && last.TTL > routers[at].TTL+1:
			forwarded++
		case path.Err == nil:
			stopped++
		}
	}
	return stopped, forwarded
}

// silenceCounts reports whether the silence behind a failing flow's path says something about a router: the flow is
// refused there, or all the good flows that do not pass the router have an answer at the next distance.
func (c *comparison) silenceCounts(flow *FlowPath, router shaker.Hop) bool {
	if flow.Reached() {
		return true
	}
	next := flow.last().TTL + 1
	return !slices.ContainsFunc(c.good, func(good FlowPath) bool {
		passes, _ := good.passes(router)
		return !passes && !good.answersAt(next)
	})
}

// count counts the flows that pass a router.
func (c *comparison) count(router shaker.Hop) (n passing) {
	n.failing, n.allFailing = passingOf(c.failing, router)
	n.good, n.allGood = passingOf(c.good, router)
	return n
}

func passingOf(paths []FlowPath, router shaker.Hop) (passing, all int) {
	for i := range paths {
		passes, known := paths[i].passes(router)
		if passes {
			passing++
		}
		if known {
			all++
		}
	}
	return passing, all
}

// passing is how many flows pass a router, of all of which that is known.
type passing struct{ failing, allFailing, good, allGood int }

// isSuspect reports whether failing flows pass the router more than twice as often as good ones do.
func (n passing) isSuspect() bool { return n.failing*n.allGood > 2*n.good*n.allFailing }

// rare is the probability below which something hardly happens by chance.
const rare = 0.02

// chance returns the probability that at least so many of the failing flows pass the router by chance, given how many
// flows pass it: Fisher's exact test. It is 1 if the router is not a suspect.
func (n passing) chance() (p float64) {
	if !n.isSuspect() {
		return 1
	}
	all, over := n.allFailing+n.allGood, n.failing+n.good
	for failing := n.failing; failing <= min(over, n.allFailing); failing++ {
		p += math.Exp(lnChoose(n.allFailing, failing) + lnChoose(n.allGood, over-failing) - lnChoose(all, over))
	}
	return p
}

// lnChoose returns the logarithm of the number of ways to choose k of n.
func lnChoose(n, k int) float64 {
	if k < 0 || k > n {
		return math.Inf(-1)
	}
	ln := func(n int) float64 { value, _ := math.Lgamma(float64(n + 1)); return value }
	return ln(n) - ln(k) - ln(n-k)
}

// mostCompared limits how many flows that fail, and how many that do not, are traced. With one of each, a hop that only
// the other one avoids by chance would look like the one that fails.
const mostCompared = 8

// flowsToCompare returns the flows to trace, besides the worst one, to find where the paths part: good flows, and in
// turns with them others. There are none if all flows fail, or none does.
func (r *Report) flowsToCompare() []Flow {
	if r.Valid(r.Result) {
		return nil
	}
	clean := slices.ContainsFunc(r.Flows, func(f Flow) bool { return r.isClean(&f) })
	var good, failing, lossy []Flow
	for _, f := range r.Flows {
		switch {
		case r.isGood(&f, clean):
			good = append(good, f)
		case r.Valid(f.Result):
			lossy = append(lossy, f)
		case f.Handshake.Local.IsValid() && f.Handshake.Local != r.Handshake.Local:
			failing = append(failing, f)
		}
	}
	if len(good) == 0 {
		return nil
	}
	failing = append(failing, lossy...)
	var flows []Flow
	for i := range mostCompared {
		if i < len(good) {
			flows = append(flows, good[i])
		}
		if i < min(len(failing), mostCompared-1) {
			flows = append(flows, failing[i])
		}
	}
	return flows
}
