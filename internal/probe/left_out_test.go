package probe

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The operator is told which flows are left out whenever others are than before, at most once a minute for each module
// and protocol, and of the last state in any case.
func TestLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var told []string // guarded by mu
		l := &leftOut{tell: func(module, protocol string, ports []uint16) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, fmt.Sprint(module, " ", protocol, " ", ports))
		}}
		check := func(when string, want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(told, want) {
				t.Errorf("%s: told of %q, want %q", when, told, want)
			}
			told = nil
		}
		a, b := flowSet{module: "a", protocol: "ip4"}, flowSet{module: "a", protocol: "ip6"}
		l.set(a, nil)
		check("nothing is left out")
		l.set(a, []uint16{20001})
		check("a port is taken", "a ip4 [20001]")
		l.set(a, []uint16{20001})
		l.set(b, nil)
		check("it is still taken")
		l.set(b, []uint16{20001})
		check("the other protocol", "a ip6 [20001]")
		l.note(a, 20003, true)
		l.note(a, 20002, true)
		time.Sleep(leftOutPause / 2)
		check("two more within a minute")
		time.Sleep(leftOutPause / 2)
		check("two more after a minute", "a ip4 [20001 20002 20003]")
		for range 10 { // ports that are taken now and then
			l.set(a, nil)
			l.set(a, []uint16{20001})
		}
		l.note(a, 20001, false)
		time.Sleep(leftOutPause)
		check("all are free", "a ip4 []")
		time.Sleep(2 * leftOutPause)
		check("nothing happens")
		l.set(a, []uint16{20001})
		check("taken again, after a long time", "a ip4 [20001]")
		l.set(a, nil)
		l.forget()
		time.Sleep(leftOutPause)
		check("the configuration was reloaded")
		l.set(a, []uint16{20001})
		check("taken after a reload", "a ip4 [20001]")
		l.forget()
	})
}
