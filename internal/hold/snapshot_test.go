package hold

import (
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/registry"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// A peer that has not answered for as long as the keepalive permits is a failure, although the kernel has not ended the
// connection yet. If nothing was asked meanwhile, because this host stood still, it is none.
func TestOverdue(t *testing.T) {
	keepAlive := shaker.KeepAlive{Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}
	at := func(ago time.Duration, keepAlives, data int) shaker.ConnectionState {
		return shaker.ConnectionState{
			LastAnswer: time.Now().Add(-ago), KeepAlivesUnanswered: keepAlives, Unacknowledged: data,
		}
	}
	for name, c := range map[string]struct {
		keepAlive shaker.KeepAlive
		state     shaker.ConnectionState
		want      bool
	}{
		"keepalives":   {keepAlive: keepAlive, state: at(31*time.Second, 3, 0), want: true},
		"data":         {keepAlive: keepAlive, state: at(31*time.Second, 0, 1), want: true},
		"not asked":    {keepAlive: keepAlive, state: at(31*time.Second, 0, 0)},
		"not long ago": {keepAlive: keepAlive, state: at(26*time.Second, 2, 0)},
		"no keepalive": {state: at(31*time.Second, 0, 1)},
		"not reported": {keepAlive: keepAlive, state: shaker.ConnectionState{KeepAlivesUnanswered: 3}},
	} {
		target := &target{Registration: registry.Registration{
			Module: &config.Module{Hold: config.Hold{KeepAlive: c.keepAlive}},
		}}
		if got := target.isOverdue(&c.state); got != c.want {
			t.Errorf("%s: isOverdue(%+v) with keepalive %v = %t, want %t", name, c.state, c.keepAlive, got, c.want)
		}
		target.result = open
		want := open
		if c.want {
			want = "timeout"
		}
		if got, _ := target.verdict(&c.state, true); got != want {
			t.Errorf("%s: the verdict while all was well is %s, want %s", name, got, want)
		}
		if got, _ := target.verdict(&c.state, false); got != open {
			t.Errorf("%s: the verdict without a connection is %s, want that of before, open", name, got)
		}
		target.result = "silent"
		if got, _ := target.verdict(&c.state, true); got != "silent" {
			t.Errorf("%s: the verdict about a silent application is %s, want silent", name, got)
		}
	}
}
