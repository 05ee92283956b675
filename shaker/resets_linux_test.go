package shaker

import (
	"testing"
	"time"
)

// An RST is missing if the same SYN-ACK arrives again after half a second or more. Each handshake counts once, and
// none takes the place of another one too soon.
func TestResets(t *testing.T) {
	const ms = time.Millisecond
	var count resetCount
	r := resets{count: &count}
	for i, step := range []struct {
		name             string
		follow           bool // otherwise it is another SYN-ACK
		sequence         uint32
		at               time.Duration
		checked, missing uint64
	}{
		{name: "no handshake yet", sequence: 0, at: 900 * ms},
		{name: "a handshake", follow: true, sequence: 7, at: 1000 * ms, checked: 1},
		{name: "a duplicate", sequence: 7, at: 1499 * ms, checked: 1},
		{name: "an answer to another SYN", sequence: 8, at: 2000 * ms, checked: 1},
		{name: "an answer to another SYN of the same place", sequence: 7 + resetSamples, at: 2000 * ms, checked: 1},
		{name: "another SYN-ACK without a timestamp", sequence: 7, at: -time.Hour, checked: 1},
		{name: "another SYN-ACK", sequence: 7, at: 2000 * ms, checked: 1, missing: 1},
		{name: "a third SYN-ACK", sequence: 7, at: 4000 * ms, checked: 1, missing: 1},
		{name: "no room", follow: true, sequence: 7 + resetSamples, at: 5000 * ms, checked: 1, missing: 1},
		{name: "room again", follow: true, sequence: 7 + resetSamples, at: 5001 * ms, checked: 2, missing: 1},
		{name: "its second SYN-ACK", sequence: 7 + resetSamples, at: 6001 * ms, checked: 2, missing: 2},
	} {
		if step.follow {
			r.follow(step.sequence, step.at)
		} else {
			r.again(step.sequence, step.at)
		}
		if checked, missing := count.checked.Load(), count.missing.Load(); checked != step.checked ||
			missing != step.missing {
			t.Errorf("step %d, %s: %d checked and %d missing, want %d and %d", i, step.name, checked, missing,
				step.checked, step.missing)
		}
	}
}
