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

// However long it is asked about targets of all kinds, by clients that stay and clients that
// leave, the exporter is afterwards as small as it was at first.
func TestSoak(t *testing.T) {
	network := simnet.NewNetwork(t)
	kinds := []struct {
		timeout  time.Duration // of the probe
		patience time.Duration // of the client
		results  []string
	}{
		{3 * time.Second, time.Minute, []string{"open"}},
		{3 * time.Second, time.Minute, []string{"refused"}},
		{3 * time.Second, time.Minute, []string{"prohibited"}},
		{100 * time.Millisecond, time.Minute, []string{"timeout"}},
		{3 * time.Second, time.Minute, []string{"open", "timeout"}},
		{3 * time.Second, 10 * time.Millisecond, nil},
	}
	network.At("10.0.0.0/16", simnet.SYNACK().Between(0, 50*time.Millisecond))
	network.At("10.1.0.0/16", simnet.RST().After(20*time.Millisecond))
	network.At("10.2.0.0/16", simnet.ICMP("198.51.100.7", 3, 13))
	network.At("10.3.0.0/16")
	network.At("10.4.0.0/16", simnet.SYNACK()).Losing(0.05, 0.05)
	network.At("10.5.0.0/16")
	exporter.Start(t, "--timeout-offset=0")

	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 50}}
	ask := func() error {
		kind := rand.IntN(len(kinds))
		k := kinds[kind]
		ctx, cancel := context.WithTimeout(t.Context(), k.patience)
		defer cancel()
		url := fmt.Sprintf("http://localhost:10115/probe?target=10.%d.%d.1:80", kind, rand.IntN(256))
		request, err := http.NewRequestWithContext(ctx, "GET", url, nil)
		if err != nil {
			return err
		}
		request.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", strconv.FormatFloat(k.timeout.Seconds(), 'f', -1, 64))
		response, err := client.Do(request)
		if err != nil {
			if k.results == nil {
				return nil
			}
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != 200 {
			body, _ := io.ReadAll(response.Body)
			if strings.HasSuffix(string(body), "before a SYN was sent\n") { // the machine is busy
				return nil
			}
			return fmt.Errorf("%s: %d %s", url, response.StatusCode, body)
		}
		if f := finding(t, response.Body); !slices.Contains(k.results, f.Result) {
			return fmt.Errorf("%s: %+v", url, f)
		}
		return nil
	}
	var requests atomic.Int64
	round := func(d time.Duration) {
		var asking sync.WaitGroup
		for range 50 {
			asking.Go(func() {
				for began := time.Now(); time.Since(began) < d; requests.Add(1) {
					if err := ask(); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		asking.Wait()
		client.CloseIdleConnections()
		network.Forget()
	}
	before := exporter.Metrics(t)
	round(time.Second)
	before["go_memstats_heap_alloc_bytes"] = exporter.Metrics(t)["go_memstats_heap_alloc_bytes"]
	round(*lab.Soak)
	var after map[string]string
	for name, more := range map[string]float64{
		"go_goroutines":                0,
		"process_open_fds":             0,
		"shaker_probes_in_flight":      0,
		"go_memstats_heap_alloc_bytes": 4 << 20, // the garbage that may wait to be collected
	} {
		number := func(metrics map[string]string) float64 {
			value, err := strconv.ParseFloat(metrics[name], 64)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return value
		}
		lab.Eventually(t, name+" is what it was", func() bool {
			after = exporter.Metrics(t)
			return number(after) <= number(before)+more
		})
	}
	t.Logf("%d requests", requests.Load())
}
