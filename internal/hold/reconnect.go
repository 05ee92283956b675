package hold

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

const (
	// connectsPerSecond limits the connects of all targets. It spreads 20,000 of them over a minute, so that their
	// keepalives do not come in bursts afterwards.
	connectsPerSecond = 320

	// jitter is by how much a delay before a connect is longer or shorter, as a fraction.
	jitter = 0.1

	// A target that ends each connection early, before it has answered answersOfPeer heartbeats as expected, may count
	// these connections as errors, and block this host: MariaDB does so after 100 (max_connect_errors) that its own
	// timeout of 10 s has ended. One answer shows nothing: it may be the greeting of a server, which then rejects the
	// heartbeat. The delay is at least the rejectionShare-th part of the time since the first rejection. So the number
	// of connects grows with the logarithm of the time: by 1/8 of the time with each one.
	//
	// With delays of 1 s to 5 min, there are 15 connects in the first 40 minutes, and then 48 in the week until the
	// delay is a day. The hundredth is after 45 days.
	answersOfPeer       = 2
	rejectionShare      = 8
	longestAfterRejects = 24 * time.Hour
)

// pace spreads connects over time.
type pace struct {
	mu   sync.Mutex
	next time.Time // when the next connect may begin
}

// reserve returns how long a connect has to wait.
func (p *pace) reserve() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	wait := p.next.Sub(now)
	p.next = p.next.Add(time.Second / connectsPerSecond)
	return wait
}

// A backoff calculates the delays between the end of a connection, or a connect that failed, and the next connect.
type backoff struct {
	last     time.Duration // without jitter; 0 if the next one is the shortest
	rejected time.Time     // since when the target has ended each connection early; zero if it has not
}

// lived notes that a connection has ended. rejected reports whether the target has ended it without having answered
// heartbeats.
func (b *backoff) lived(limits *config.Backoff, age time.Duration, rejected bool) {
	switch {
	case age > limits.Max:
		*b = backoff{}
	case !rejected:
		b.rejected = time.Time{}
	case b.rejected.IsZero():
		b.rejected = time.Now().Add(-age)
	}
}

// next returns the next delay.
func (b *backoff) next(limits *config.Backoff) time.Duration {
	b.last = min(max(2*b.last, limits.Min), limits.Max)
	delay := b.last
	if !b.rejected.IsZero() {
		delay = max(delay, min(time.Since(b.rejected)/rejectionShare, longestAfterRejects))
	}
	return time.Duration(float64(delay) * (1 - jitter + 2*jitter*rand.Float64()))
}
