package probe

import (
	"fmt"
	"sync"
)

// connectionsPerProbe is how many connections need as many descriptors as a probe in flight, which needs three, with
// those of its HTTP connection and of its DNS queries.
const connectionsPerProbe = 3

// Connections limit how many connections are held in the background, and take their descriptors off the probes that may
// be in flight. They are safe for concurrent use.
type Connections struct {
	prober *Prober
	most   int // 0 means no limit
	spare  int

	mu   sync.Mutex
	held int
}

// NewConnections returns limits for at most so many connections, 0 for any number. spare is how many of them do not
// need the descriptors of probes.
func NewConnections(p *Prober, most, spare int) *Connections {
	return &Connections{prober: p, most: most, spare: spare}
}

// Limit returns the maximum number of connections; 0 means no limit.
func (c *Connections) Limit() int { return c.most }

// Permit returns an error if n more connections are too many.
func (c *Connections) Permit(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.most > 0 && c.held+n > c.most:
		return fmt.Errorf("%s reserved already (limit: %d, --hold.max-connections)", c.reserved(), c.most)
	case !c.prober.CanReserve(c.probes(c.held+n) - c.probes(c.held)):
		return fmt.Errorf("%s reserved already, and probes need the other open files (limit: --probe.max-in-flight)",
			c.reserved())
	}
	return nil
}

// reserved says how many connections there are. Its caller holds mu.
func (c *Connections) reserved() string {
	if c.held == 1 {
		return "1 connection is"
	}
	return fmt.Sprintf("%d connections are", c.held)
}

// Count counts n more connections, or fewer if n is negative.
func (c *Connections) Count(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.probes(c.held)
	c.held += n
	c.prober.Reserve(c.probes(c.held) - before)
}

// probes returns how many probes need as much as the connections that are held.
func (c *Connections) probes(held int) int {
	return (max(0, held-c.spare) + connectionsPerProbe - 1) / connectionsPerProbe
}
