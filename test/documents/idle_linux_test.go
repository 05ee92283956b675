package documents

import (
	"strconv"
	"strings"
	"testing"
)

// docs/idle.md recommends half of each idle timeout, so that a keepalive may be lost and sent again.
func TestKeepaliveForIdleTimeouts(t *testing.T) {
	table := rows(t, idlePage, "what is on the path")
	if len(table) < 5 {
		t.Fatalf("%s has %d idle timeouts, want at least 5", idlePage, len(table))
	}
	for name, cells := range table {
		seconds := func(cell string) int {
			n, err := strconv.Atoi(strings.TrimSuffix(cell, " s"))
			if err != nil {
				t.Fatalf("%s: row %q: %v", idlePage, name, err)
			}
			return n
		}
		if timeout, most := seconds(cells[0]), seconds(cells[1]); most != timeout/2 {
			t.Errorf("%s: the keepalive for %s is at most %d s, want half of %d s", idlePage, name, most, timeout)
		}
	}
}
