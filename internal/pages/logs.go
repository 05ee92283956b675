package pages

import (
	"bytes"
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
)

// Logs serves the history as plain text, one line per probe, latest first. The query may select
// one target, one module, or both.
func (p *Pages) Logs(w http.ResponseWriter, r *http.Request) {
	target, module, err := parseFilter(r.URL.RawQuery)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	tracks := p.options.Tracks(target, module)
	if len(tracks) == 0 {
		status := http.StatusOK
		if target != "" || module != "" {
			status = http.StatusNotFound
		}
		http.Error(w, noResults(target, module), status)
		return
	}
	var body bytes.Buffer
	writeLogs(&body, tracks, target == "", module == "")
	p.send(w, "text/plain; charset=utf-8", &body)
}

// parseFilter returns the target and the module that a query selects, "" for all.
func parseFilter(query string) (target, module string, err error) {
	params, err := url.ParseQuery(query)
	if err != nil {
		return "", "", fmt.Errorf("query: %w", err)
	}
	for _, name := range []string{"target", "module"} {
		if n := len(params[name]); n > 1 {
			return "", "", fmt.Errorf("parameter %q given %d times, want once", name, n)
		}
	}
	return params.Get("target"), params.Get("module"), nil
}

// noResults says that the history has no results of a target and a module, "" for all.
func noResults(target, module string) string {
	switch {
	case target == "" && module == "":
		return "the history is empty"
	case module == "":
		return fmt.Sprintf("no results in the history for target %q", target)
	case target == "":
		return fmt.Sprintf("no results in the history for module %q", module)
	}
	return fmt.Sprintf("no results in the history for target %q and module %q", target, module)
}

// writeLogs writes the records of all tracks as a table, latest first. The columns for the target
// and the module are optional.
func writeLogs(body *bytes.Buffer, tracks []history.Track, withTarget, withModule bool) {
	type line struct {
		*history.Track
		*history.Record
	}
	var lines []line
	for i := range tracks {
		for j := range slices.Backward(tracks[i].Records) {
			lines = append(lines, line{&tracks[i], &tracks[i].Records[j]})
		}
	}
	slices.SortStableFunc(lines, func(a, b line) int {
		return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(a.Target, b.Target), cmp.Compare(a.Module, b.Module))
	})
	table := tabwriter.NewWriter(body, 0, 0, 2, ' ', 0)
	write := func(start, target, module string, rest ...string) {
		columns := []string{start}
		if withTarget {
			columns = append(columns, target)
		}
		if withModule {
			columns = append(columns, module)
		}
		fmt.Fprintln(table, strings.Join(append(columns, rest...), "\t"))
	}
	write("TIME", "TARGET", "MODULE",
		"SUCCESS", "RESULT", "ERRNO", "DURATION", "HANDSHAKE", "RTT", "RETRANSMITS", "ADDRESS", "ICMP")
	for _, l := range lines {
		write(timestamp(l.Time), quoted(l.Target), quoted(l.Module), columnsOf(l.Record)...)
	}
	table.Flush()
}

// columnsOf returns the columns of a record, "-" for values that were not measured.
func columnsOf(r *history.Record) []string {
	const none = "-"
	duration := func(d time.Duration) string {
		if d <= 0 {
			return none
		}
		return d.Round(time.Microsecond).String()
	}
	address, icmp := none, none
	if r.Address.IsValid() {
		address = r.Address.String()
	}
	if r.ICMP.From.IsValid() {
		icmp = fmt.Sprintf("%s from %s", r.ICMP, r.ICMP.From)
	}
	return []string{strconv.FormatBool(r.Success), r.Result, cmp.Or(r.Errno, none), duration(r.Duration),
		duration(r.Handshake), duration(r.RTT), cmp.Or(retransmits(r), none), address, icmp}
}

// quoted quotes a name that could not be told from other columns: an empty name, or one with spaces
// or with characters that Go escapes.
func quoted(name string) string {
	quoted := strconv.Quote(name)
	if name == "" || strings.Contains(name, " ") || quoted != `"`+name+`"` {
		return quoted
	}
	return name
}
