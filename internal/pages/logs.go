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

	"github.com/shaker-exporter/shaker_exporter/collector"
)

// Logs answers with the history of one target, or of all, as text: a line for each probe,
// the latest first.
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
		http.Error(w, "nothing is in the history"+asked(target, module), status)
		return
	}
	var body bytes.Buffer
	writeLogs(&body, tracks, target == "", module == "")
	p.send(w, "text/plain; charset=utf-8", &body)
}

// parseFilter reads the target and the module that a query asks for, "" for all.
func parseFilter(query string) (target, module string, err error) {
	params, err := url.ParseQuery(query)
	if err != nil {
		return "", "", fmt.Errorf("query: %w", err)
	}
	for _, name := range []string{"target", "module"} {
		if n := len(params[name]); n > 1 {
			return "", "", fmt.Errorf("%s is given %d times, want it once", name, n)
		}
	}
	return params.Get("target"), params.Get("module"), nil
}

// asked says what was asked for.
func asked(target, module string) string {
	var text string
	if target != "" {
		text += fmt.Sprintf(", target %q", target)
	}
	if module != "" {
		text += fmt.Sprintf(", module %q", module)
	}
	return text
}

// writeLogs writes the records of all tracks as columns, the latest first, with the target
// and the module in each line if they are not the same in all.
func writeLogs(body *bytes.Buffer, tracks []collector.Track, withTarget, withModule bool) {
	type line struct {
		*collector.Track
		*collector.Record
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
	write := func(at, target, module string, rest ...string) {
		columns := []string{at}
		if withTarget {
			columns = append(columns, target)
		}
		if withModule {
			columns = append(columns, module)
		}
		fmt.Fprintln(table, strings.Join(append(columns, rest...), "\t"))
	}
	write("TIME", "TARGET", "MODULE", "SUCCESS", "RESULT", "ERRNO", "DURATION", "HANDSHAKE", "RTT", "RETRANSMITS", "ADDRESS", "ICMP")
	for _, l := range lines {
		write(exact(l.Time), quoted(l.Target), quoted(l.Module), columnsOf(l.Record)...)
	}
	table.Flush()
}

// columnsOf returns what was measured, "-" for what was not.
func columnsOf(r *collector.Record) []string {
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

// quoted quotes a name that could be taken for something else than one column.
func quoted(name string) string {
	quoted := strconv.Quote(name)
	if name == "" || strings.Contains(name, " ") || quoted != `"`+name+`"` {
		return quoted
	}
	return name
}
