package watched

import (
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"sync"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// scrapeNatively returns what makes a Prometheus store native histograms: a key of the section global, with which its
// configuration begins, and an argument.
func scrapeNatively(major process.Major) (global string, args []string) {
	if major == process.Prometheus2 {
		return "", []string{"--enable-feature=native-histograms"}
	}
	return ", scrape_native_histograms: true", nil
}

const watchPage = "../docs/watch.md"

// watchFiles returns the configurations of the exporter and of Prometheus that the page about watched targets has.
func watchFiles(t *testing.T) (shaker, prometheus string) {
	t.Helper()
	files := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(lab.Read(t, watchPage), -1)
	if len(files) < 2 {
		t.Fatalf("%s has %d blocks of YAML, want shaker.yml and prometheus.yml first", watchPage, len(files))
	}
	return files[0][1], files[1][1]
}

// A losingWire is a network that answers the SYNs to all addresses of 203.0.113.0/24, but loses one of ten SYNs to a
// target. It counts the SYNs to that target.
type losingWire struct {
	target netip.AddrPort

	mu         sync.Mutex
	losing     bool
	syns, lost float64
}

// answer is the script of the wire.
func (w *losingWire) answer(s simnet.Segment) [][]byte {
	if !s.SYN {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.Dst == w.target {
		w.syns++
		if w.losing && int(w.syns)%10 == 0 {
			w.lost++
			return nil
		}
	}
	return [][]byte{s.SYNACK()}
}

// repair ends the losses, and returns how many SYNs were lost.
func (w *losingWire) repair() float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.losing = false
	return w.lost
}

// sent returns how many SYNs there were.
func (w *losingWire) sent() float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.syns
}

// Two Prometheus servers scrape the same watched targets, one of them with native histograms. Both have all losses that
// there were on the wire, the loss that rate() gives is right, and HandshakesLost fires for the target that loses SYNs
// only. The native histogram arrives at the one, and the classic one at the other.
func TestWatchedTargets(t *testing.T) { process.EachPrometheus(t, testWatchedTargets) }

func testWatchedTargets(t *testing.T, major process.Major) {
	if lab.Apart(t) {
		return
	}
	const (
		lossy, good = "203.0.113.1:443", "203.0.113.2:443"
		times       = 60 // as fast as the rules of the examples
	)
	wire := &losingWire{target: netip.MustParseAddrPort(lossy), losing: true}
	simnet.NewWire(t, wire.answer, "203.0.113.0/24")
	dir := t.TempDir()
	shaker, prometheus := watchFiles(t) // with other targets, and faster
	exporter.Start(t, "--config.file="+lab.Write(t, dir, "shaker.yml", lab.Replace(t, watchPage, shaker,
		"watch: {interval: 1s}", "timeout: 500ms, watch: {interval: 100ms}")))
	fast := lab.Faster(lab.Read(t, "rules/watch.yml"), times)
	rules := lab.Write(t, dir, "watch.yml", // ten seconds have fewer handshakes than ten minutes
		lab.Replace(t, "rules/watch.yml", fast, "[10s])) >= 100", "[10s])) >= 10"))
	config := func(name, global string) string {
		return lab.Write(t, dir, name, `
global: {scrape_interval: 1s, evaluation_interval: 1s`+global+`}
rule_files: [`+rules+`]
`+lab.Replace(t, watchPage, prometheus, `"db.example:5432"`, fmt.Sprintf("%q, %q", lossy, good))+`
  - job_name: shaker_exporter
    static_configs: [{targets: ["localhost:10115"]}]
`)
	}
	global, args := scrapeNatively(major)
	native := major.Start(t, 9090, config("native.yml", global), args...)
	classic := major.Start(t, 9091, config("classic.yml", ""))
	servers := map[string]*process.Prometheus{"native": native, "classic": classic}

	const firing = `ALERTS{alertname="HandshakesLost", alertstate="firing"}`
	for name, server := range servers {
		lab.Eventually(t, name+": an alert fires for the lossy target", func() bool {
			return len(server.Query(firing)) > 0
		})
		for _, alert := range server.Query(firing) {
			if alert.Labels["instance"] != lossy {
				t.Errorf("%s: %v fires, want only that of %s", name, alert.Labels, lossy)
			}
		}
	}
	lost := wire.repair()
	for name, server := range servers {
		timeouts := func(instance string) float64 {
			samples := server.Query(fmt.Sprintf(
				`probe_watch_handshakes_total{instance=%q, result="timeout", errno="ETIMEDOUT"}`, instance))
			if len(samples) != 1 {
				return math.NaN()
			}
			return samples[0].Value
		}
		lab.Eventually(t, fmt.Sprintf("%s: all %v losses are in Prometheus", name, lost), func() bool {
			return timeouts(lossy) >= lost
		})
		if got := timeouts(lossy); got != lost {
			t.Errorf("%s: %v timeouts of %s, want the %v SYNs that were lost", name, got, lossy, lost)
		}
		if got := timeouts(good); got != 0 {
			t.Errorf("%s: %v timeouts of %s, want 0", name, got, good)
		}
		handshakes := `sum(probe_watch_handshakes_total{instance="` + lossy + `"})`
		total := server.Query(handshakes)
		if len(total) != 1 || total[0].Value < 10*lost-10 || total[0].Value > wire.sent() {
			t.Fatalf("%s: Query(%s) = %v, want one value from %v to the %v SYNs on the wire",
				name, handshakes, total, 10*lost-10, wire.sent())
		}
		// While SYNs were lost, it was one of ten.
		loss := `max_over_time((sum(rate(probe_watch_handshakes_total{instance="` + lossy + `", result="timeout"}[10s]))
			/ sum(rate(probe_watch_handshakes_total{instance="` + lossy + `"}[10s])))[2m:1s])`
		if got := server.Query(loss); len(got) != 1 || got[0].Value < .09 || got[0].Value > .13 {
			t.Errorf("%s: Query(%s) = %v, want 0.1", name, loss, got)
		}
		handshakesOfAll := `sum(increase(probe_watch_handshakes_total[10m]))`
		if got := server.Query(handshakesOfAll); len(got) != 1 || got[0].Value < 1.5*total[0].Value {
			t.Errorf("%s: Query(%s) = %v, want about twice the %v of %s",
				name, handshakesOfAll, got, total[0].Value, lossy)
		}
	}

	// Each handshake that was answered has a sample in the histogram of the same scrape.
	const (
		inNative  = `histogram_count(probe_watch_rtt_seconds)`
		inClassic = `probe_watch_rtt_seconds_count`
		inBuckets = `probe_watch_rtt_seconds_bucket{le="+Inf"}`
		answered  = ` > 0 == ignoring (result, errno, le) probe_watch_handshakes_total{result="open"}`
	)
	for _, c := range []struct {
		server string
		query  string
		want   int
	}{
		{server: "native", query: inNative + answered, want: 2},
		{server: "native", query: inBuckets, want: 0},
		{server: "native", query: `histogram_quantile(0.99, rate(probe_watch_rtt_seconds[1m])) > 0`, want: 2},
		{server: "classic", query: inClassic + answered, want: 2},
		{server: "classic", query: inBuckets + answered, want: 2},
		{server: "classic", query: inNative, want: 0},
		{
			server: "classic", query: `histogram_quantile(0.99, rate(probe_watch_rtt_seconds_bucket[1m])) > 0`,
			want: 2,
		},
	} {
		if got := servers[c.server].Query(c.query); len(got) != c.want {
			t.Errorf("%s: Query(%s) = %v, want %d series", c.server, c.query, got, c.want)
		}
	}
	// docs/watch.md says how many series a watched target has.
	for name, want := range map[string]float64{"native": 14, "classic": 31} {
		const series = `count({__name__=~"probe_watch_.+", instance="` + good + `"})`
		if got := servers[name].Query(series); len(got) != 1 || got[0].Value != want {
			t.Errorf("%s: Query(%s) = %v, want %v", name, series, got, want)
		}
	}
	// The rules have recorded a quantile from either form.
	for name, server := range servers {
		const quantile = `instance:probe_watch_rtt_seconds:p95_10m > 0`
		lab.Eventually(t, name+": "+quantile+" has both targets", func() bool {
			return len(server.Query(quantile)) == 2
		})
	}
}
