package collector

import (
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

const pathConfig = `
modules:
  never: {prober: tcp, timeout: 600ms}
  on_failure: {prober: tcp, timeout: 600ms, tcp: {path: on_failure, max_hops: 9}}
  always: {prober: tcp, timeout: 600ms, tcp: {path: always}}
`

// newPathNetwork returns a network with paths: open, refused, and one on which SYNs die.
func newPathNetwork(t testing.TB) *simnet.Network {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK()).Behind("198.51.100.1", "", "10.0.0.3")
	network.At("192.0.2.2", simnet.RST()).Behind("198.51.100.1")
	network.At("192.0.2.3").Behind("198.51.100.1", "198.51.100.2")
	network.At("192.0.2.4", simnet.ICMP("198.51.100.2", 3, 13)).Behind("198.51.100.1")
	network.At("2001:db8::1", simnet.SYNACK()).Behind("2001:db8:ffff::1")
	return network
}

func TestPath(t *testing.T) {
	newPathNetwork(t)
	p := newHandler(t, settings{config: parse(t, pathConfig)})
	for _, c := range []struct{ golden, query string }{
		{"path_always", "target=192.0.2.1:80&module=always"},
		{"path_always_ipv6", "target=[2001:db8::1]:80&module=always"},
		{"path_on_failure_open", "target=192.0.2.1:80&module=on_failure"},
		{"path_on_failure_refused", "target=192.0.2.2:80&module=on_failure"},
		{"path_on_failure_timeout", "target=192.0.2.3:80&module=on_failure"},
		{"path_on_failure_prohibited", "target=192.0.2.4:80&module=on_failure"},
		{"path_never", "target=192.0.2.3:80&module=never"},
		{"path_of_nothing", "target=absent.invalid:80&module=always"},
	} {
		t.Run(c.golden, func(t *testing.T) {
			began := time.Now()
			w := get(p, "/probe?"+c.query)
			if took := time.Since(began); w.Code != 200 || took > 5*time.Second {
				t.Fatalf("%d %s after %v", w.Code, w.Body, took)
			}
			golden(t, c.golden, w.Body.String())
		})
	}
	if n := p.prober.InFlight(); n != 0 {
		t.Errorf("%d are in flight at the end", n)
	}
}

// The story of a probe and the history have the path.
func TestPathForPeople(t *testing.T) {
	network := newPathNetwork(t)
	results := history.New(10)
	p := newHandler(t, settings{config: parse(t, pathConfig), Options: Options{History: results}})
	body := get(p, "/probe?debug=true&module=always&target=192.0.2.1:80").Body.String()
	for _, want := range []string{"path:  1  198.51.100.1  ", "path:  2  *\n", "path:  3  10.0.0.3  ", "path:  4  192.0.2.1  ", " ms  open\n"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
	network.At("192.0.2.1").Behind("198.51.100.1", "")
	body = get(p, "/probe?debug=true&module=always&target=192.0.2.1:80").Body.String()
	if want := "path: no reply from here on\n"; !strings.Contains(body, want) {
		t.Errorf("no %q in\n%s", want, body)
	}
	track := results.Tracks("", "")[0]
	if track.Path == nil || track.Path.Reached != 0 || len(track.Path.Hops) != 1 || track.GoodPath == nil || track.GoodPath.Reached != 4 {
		t.Errorf("the history has %+v and, as the last good one, %+v", track.Path, track.GoodPath)
	}
}

// Where there is no room for a trace, the verdict stands without one.
func TestPathWithoutRoom(t *testing.T) {
	newPathNetwork(t)
	p := newHandler(t, settings{config: parse(t, pathConfig), maxInFlight: shaker.HopsAtOnce - 1})
	w := get(p, "/probe?debug=true&module=always&target=192.0.2.1:80")
	if body := w.Body.String(); w.Code != 200 || !strings.Contains(body, "probe_success 1\n") || strings.Contains(body, "probe_path_hop") ||
		!strings.Contains(body, "path: not traced: too many handshakes are in flight\n") {
		t.Errorf("%d %s", w.Code, body)
	}
	if n := p.prober.InFlight(); n != 0 {
		t.Errorf("%d are in flight at the end", n)
	}
}
