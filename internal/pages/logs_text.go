package pages

import (
	"bytes"
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
)

// writeText writes a page of the history as a table, and a last line that says how to get the next page
// from the given path. If the page has only one target or module, there is no column for it.
func (l *log) writeText(body *bytes.Buffer, path string) {
	table := tabwriter.NewWriter(body, 0, 0, 2, ' ', 0)
	write := func(start, target, module string, rest ...string) {
		columns := []string{start}
		if l.Target == "" {
			columns = append(columns, target)
		}
		if l.Module == "" {
			columns = append(columns, module)
		}
		fmt.Fprintln(table, strings.Join(append(columns, rest...), "\t"))
	}
	write("TIME", "TARGET", "MODULE",
		"SUCCESS", "RESULT", "ERRNO", "DURATION", "HANDSHAKE", "RTT", "RETRANSMITS", "ADDRESS", "ICMP", "REASON")
	for _, r := range l.Results {
		write(timestamp(r.Time), quoted(r.Track.Target), quoted(r.Track.Module), columnsOf(r.Record)...)
	}
	table.Flush()
	if l.Older > 0 {
		_, query, _ := strings.Cut(l.Next(), "?")
		fmt.Fprintf(body, "# older results: %d, at %s?%s\n", l.Older, path, query)
	}
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
	why := none
	if remark := remark(r); remark != "" {
		why = unquoted(remark)
	}
	return []string{strconv.FormatBool(r.Success), r.Result, cmp.Or(r.Errno, none), duration(r.Duration),
		duration(r.Handshake), duration(r.RTT), cmp.Or(retransmits(r), none), address, icmp, why}
}

// quoted quotes a name that could not be told from other columns: an empty name, or one with spaces
// or with characters that Go escapes.
func quoted(name string) string {
	if name == "" || strings.Contains(name, " ") {
		return strconv.Quote(name)
	}
	return unquoted(name)
}

// unquoted quotes a text only if it has characters that Go escapes, which could end its line or column.
func unquoted(text string) string {
	if quoted := strconv.Quote(text); quoted != `"`+text+`"` {
		return quoted
	}
	return text
}
