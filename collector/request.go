package collector

import (
	"cmp"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// timeoutHeader is the header in which Prometheus sends its scrape timeout, in seconds.
const timeoutHeader = "X-Prometheus-Scrape-Timeout-Seconds"

// parseRequest parses a request of /probe. Its errors are the caller's mistakes.
func parseRequest(r *http.Request, c *config.Config, timeoutOffset time.Duration) (req *probe.Request, debug bool, err error) {
	params, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, false, fmt.Errorf("query: %w", err)
	}
	for _, name := range []string{"target", "module", "debug"} {
		if n := len(params[name]); n > 1 {
			return nil, false, fmt.Errorf("parameter %q given %d times, want once", name, n)
		}
	}
	req, err = probe.NewRequest(c, params.Get("target"), cmp.Or(params.Get("module"), config.DefaultModule))
	if err != nil {
		return nil, false, err
	}
	if value := params.Get("debug"); value != "" {
		if debug, err = strconv.ParseBool(value); err != nil {
			return nil, false, fmt.Errorf("debug is %q, want true or false", value)
		}
	}
	req.Timeout, err = parseTimeout(r.Header.Get(timeoutHeader), timeoutOffset, req.Timeout)
	return req, debug, err
}

// parseTimeout returns how long a probe may take: what the header says, less the offset
// that the answer needs for its way back to Prometheus, and never more than the module
// allows. A header that is not above the offset keeps half of itself. Without a header
// it is the module's timeout.
func parseTimeout(header string, offset, module time.Duration) (time.Duration, error) {
	if header == "" {
		return module, nil
	}
	seconds, err := strconv.ParseFloat(header, 64)
	if err != nil || math.IsInf(seconds, 0) || !(seconds > 0) {
		return 0, fmt.Errorf("%s is %q, want a positive number of seconds", timeoutHeader, header)
	}
	if left := seconds - offset.Seconds(); left > 0 {
		seconds = left
	} else {
		seconds /= 2
	}
	if seconds >= module.Seconds() { // also what is too large for a Duration
		return module, nil
	}
	return max(1, time.Duration(seconds*float64(time.Second))), nil
}
