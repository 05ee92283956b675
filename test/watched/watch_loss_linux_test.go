package watched

import (
	"fmt"
	"math"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// Half of many watched targets are firewalled and restored, again and again. Then Prometheus has each lost handshake
// of each target, as the kernel counted the SYNs, and rate() is right. The control: the other half has lost none. This
// is 2,000 targets for two minutes, with each version of Prometheus:
//
//	go -C test test -run LossOfManyTargets ./watched -soak 2m
func TestLossOfManyTargets(t *testing.T) { process.EachPrometheus(t, testLossOfManyTargets) }

func testLossOfManyTargets(t *testing.T, major process.Major) {
	targets, scrapeInterval, losses := 200, "1s", 4.0
	if *lab.Soak >= time.Minute {
		targets, scrapeInterval, losses = 2000, "5s", 10
	}
	lab.NeedDescriptors(t, 4*targets+1000)
	farm := newFarm(t, targets)
	shaker, prometheus := watchFiles(t)
	dir := t.TempDir()
	running := exporter.Start(t, "--config.file="+lab.Write(t, dir, "shaker.yml", shaker))
	quoted := fmt.Sprintf("%q", farm.targets)
	list := strings.ReplaceAll(quoted[1:len(quoted)-1], " ", ", ")
	global, args := scrapeNatively(major)
	server := watchingServer{
		Prometheus: major.Start(t, 9090, lab.Write(t, dir, "prometheus.yml", fmt.Sprintf(
			"global: {scrape_interval: %s%s}\n%s", scrapeInterval, global,
			lab.Replace(t, watchPage, prometheus, `"db.example:5432"`, list))), args...),
		t: t, targets: farm.targets,
	}

	began := time.Now()
	lab.Eventually(t, "each target has had three handshakes", func() bool {
		return len(server.values(openHandshakes+" >= 3")) == targets
	})
	steady := time.Now()
	marks := []mark{server.mark(farm)}
	for len(marks) < 3 || time.Since(began) < *lab.Soak {
		before := marks[len(marks)-1]
		farm.block()
		farm.await("SYNs of each firewalled target are lost", func(now wireCounts) bool {
			return farm.each(farm.blocked, func(target string) bool {
				return now.lost[target] >= before.wire.lost[target]+losses
			})
		})
		farm.restore()
		// When three further handshakes have succeeded, those that had lost their SYN have ended.
		restored := farm.counts()
		farm.await("SYNs of each target pass the firewall", func(now wireCounts) bool {
			return farm.each(farm.targets, func(target string) bool {
				return now.passed[target] >= restored.passed[target]+3
			})
		})
		marks = append(marks, server.mark(farm))
		server.checkLosses(before, marks[len(marks)-1])
	}
	server.checkShare(marks[len(marks)-2], marks[len(marks)-1])
	// Just after registration, the time of the last handshake is that of the scrape.
	base := server.values(fmt.Sprintf("min_over_time((%s)[%dms:1s] @ %s)", unexplained,
		marks[1].at.Sub(steady).Milliseconds(), seconds(marks[1].at)))

	// When no further SYN gets out, Prometheus comes to have everything that was on the wire.
	farm.refuse()
	lab.Eventually(t, "each target has had three handshakes that were refused", func() bool {
		return len(server.values(`probe_watch_handshakes_total{result="refused"} >= 3`)) == targets
	})
	server.checkTotals(farm.counts())
	server.checkDue(base)
	server.checkHistograms(began)
	sum := func(series string) (sum float64) {
		for _, value := range server.values("sum by (instance) (" + series + ")") {
			sum += value
		}
		return sum
	}
	t.Logf("%d targets, firewalled %d times in %v: %v handshakes, %v of them lost; "+
		"%v skipped, %v SYN retransmissions, %v failed scrapes; CPU time of the exporter: %v",
		targets, len(marks)-1, time.Since(began).Round(time.Second),
		sum("probe_watch_handshakes_total"), sum(lostHandshakes),
		sum("probe_watch_skipped_total"), sum("probe_watch_syn_retransmits_total"),
		sum(fmt.Sprintf("count_over_time(up[%[1]dms]) - sum_over_time(up[%[1]dms])", time.Since(began).Milliseconds())),
		running.CPU())
}

// Series of a watched target.
const (
	openHandshakes = `probe_watch_handshakes_total{result="open"}`
	lostHandshakes = `probe_watch_handshakes_total{result="timeout"}`

	// uncounted is how many handshakes on the wire may have no result: those whose result was not taken, and those
	// that were given up because of this host.
	uncounted = `sum by (instance) (probe_watch_skipped_total{reason=~"unread|fault"})`

	// unexplained does not change if each handshake that is due is counted.
	unexplained = `sum by (instance) (probe_watch_handshakes_total) + sum by (instance) (probe_watch_skipped_total)
		- sum by (instance) (probe_watch_last_handshake_timestamp_seconds / probe_watch_interval_seconds)`
)

// A watchingServer is a Prometheus that scrapes watched targets.
type watchingServer struct {
	*process.Prometheus
	t       *testing.T
	targets []string
}

// A mark is a time at which Prometheus had all losses that there were on the wire, and the counts of the wire then. The
// first samples after the mark still have the same losses.
type mark struct {
	at   time.Time
	wire wireCounts
}

// mark returns a mark. No SYN must be lost meanwhile, and the handshakes whose SYN was lost must have ended.
func (s watchingServer) mark(f *farm) mark {
	s.t.Helper()
	s.awaitScrapes()
	m := mark{at: time.Now(), wire: f.counts()}
	s.awaitScrapes()
	return m
}

// awaitScrapes waits until each target has been scraped once more.
func (s watchingServer) awaitScrapes() {
	s.t.Helper()
	query := fmt.Sprintf("timestamp(%s) > %s", lostHandshakes, seconds(time.Now()))
	lab.Eventually(s.t, "each target has been scraped again", func() bool {
		if len(s.values(query)) == len(s.targets) {
			return true
		}
		time.Sleep(200 * time.Millisecond) // the query takes CPU time
		return false
	})
}

// seconds returns a time as PromQL has it.
func seconds(at time.Time) string {
	return strconv.FormatFloat(float64(at.UnixMilli())/1000, 'f', 3, 64)
}

// values returns the values of an instant vector of watched targets, by target.
func (s watchingServer) values(query string) map[string]float64 {
	s.t.Helper()
	values := make(map[string]float64)
	for _, sample := range s.Query(query) {
		target := sample.Labels["instance"]
		if _, twice := values[target]; twice {
			s.t.Fatalf("Query(%s) has several series of %s, want one of each target", query, target)
		}
		values[target] = sample.Value
	}
	return values
}

// A point is a sample of a series. Its time is in milliseconds.
type point struct{ at, value float64 }

// points returns the samples of a range vector of watched targets, by target.
func (s watchingServer) points(query string) map[string][]point {
	s.t.Helper()
	var matrix struct {
		Result []struct {
			Metric map[string]string
			Values [][2]any // the time as a number, the value as a string
		}
	}
	s.API("query?query="+url.QueryEscape(query), &matrix)
	all := make(map[string][]point)
	for _, series := range matrix.Result {
		var points []point
		for _, sample := range series.Values {
			value, err := strconv.ParseFloat(sample[1].(string), 64)
			if err != nil {
				s.t.Fatalf("Query(%s): the value of %v: %v", query, series.Metric, err)
			}
			points = append(points, point{at: math.Round(1000 * sample[0].(float64)), value: value})
		}
		all[series.Metric["instance"]] = points
	}
	return all
}

// between returns the range between two marks in PromQL.
func between(from, to mark) string {
	return fmt.Sprintf("[%dms] @ %s", to.at.UnixMilli()-from.at.UnixMilli(), seconds(to.at))
}

// checkLosses compares the losses between two marks with the wire: the samples to the handshake, and rate() with what
// Prometheus documents of it.
func (s watchingServer) checkLosses(from, to mark) {
	s.t.Helper()
	samples := s.points(lostHandshakes + between(from, to))
	rates := s.values("rate(" + lostHandshakes + between(from, to) + ")")
	others := s.values(uncounted)
	wrong := 0
	for _, target := range s.targets {
		points := samples[target]
		if len(points) < 2 {
			s.t.Fatalf("%s has %d samples between two marks, want 2 or more", target, len(points))
		}
		lost := to.wire.lost[target] - from.wire.lost[target]
		unsure := others[target] + to.wire.rescued[target] - from.wire.rescued[target]
		got := points[len(points)-1].value - points[0].value
		if got > lost || got < lost-unsure {
			s.t.Errorf("%s: the counter of timeouts has grown by %v, want the %v handshakes that were lost, or %v less",
				target, got, lost, unsure)
			wrong++
		}
		want := rateOf(points, float64(from.at.UnixMilli()), float64(to.at.UnixMilli()))
		if math.Abs(rates[target]-want) > 1e-9*want {
			s.t.Errorf("%s: rate() of timeouts is %v, want %v, of the samples %v",
				target, rates[target], want, points)
			wrong++
		}
		if wrong > 3 {
			s.t.Fatal("and further targets")
		}
	}
}

// rateOf returns the rate per second of a counter without a reset, in a range of time, as rate() extrapolates it: to
// the ends of the range if there is a sample near them, otherwise by half of the distance of two samples, and at the
// start not to less than 0.
func rateOf(points []point, start, end float64) float64 {
	first, last := points[0], points[len(points)-1]
	increase, sampled := last.value-first.value, last.at-first.at
	distance := sampled / float64(len(points)-1)
	extrapolate := func(gap float64) float64 {
		if gap >= 1.1*distance {
			return distance / 2
		}
		return gap
	}
	before, after := extrapolate(first.at-start), extrapolate(end-last.at)
	if increase > 0 {
		before = min(before, sampled*first.value/increase)
	}
	return increase * (before + sampled + after) / sampled / (end - start) * 1000
}

// checkShare compares the share of handshakes that were lost between two marks, as the page computes it, with the
// samples. There must have been losses before the first mark: then the extrapolation of rate() has no effect on the
// share.
func (s watchingServer) checkShare(from, to mark) {
	s.t.Helper()
	all := between(from, to)
	shares := s.values(fmt.Sprintf("sum without (result, errno) (rate(%s%s)) "+
		"/ sum without (result, errno) (rate(probe_watch_handshakes_total%s))", lostHandshakes, all, all))
	lost, answered := s.points(lostHandshakes+all), s.points(openHandshakes+all)
	for _, target := range s.targets {
		growth := func(points []point) float64 { return points[len(points)-1].value - points[0].value }
		k, n := growth(lost[target]), growth(lost[target])+growth(answered[target])
		if share := shares[target]; math.Abs(share-k/n) > 1e-9 {
			s.t.Fatalf("%s: the share of lost handshakes is %v, want %v of %v", target, share, k, n)
		}
	}
}

// checkTotals compares all handshakes with the wire, on which there are no further ones.
func (s watchingServer) checkTotals(wire wireCounts) {
	s.t.Helper()
	opens, timeouts := s.values(openHandshakes), s.values(lostHandshakes)
	others := s.values(uncounted)
	wrong := 0
	for _, target := range s.targets {
		lost, passed, rescued, unsure := wire.lost[target], wire.passed[target], wire.rescued[target], others[target]
		sum := opens[target] + timeouts[target]
		if timeouts[target] > lost || opens[target] > passed+rescued ||
			sum < lost+passed-unsure || sum > lost+passed {
			s.t.Errorf("%s: %v open handshakes and %v timeouts, want %v and %v as on the wire; "+
				"%v may be either, and %v may be missing",
				target, opens[target], timeouts[target], passed, lost, rescued, unsure)
			if wrong++; wrong > 3 {
				s.t.Fatal("and further targets")
			}
		}
	}
}

// checkDue checks that each handshake that was due is a handshake or is skipped. The base has the values of unexplained
// some time ago.
func (s watchingServer) checkDue(base map[string]float64) {
	s.t.Helper()
	// A handshake may be missing for a moment, because it ends after the next one, and skipped ones may be counted
	// before the time of the last handshake changes.
	var wrong []string
	asDue := func() bool {
		now := s.values(unexplained)
		wrong = nil
		for _, target := range s.targets {
			if d := now[target] - base[target]; math.Abs(d) > 1.5 {
				wrong = append(wrong, fmt.Sprintf("%s: %.1f", target, d))
			}
		}
		return wrong == nil
	}
	for deadline := time.Now().Add(30 * time.Second); !asDue() && time.Now().Before(deadline); {
		time.Sleep(500 * time.Millisecond)
	}
	if wrong != nil {
		s.t.Errorf("%d targets have more or fewer handshakes and skipped ones than were due, want as many: %q",
			len(wrong), wrong[:min(3, len(wrong))])
	}
}

// checkHistograms checks that each handshake that was answered has a sample in the native histogram of the same scrape,
// unless its SYN was sent again, and that there are quantiles.
func (s watchingServer) checkHistograms(began time.Time) {
	s.t.Helper()
	for _, query := range []string{
		"histogram_count(probe_watch_rtt_seconds) == ignoring (result, errno) " + openHandshakes +
			" or ignoring (result, errno) probe_watch_syn_retransmits_total > 0",
		fmt.Sprintf("histogram_quantile(0.99, rate(probe_watch_rtt_seconds[%dms])) > 0",
			time.Since(began).Milliseconds()),
	} {
		if got := s.values(query); len(got) != len(s.targets) {
			s.t.Errorf("Query(%s) has %d series, want %d", query, len(got), len(s.targets))
		}
	}
}
