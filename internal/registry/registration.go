package registry

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// A Target is something that a [Registry] registers. It embeds a [Registration].
//
// Its methods may be called concurrently. They must not call methods of the Registry except [Registry.Go] and
// [Registry.LastScrape].
type Target interface {
	comparable

	// Stop ends what runs for the target in the background. It does not call Registry.Go afterwards, until it is
	// registered again. Its counters stay as they are. Stopping a stopped target does nothing.
	Stop()

	// Peer returns the address in use, which the policy for targets has to permit.
	Peer() netip.AddrPort

	// Adapt tells the target the result of a lookup of its name: the addresses that may be probed, or a report that
	// says why there are none. A target that is stopped must not start anything: it may have expired during the lookup.
	Adapt(report *probe.Report, addrs []netip.Addr)

	registration() *Registration
}

// A Key names a target. Two texts of one address are two targets, because they are two targets in Prometheus.
type Key struct{ Module, Target string }

// A Registration is the part of a target that belongs to its Registry. There may be 100,000 of them.
type Registration struct {
	Key    Key
	Module *config.Module // shared by its targets

	// The Registry's mu guards these.
	expired moment // when it expired, 0 if it has not
	leaving bool   // it is being stopped

	mu         sync.Mutex
	looking    bool   // its name is being looked up
	scraped    moment // by the client that scraped last
	client     string
	nextLookup moment                      // 0 if its name is not looked up
	lookups    *[len(lookupResults)]uint64 // nil if there was none
}

// A moment is a time on a clock that cannot be set: the time since [New]. It takes a third of the memory of a
// time.Time. 0 means never.
type moment time.Duration

// A LookupCount is the number of lookups with a result: [Resolved], a result of a probe such as dns_timeout, or fault.
type LookupCount struct {
	Result string
	Total  uint64
}

// Results of a lookup, in addition to those of a probe without an address.
const (
	Resolved = "resolved" // there is an address
	fault    = "fault"    // this host could not ask
)

// lookupResults are all results of a lookup.
var lookupResults = [...]string{Resolved, config.DNSNotFound, config.DNSTimeout, config.DNSError, fault}

func (r *Registration) registration() *Registration { return r }

// active reports whether something runs for the target. Its caller holds the Registry's mu.
func (r *Registration) active() bool { return r.expired == 0 && !r.leaving }

// Lookups returns how many lookups there were of the target's name, with 0 for the results that there were not yet. It
// returns nil if the target is an address.
func (r *Registration) Lookups() []LookupCount {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lookups == nil {
		return nil
	}
	all := make([]LookupCount, len(lookupResults))
	for i, result := range lookupResults {
		all[i] = LookupCount{Result: result, Total: r.lookups[i]}
	}
	return all
}

// scrape notes that a client scrapes the target.
func (r *Registration) scrape(now moment, client string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.scraped, r.client = now, client
}

// lastScrape returns when the target was scraped last, and by whom.
func (r *Registration) lastScrape() (at moment, client string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.scraped, r.client
}

// mustLookUp reports whether a lookup is due and none is running.
func (r *Registration) mustLookUp(now moment) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.looking && r.nextLookup != 0 && now >= r.nextLookup
}

func (r *Registration) setLooking(looking bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looking = looking
}

// countLookup counts a lookup, and notes when the next one is due, if ever: whole intervals after this one was due, so
// that its delay does not add up. The first one is due with a call of Registry.Resolve, which are upkeepInterval apart.
func (r *Registration) countLookup(result string, began moment, interval time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	step := moment(interval)
	switch {
	case step == 0:
	case r.nextLookup == 0:
		r.nextLookup = (began + step) / moment(upkeepInterval) * moment(upkeepInterval)
	case began >= r.nextLookup:
		r.nextLookup += ((began-r.nextLookup)/step + 1) * step
	}
	if r.lookups == nil {
		r.lookups = new([len(lookupResults)]uint64)
	}
	r.lookups[slices.Index(lookupResults[:], result)]++
}
