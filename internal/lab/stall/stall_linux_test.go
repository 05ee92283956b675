package stall

import (
	"testing"
	"time"
)

// stoodStill returns how long a processor stood still within the given time: the gaps between its beats,
// less two intervals each. The heart of processor 1 misses its beats from 300 to 500 ms and from 600 to
// 700 ms, the heart of processor 0 misses none.
func TestStoodStill(t *testing.T) {
	const ms = time.Millisecond
	var beats []beat
	for at := time.Duration(0); at <= time.Second; at += beatEvery {
		beats = append(beats, beat{0, int64(at)})
		if at < 300*ms || at >= 500*ms && at < 600*ms || at >= 700*ms {
			beats = append(beats, beat{1, int64(at + ms)})
		}
	}
	for _, c := range []struct{ from, to, want time.Duration }{
		{from: 0, to: 290 * ms, want: 0},
		{from: 0, to: 400 * ms, want: 400*ms - 291*ms - 2*beatEvery},
		{from: 0, to: 450 * ms, want: 450*ms - 291*ms - 2*beatEvery},
		{from: 400 * ms, to: 550 * ms, want: 501*ms - 400*ms - 2*beatEvery},
		{from: 0, to: time.Second, want: 501*ms - 291*ms + 701*ms - 591*ms - 4*beatEvery},
		{from: 510 * ms, to: 580 * ms, want: 0},
		{from: 400 * ms, to: 410 * ms, want: 0},
	} {
		if got := stoodStill(beats, c.from, c.to); got != c.want {
			t.Errorf("stoodStill(beats, %v, %v) = %v, want %v", c.from, c.to, got, c.want)
		}
	}
}
