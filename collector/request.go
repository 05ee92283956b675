package collector

import (
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

// parseRequest parses a request of /probe. debug reports whether the caller asked for the log of the probe. An
// error is a mistake of the caller.
func parseRequest(r *http.Request, c *config.Config, timeoutOffset time.Duration) (
	req *probe.Request, debug bool, err error,
) {
	params, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, false, fmt.Errorf("query: %w", err)
	}
	for _, name := range []string{"target", "module", "debug"} {
		if n := len(params[name]); n > 1 {
			return nil, false, fmt.Errorf("parameter %q given %d times, want once", name, n)
		}
	}
	req, err = probe.NewRequest(c, params.Get("target"), params.Get("module"))
	if err != nil {
		return nil, false, err
	}
	if value := params.Get("debug"); value != "" {
		if debug, err = strconv.ParseBool(value); err != nil {
			return nil, false, fmt.Errorf("debug is %s, want true or false", probe.Quote(value))
		}
	}
	req.Timeout, err = parseTimeout(r.Header.Get(timeoutHeader), timeoutOffset, req.Timeout)
	return req, debug, err
}

// parseTimeout returns the timeout of a probe. It is the timeout in the header minus the offset, so that the
// response arrives in time, but at most the timeout of the module. If the timeout in the header does not
// exceed the offset, it is half of the timeout in the header. Without a header it is the timeout of the module.
func parseTimeout(header string, offset, module time.Duration) (time.Duration, error) {
	if header == "" {
		return module, nil
	}
	seconds, err := strconv.ParseFloat(header, 64)
	if err != nil || math.IsInf(seconds, 0) || !(seconds > 0) {
		return 0, fmt.Errorf("%s is %s, want a positive number of seconds", timeoutHeader, probe.Quote(header))
	}
	if left := seconds - offset.Seconds(); left > 0 {
		seconds = left
	} else {
		seconds /= 2
	}
	if seconds >= module.Seconds() { // also true for a value that does not fit into a Duration
		return module, nil
	}
	return max(1, time.Duration(seconds*float64(time.Second))), nil
}
