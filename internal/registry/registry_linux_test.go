package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

const (
	first  = "10.0.0.1:80"
	second = "10.0.0.2:80"
	third  = "10.0.0.3:80"
)

// The first scrape registers a target, the next ones find it, and note who scrapes.
func TestRegister(t *testing.T) {
	b := newBench(t)
	req := b.request(first, "one")
	if found, err := b.Find(req, ""); found != nil || err != nil {
		t.Errorf("Find before the registration = %v, error %v, want neither", found, err)
	}
	registered, err := b.register(req)
	if err != nil || registered == nil || !registered.isRunning() {
		t.Fatalf("Register = %v, error %v, want a target that has begun", registered, err)
	}
	found, err := b.Find(req, "192.0.2.9")
	if found != registered || err != nil {
		t.Errorf("Find = %p, error %v, want the target %p", found, err, registered)
	}
	if _, client := b.LastScrape(found); client != "192.0.2.9" {
		t.Errorf("the last client is %q, want 192.0.2.9", client)
	}
	again, err := b.Register(req, peerOf(req), "192.0.2.10", func(*fakeTarget) error {
		t.Error("a target that another scrape has registered begins again, want that it goes on")
		return nil
	})
	if again != registered || err != nil {
		t.Errorf("a second Register = %p, error %v, want the target %p", again, err, registered)
	}
	if other := b.scrape(first, "two"); other == registered || other.Module == registered.Module {
		t.Error("a target with two modules is one target, want two")
	}
	if sibling := b.scrape(second, "one"); sibling.Module != registered.Module {
		t.Error("two targets of a module have configurations of their own, want a shared one")
	}
	want := []Module{{Name: "one", Registered: 2, Registrations: 2}, {Name: "two", Registered: 1, Registrations: 1}}
	if got := b.Modules(); !slices.Equal(got, want) {
		t.Errorf("Modules = %+v, want %+v", got, want)
	}
	if registered.Lookups() != nil {
		t.Errorf("an address has the lookups %+v, want none", registered.Lookups())
	}
}

// The names of a target are copies: otherwise they would keep the HTTP request from which they come in memory.
func TestNamesAreCopies(t *testing.T) {
	b := newBench(t)
	req := b.request(first, "one")
	query := "one&target=" + first
	req.ModuleName, req.Text, _ = strings.Cut(query, "&target=")
	target, err := b.register(req)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Key{Module: "one", Target: first}); target.Key != want {
		t.Errorf("the key is %+v, want %+v", target.Key, want)
	}
	for what, of := range map[string][2]string{
		"module": {target.Key.Module, req.ModuleName}, "target": {target.Key.Target, req.Text},
	} {
		if unsafe.StringData(of[0]) == unsafe.StringData(of[1]) {
			t.Errorf("%s: %q is a part of the request, want a copy", what, of[0])
		}
	}
}

// A target that cannot begin is not registered.
func TestRegisterFails(t *testing.T) {
	b := newBench(t)
	req := b.request(first, "one")
	want := errors.New("no socket")
	if _, err := b.Register(req, peerOf(req), "", func(*fakeTarget) error { return want }); !errors.Is(err, want) {
		t.Errorf("Register: error %v, want %v", err, want)
	}
	if len(b.targets) != 0 || b.limits.targets != 0 {
		t.Errorf("%d targets, %d of them count, want none", len(b.targets), b.limits.targets)
	}
}

// A target that is not scraped expires and is stopped. If it is scraped again within a minute, it continues; later it
// is forgotten.
func TestExpiry(t *testing.T) {
	b := newBench(t)
	target := b.scrape(first, "one")
	b.expire(0) // it does not expire before its first client is noted
	b.expire(4 * time.Minute)
	if got := b.Modules()[0]; got.Registered != 1 || got.Expirations != 0 || !target.isRunning() {
		t.Errorf("Modules = %+v before the target expires, running %t, want 1 registered", got, target.isRunning())
	}
	b.expire(6 * time.Minute) // the module says 5m
	b.expire(0)
	if got := b.Modules()[0]; got.Registered != 0 || got.Expirations != 1 || target.isRunning() {
		t.Errorf("Modules = %+v after the target has expired, running %t, want 1 expiration, 0 registered",
			got, target.isRunning())
	}
	if got := b.keys(); got != nil {
		t.Errorf("Targets has %q, want not the expired one", got)
	}
	if back := b.scrape(first, "one"); back != target || !target.isRunning() {
		t.Errorf("scraped again: %p, running %t, want %p, which continues", back, target.isRunning(), target)
	}
	b.expire(6 * time.Minute)
	b.expire(2 * time.Minute) // after the expiry
	if len(b.targets) != 0 {
		t.Errorf("%d targets two minutes after the expiry, want none", len(b.targets))
	}
	if anew := b.scrape(first, "one"); anew == target {
		t.Error("scraped again two minutes after the expiry: the same target, want a new one")
	}
	if b.limits.targets != 1 {
		t.Errorf("%d targets count, want 1", b.limits.targets)
	}
}

// A limit permits no further target until another one has gone. Targets that are registered are not affected.
func TestLimits(t *testing.T) {
	b := newBench(t)
	b.limits.most = 1
	b.scrape(first, "one")
	req := b.request(second, "one")
	if _, err := b.Find(req, ""); !errors.Is(err, errTooMany) {
		t.Errorf("Find of a second target: error %v, want %v", err, errTooMany)
	}
	if _, err := b.register(req); !errors.Is(err, errTooMany) { // it was permitted when it was not found
		t.Errorf("Register of a second target: error %v, want %v", err, errTooMany)
	}
	b.scrape(first, "one")
	b.expire(time.Hour)
	b.scrape(second, "one")
}

// While targets are being stopped, scrapes of others are answered, and new ones are registered.
func TestStopsHoldUpNoScrape(t *testing.T) {
	b := newBench(t)
	leaving := b.scrape(first, "one")
	b.scrape(second, "two")
	begun, release := b.holdStops()
	reloaded := inBackground(func() { b.reload(strings.Replace(testConfig, "ip4", "ip6", 1)) })
	within(t, "the target whose module has changed is stopped", begun)
	within(t, "scrapes while it is being stopped", inBackground(func() {
		b.scrape(second, "two")
		b.scrape(third, "two")
		if got, want := b.keys(), []string{"two " + second, "two " + third}; !slices.Equal(got, want) {
			t.Errorf("Targets has %q while a target is being stopped, want %q", got, want)
		}
	}))
	if !leaving.isRunning() {
		t.Fatal("the target has stopped, want that it is still being stopped")
	}
	release()
	within(t, "the reload ends", reloaded)
}

// A target that is scraped while it is being stopped begins afterwards: if it has expired, it continues, and if its
// module has changed, there is a new one.
func TestScrapeWhileStopping(t *testing.T) {
	for name, c := range map[string]struct {
		end       func(*bench)
		continues bool
	}{
		"expiry": {end: func(b *bench) { b.expire(time.Hour) }, continues: true},
		"reload": {end: func(b *bench) { b.reload(strings.Replace(testConfig, "ip4", "ip6", 1)) }},
	} {
		inBubble(t, name, func(t *testing.T) {
			b := newBench(t)
			before := b.scrape(first, "one")
			begun, release := b.holdStops()
			ended := inBackground(func() { c.end(b) })
			within(t, "the target is being stopped", begun)
			var after *fakeTarget
			scraped := inBackground(func() { after = b.scrape(first, "one") })
			synctest.Wait()
			release()
			within(t, "the target has been stopped", ended)
			within(t, "the scrape ends", scraped)
			if !after.isRunning() || (after == before) != c.continues {
				t.Errorf("the target runs: %t, the same one: %t, want true, %t",
					after.isRunning(), after == before, c.continues)
			}
			if b.limits.targets != 1 {
				t.Errorf("%d targets count, want 1", b.limits.targets)
			}
		})
	}
}

// A scrape for which there is no room waits for targets that are being stopped: they make room.
func TestLimitWhileStopping(t *testing.T) {
	for name, scrape := range map[string]func(*bench) error{
		"find": func(b *bench) error {
			_, err := b.Find(b.request(second, "two"), "")
			return err
		},
		"register": func(b *bench) error {
			_, err := b.register(b.request(second, "two"))
			return err
		},
	} {
		inBubble(t, name, func(t *testing.T) {
			b := newBench(t)
			b.limits.most = 1
			b.scrape(first, "one")
			begun, release := b.holdStops()
			ended := inBackground(func() { b.expire(time.Hour) })
			within(t, "the target is being stopped", begun)
			scraped := inBackground(func() {
				if err := scrape(b); err != nil {
					t.Errorf("%s while a target makes room: error %v, want none", name, err)
				}
			})
			synctest.Wait()
			release()
			within(t, "the target has been stopped", ended)
			within(t, "the scrape ends", scraped)
		})
	}
}

// Many targets are stopped at once, but not all.
func TestStopsAtOnce(t *testing.T) {
	const targets = 3*stopsAtOnce + 1
	for name, end := range map[string]func(*bench){
		"expiry": func(b *bench) { b.expire(time.Hour) },
		"close":  func(b *bench) { b.Close() },
	} {
		inBubble(t, name, func(t *testing.T) {
			b := newBench(t)
			for i := range targets {
				b.scrape(fmt.Sprintf("10.0.0.%d:80", i+1), "one")
			}
			begun, release := b.holdStops()
			ended := inBackground(func() { end(b) })
			synctest.Wait()
			if n := len(begun); n != stopsAtOnce {
				t.Errorf("%d targets are being stopped at once, want %d", n, stopsAtOnce)
			}
			release()
			within(t, "the targets have been stopped", ended)
			for target := range b.Targets() {
				t.Errorf("%v is registered, want none", target.Key)
			}
		})
	}
}

// Close stops the targets, and waits for what they have started. Scrapes are an error afterwards, and those that are
// running register nothing.
func TestClose(t *testing.T) {
	b := newBench(t)
	target := b.scrape(first, "one")
	b.scrape(second, "one")
	b.expire(time.Hour)
	b.scrape(first, "one")
	ended := false
	b.Go(func(ctx context.Context) {
		<-ctx.Done()
		ended = true
	})
	req := b.request(third, "one")
	if found, err := b.Find(req, ""); found != nil || err != nil {
		t.Errorf("Find = %v, error %v, want neither", found, err)
	}
	b.Close() // during that scrape
	if target.isRunning() || !ended {
		t.Errorf("after Close: running %t, its goroutine has ended %t, want false, true", target.isRunning(), ended)
	}
	const want = "watching has ended: "
	got, err := b.register(req)
	if got != nil || !errors.Is(err, shaker.ErrClosed) || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("Register after Close = %v, error %v, want %s%v", got, err, want, shaker.ErrClosed)
	}
	if got, err := b.Find(req, ""); got != nil || !errors.Is(err, shaker.ErrClosed) {
		t.Errorf("Find after Close = %v, error %v, want %v", got, err, shaker.ErrClosed)
	}
	b.Configure()
	b.expire(time.Hour)
	b.resolve()
	b.Close()
}

// Close during a reload waits for the targets that are being stopped.
func TestCloseDuringReload(t *testing.T) {
	b := newBench(t)
	target := b.scrape(first, "one")
	begun, release := b.holdStops()
	reloaded := inBackground(func() { b.reload(strings.Replace(testConfig, "  one:", "  three:", 1)) })
	within(t, "the target is being stopped", begun)
	closed := inBackground(func() {
		b.Close()
		if target.isRunning() {
			t.Error("the target runs after Close, want that it has been stopped")
		}
	})
	release()
	within(t, "Close returns", closed)
	within(t, "the reload ends", reloaded)
}

// Scrapes, reloads, expiry and lookups at the same time.
func TestConcurrency(t *testing.T) {
	b := newBench(t)
	b.limits.most = 30
	configs := []string{testConfig, strings.Replace(testConfig, "ip4", "ip6", 1),
		`targets: {deny: ["10.0.0.8/29:*"]}` + testConfig}
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for i := range 2000 {
				target := fmt.Sprintf("10.0.0.%d:80", (i*7+worker)%40+1)
				req, err := probe.NewRequest(b.prober.Config(), target, "one")
				if err != nil {
					t.Errorf("NewRequest: error %v", err)
					return
				}
				found, err := b.Find(req, "")
				if err == nil && found == nil {
					_, err = b.register(req)
				}
				if err != nil && !errors.Is(err, errTooMany) {
					t.Errorf("scrape of %s: error %v, want none but %v", target, err, errTooMany)
				}
			}
		})
	}
	group.Go(func() {
		for i := range 300 {
			b.reload(configs[i%len(configs)])
		}
	})
	group.Go(func() {
		for i := range 300 {
			b.expire(time.Duration(i%10) * time.Minute)
			b.resolve()
			b.Modules()
		}
	})
	group.Wait()
	running := 0
	for target := range b.Targets() {
		if !target.isRunning() {
			t.Errorf("%v is registered and does not run, want that it runs", target.Key)
		}
		running++
	}
	if b.limits.targets != running {
		t.Errorf("%d targets run and %d count, want the same", running, b.limits.targets)
	}
	b.expire(time.Hour)
	if b.limits.targets != 0 || b.leaving != 0 {
		t.Errorf("with all targets expired, %d count and %d are leaving, want 0", b.limits.targets, b.leaving)
	}
}

// Peek finds a target like Find, but does not defer its expiry.
func TestPeek(t *testing.T) {
	b := newBench(t)
	req := b.request(first, "one")
	if got := b.Peek(req); got != nil {
		t.Errorf("Peek of a target that is not registered = %p, want nil", got)
	}
	target := b.scrape(first, "one")
	before, _ := target.lastScrape()
	if got := b.Peek(req); got != target {
		t.Errorf("Peek of a registered target = %p, want %p", got, target)
	}
	if after, client := target.lastScrape(); after != before || client != "192.0.2.1" {
		t.Errorf("after Peek, the last scrape was by %s at %d, want by 192.0.2.1 at %d", client, after, before)
	}
	b.scrape(first, "one") // the control
	if after, _ := target.lastScrape(); after == before {
		t.Errorf("after another scrape, the last one was at %d, want later", after)
	}
	b.expire(time.Hour)
	if got := b.Peek(req); got != nil {
		t.Errorf("Peek of an expired target = %p, want nil", got)
	}
}
