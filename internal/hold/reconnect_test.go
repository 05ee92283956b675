package hold

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
)

// defaults are the delays of a module that sets none.
var defaults = config.Backoff{Min: time.Second, Max: 5 * time.Minute}

// checkDelay checks a delay, which may be longer or shorter by its jitter.
func checkDelay(t *testing.T, when string, got, want time.Duration) {
	t.Helper()
	if low, high := float64(want)*(1-jitter), float64(want)*(1+jitter); float64(got) < low || float64(got) > high {
		t.Errorf("%s, the delay is %v, want %v, or up to a tenth more or less", when, got, want)
	}
}

// Delays double from the shortest to the longest. They start again only after a connection that lived longer than the
// longest one.
func TestBackoff(t *testing.T) {
	var b backoff
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
		checkDelay(t, "after a failure", b.next(&defaults), want*time.Second)
	}
	b.lived(&defaults, 5*time.Minute, false)
	checkDelay(t, "after a life of 5m", b.next(&defaults), 5*time.Minute)
	b.lived(&defaults, 5*time.Minute+1, true)
	checkDelay(t, "after a longer life", b.next(&defaults), time.Second)
	same := config.Backoff{Min: time.Minute, Max: time.Minute}
	checkDelay(t, "with one delay", b.next(&same), time.Minute)
}

// MariaDB ends a connection whose client is silent after 10 s, counts an error, and blocks a host with 100 errors
// (connect_timeout, max_connect_errors). With the default delays, that takes more than a month.
func TestMariaDBDoesNotBlock(t *testing.T) {
	const age = 10 * time.Second
	for name, c := range map[string]struct {
		rejected bool
		least    time.Duration
		most     time.Duration
	}{
		"rejected": {rejected: true, least: 30 * 24 * time.Hour, most: 70 * 24 * time.Hour},
		"control":  {rejected: false, least: 7 * time.Hour, most: 10 * time.Hour}, // delays that stay at 5m
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var b backoff
				began := time.Now()
				errorsOfHost := 0
				for time.Since(began) < time.Hour {
					time.Sleep(age)
					errorsOfHost++
					b.lived(&defaults, age, c.rejected)
					time.Sleep(b.next(&defaults))
				}
				if errorsOfHost > 25 {
					t.Errorf("%d errors in the first hour, want 25 at most", errorsOfHost)
				}
				for ; errorsOfHost < 100; errorsOfHost++ {
					b.lived(&defaults, age, c.rejected)
					time.Sleep(b.next(&defaults) + age)
				}
				if took := time.Since(began); took < c.least || took > c.most {
					t.Errorf("100 errors within %v, want %v to %v", took, c.least, c.most)
				}
			})
		})
	}
}

// A connection that was not rejected ends the longer delays.
func TestRejectionsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b backoff
		b.lived(&defaults, time.Second, true)
		for range 10 {
			b.next(&defaults)
		}
		time.Sleep(24 * time.Hour)
		b.lived(&defaults, time.Second, true)
		checkDelay(t, "after a day of rejections", b.next(&defaults), 3*time.Hour)
		b.lived(&defaults, time.Minute, false)
		checkDelay(t, "after a connection that the target wanted", b.next(&defaults), 5*time.Minute)
	})
}

// No two connects are closer to each other than the pace permits.
func TestPaceSpreads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pace
		for i := range 3 {
			if got, want := p.reserve(), time.Duration(i)*time.Second/connectsPerSecond; got != want {
				t.Errorf("connect %d waits %v, want %v", i, got, want)
			}
		}
		time.Sleep(time.Minute)
		if got := p.reserve(); got != 0 {
			t.Errorf("a connect after a pause waits %v, want 0", got)
		}
	})
}
