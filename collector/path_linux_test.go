package collector

import (
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

const pathConfig = `
modules:
  never: {prober: tcp, timeout: 600ms}
  on_failure: {prober: tcp, timeout: 1200ms, tcp: {path: on_failure, max_hops: 9}}
  always: {prober: tcp, timeout: 1200ms, tcp: {path: always}}
  slow: {prober: tcp, timeout: 2m}
`

// newPathNetwork returns a network with paths to an open port, to a closed port, to a silent target, and to a
// target behind a firewall.
func newPathNetwork(t testing.TB) *simnet.Network {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK()).Behind("198.51.100.1", "", "10.0.0.3")
	network.At("192.0.2.2", simnet.RST()).Behind("198.51.100.1")
	network.At("192.0.2.3").Behind("198.51.100.1", "198.51.100.2")
	network.At("192.0.2.4", simnet.ICMP("198.51.100.2", 3, 13)).Behind("198.51.100.1")
	network.At("2001:db8::1", simnet.SYNACK()).Behind("2001:db8:ffff::1")
	return network
}

// The metrics of a path depend on the module's setting and on the result of the probe.
func TestPath(t *testing.T) {
	newPathNetwork(t)
	h := newHandler(t, settings{config: parse(t, pathConfig)})
	for _, c := range []struct{ golden, query string }{
		{golden: "path_always", query: "target=192.0.2.1:80&module=always"},
		{golden: "path_always_ipv6", query: "target=[2001:db8::1]:80&module=always"},
		{golden: "path_on_failure_open", query: "target=192.0.2.1:80&module=on_failure"},
		{golden: "path_on_failure_refused", query: "target=192.0.2.2:80&module=on_failure"},
		{golden: "path_on_failure_timeout", query: "target=192.0.2.3:80&module=on_failure"},
		{golden: "path_on_failure_prohibited", query: "target=192.0.2.4:80&module=on_failure"},
		{golden: "path_never", query: "target=192.0.2.3:80&module=never"},
		{golden: "path_of_nothing", query: "target=absent.invalid:80&module=always"},
	} {
		t.Run(c.golden, func(t *testing.T) {
			path := "/probe?" + c.query
			began := time.Now()
			w := get(h, path)
			if took := time.Since(began); w.Code != 200 || took > 5*time.Second {
				t.Fatalf("GET %s = %d %s after %v, want 200 within 5 s", path, w.Code, w.Body, took)
			}
			golden(t, c.golden, w.Body.String())
		})
	}
	checkInFlight(t, h, "after all probes", 0)
}

// The log of a probe and the history contain the path.
func TestPathInLogAndHistory(t *testing.T) {
	network := newPathNetwork(t)
	results := history.New(10)
	h := newHandler(t, settings{config: parse(t, pathConfig), Options: Options{History: results}})
	const path = "/probe?debug=true&module=always&target=192.0.2.1:80"
	body := get(h, path).Body.String()
	for _, want := range []string{"path:  1  198.51.100.1  ", "path:  2  *\n", "path:  3  10.0.0.3  ",
		"path:  4  192.0.2.1  ", " ms  open\n"} {
		if !strings.Contains(body, want) {
			t.Errorf("GET %s =\n%s\nwant %q in it", path, body, want)
		}
	}
	network.At("192.0.2.1").Behind("198.51.100.1", "")
	body = get(h, path).Body.String()
	if want := "path: no reply from here on\n"; !strings.Contains(body, want) {
		t.Errorf("GET %s =\n%s\nwant %q in it", path, body, want)
	}
	track := results.Tracks("", "")[0]
	if p := track.Path; p == nil || p.Reached != 0 || len(p.Hops) != 1 {
		t.Errorf("the history has the path %+v, want one hop and no reply of the target", p)
	}
	if p := track.GoodPath; p == nil || p.Reached != 4 {
		t.Errorf("the history has the last good path %+v, want the target at hop 4", p)
	}
}

// A path whose end was not found has no series: it would look like a path that ends there.
func TestIncompletePath(t *testing.T) {
	network := simnet.NewNetwork(t)
	// Each router that does not answer costs 100 ms, and the trace has 1.2 s.
	network.At("192.0.2.1", simnet.SYNACK()).Behind(append([]string{"198.51.100.1"}, make([]string, 20)...)...)
	results := history.New(10)
	h := newHandler(t, settings{config: parse(t, pathConfig), Options: Options{History: results}})
	const path = "/probe?debug=true&module=always&target=192.0.2.1:80"
	w := get(h, path)
	checkStatus(t, path, w, 200)
	body := w.Body.String()
	for _, want := range []string{"probe_success 1\n",
		"path: incomplete, known up to hop 1: trace 192.0.2.1:80: context deadline exceeded\n"} {
		if !strings.Contains(body, want) {
			t.Errorf("GET %s =\n%s\nwant %q in it", path, body, want)
		}
	}
	if strings.Contains(body, "probe_path_") {
		t.Errorf("GET %s =\n%s\nwant no probe_path_ in it", path, body)
	}
	if got := results.Tracks("", "")[0].Path; got != nil {
		t.Errorf("the history has the path %+v, want none", got)
	}
}

// If the limit of handshakes in flight leaves no room for a trace, the probe has a verdict, and no path. The log says
// whether there may be room later.
func TestPathWithoutRoom(t *testing.T) {
	newPathNetwork(t)
	for _, c := range []struct {
		maxInFlight int
		running     int64 // other probes
		want        string
	}{
		{maxInFlight: 7,
			want: "path: not traced: --probe.max-in-flight is less than the 8 handshakes of a trace\n"},
		{maxInFlight: 8, running: 1, want: "path: not traced: too many handshakes are in flight\n"},
	} {
		h := newHandler(t, settings{config: parse(t, pathConfig), maxInFlight: c.maxInFlight})
		for range c.running {
			end := probeInBackground(h, "192.0.2.3:80&module=slow")
			defer end()
		}
		lab.Eventually(t, "the other probes run", func() bool { return h.prober.InFlight() == c.running })
		const path = "/probe?debug=true&module=always&target=192.0.2.1:80"
		w := get(h, path)
		checkStatus(t, path, w, 200)
		body := w.Body.String()
		for _, want := range []string{"probe_success 1\n", c.want} {
			if !strings.Contains(body, want) {
				t.Errorf("GET %s with a limit of %d =\n%s\nwant %q in it", path, c.maxInFlight, body, want)
			}
		}
		if strings.Contains(body, "probe_path_hop") {
			t.Errorf("GET %s with a limit of %d =\n%s\nwant no probe_path_hop in it", path, c.maxInFlight, body)
		}
		checkInFlight(t, h, "after the probe", c.running)
	}
}
