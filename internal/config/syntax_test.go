package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// The line of a syntax error is found with a few parses, however long the file is.
func TestSyntaxErrorInALargeFile(t *testing.T) {
	const maxParses = 6 // one for the error, four for the line, one for a tab
	size := maxSize - 100
	if lab.Race {
		size /= 10
	}
	var b strings.Builder
	b.WriteString("modules:\n")
	line := 2
	for ; b.Len() < size; line++ {
		fmt.Fprintf(&b, "  m%d: {prober: tcp}\n", line)
	}
	valid := b.String()
	oneParse := testing.AllocsPerRun(1, func() {
		if documents, failure := parseYAML([]byte(valid)); len(documents) != 1 || failure != nil {
			t.Fatalf("parseYAML(%d bytes) = %d documents, %+v, want 1 document", len(valid), len(documents), failure)
		}
	})
	for _, test := range []struct{ end, want string }{
		{end: "   m: {prober: tcp}\n", want: "did not find expected key"},
		{end: "  m: *absent\n  # a comment\n\n", want: "unknown anchor 'absent' referenced"},
	} {
		text := []byte(valid + test.end)
		want := fmt.Sprintf("large.yml:%d: invalid YAML: %s", line, test.want)
		allocs := testing.AllocsPerRun(1, func() {
			if _, _, err := Parse("large.yml", text); err == nil || err.Error() != want {
				t.Errorf("Parse(%d bytes, with %q at the end) = %v, want %s", len(text), test.end, err, want)
			}
		})
		if limit := maxParses * oneParse * 1.1; allocs > limit {
			t.Errorf("Parse(%d bytes, with %q at the end) makes %.0f allocations, want at most %.0f, as %d parses do",
				len(text), test.end, allocs, limit, maxParses)
		}
	}
}
