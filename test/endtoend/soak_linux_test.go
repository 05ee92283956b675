package endtoend

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// After any number of probes of targets of all kinds, by clients that wait for the response and clients that
// disconnect, the exporter has no more goroutines, file descriptors and memory than before.
func TestSoak(t *testing.T) {
	network := simnet.NewNetwork(t)
	// The targets of the n-th kind are in 10.n.0.0/16.
	kinds := []struct {
		probeTimeout  time.Duration
		clientTimeout time.Duration
		results       []string // any of these is right; nil if the client disconnects before the result
	}{
		{probeTimeout: 3 * time.Second, clientTimeout: time.Minute, results: []string{"open"}},
		{probeTimeout: 3 * time.Second, clientTimeout: time.Minute, results: []string{"refused"}},
		{probeTimeout: 3 * time.Second, clientTimeout: time.Minute, results: []string{"prohibited"}},
		{probeTimeout: 100 * time.Millisecond, clientTimeout: time.Minute, results: []string{"timeout"}},
		{probeTimeout: 3 * time.Second, clientTimeout: time.Minute, results: []string{"open", "timeout"}},
		{probeTimeout: 3 * time.Second, clientTimeout: 10 * time.Millisecond},
	}
	network.At("10.0.0.0/16", simnet.SYNACK().Between(0, 50*time.Millisecond))
	network.At("10.1.0.0/16", simnet.RST().After(20*time.Millisecond))
	network.At("10.2.0.0/16", simnet.ICMP("198.51.100.7", 3, 13))
	network.At("10.3.0.0/16")
	network.At("10.4.0.0/16", simnet.SYNACK()).Losing(0.05, 0.05)
	network.At("10.5.0.0/16")
	exporter.Start(t, "--timeout-offset=0")

	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 50}}
	probe := func() error {
		n := rand.IntN(len(kinds))
		kind := kinds[n]
		ctx, cancel := context.WithTimeout(t.Context(), kind.clientTimeout)
		defer cancel()
		url := fmt.Sprintf("http://localhost:10115/probe?target=10.%d.%d.1:80", n, rand.IntN(256))
		request, err := http.NewRequestWithContext(ctx, "GET", url, nil)
		if err != nil {
			return err
		}
		request.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", fmt.Sprint(kind.probeTimeout.Seconds()))
		response, err := client.Do(request)
		if err != nil {
			if kind.results == nil {
				return nil
			}
			return fmt.Errorf("%w, want one of the results %v", err, kind.results)
		}
		defer response.Body.Close()
		if response.StatusCode != 200 {
			body, _ := io.ReadAll(response.Body)
			if strings.HasSuffix(string(body), "before a SYN was sent\n") { // the machine is busy
				return nil
			}
			return fmt.Errorf("GET %s = %d %s, want 200", url, response.StatusCode, body)
		}
		if f := finding(t, response.Body); !slices.Contains(kind.results, f.Result) {
			return fmt.Errorf("GET %s = %+v, want one of the results %v", url, f, kind.results)
		}
		return nil
	}
	var requests atomic.Int64
	round := func(d time.Duration) {
		var clients sync.WaitGroup
		for range 50 {
			clients.Go(func() {
				for began := time.Now(); time.Since(began) < d; requests.Add(1) {
					if err := probe(); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		clients.Wait()
		client.CloseIdleConnections()
		network.Forget()
	}
	before := exporter.Metrics(t)
	round(time.Second)
	before["go_memstats_heap_alloc_bytes"] = exporter.Metrics(t)["go_memstats_heap_alloc_bytes"]
	round(*lab.Soak)
	for name, tolerance := range map[string]float64{
		"go_goroutines":                0,
		"process_open_fds":             0,
		"shaker_probes_in_flight":      0,
		"go_memstats_heap_alloc_bytes": 4 << 20, // garbage that has not been collected yet
	} {
		number := func(metrics map[string]string) float64 {
			value, err := strconv.ParseFloat(metrics[name], 64)
			if err != nil {
				t.Fatalf("%s = %q, want a number", name, metrics[name])
			}
			return value
		}
		limit := number(before) + tolerance
		lab.Eventually(t, fmt.Sprintf("%s is at most %v", name, limit), func() bool {
			return number(exporter.Metrics(t)) <= limit
		})
	}
	t.Logf("made %d requests", requests.Load())
}
