package config

import (
	"fmt"
	"slices"
	"strings"
)

// misplaced returns keys that a mapping does not have, because they belong below another key.
func misplaced[T any](below string, names ...string) (keys []key[T]) {
	refuse := func(_ *T, v value) { v.refuse("is misplaced, want it below %s", below) }
	for _, name := range names {
		keys = append(keys, key[T]{name, refuse, nil})
	}
	return keys
}

// names returns the names of the keys that can be shown.
func names[T any](keys []key[T]) []string {
	var names []string
	for _, key := range keys {
		if key.show != nil {
			names = append(names, key.name)
		}
	}
	return names
}

func wantKeys[T any](keys []key[T]) string { return "the keys " + strings.Join(names(keys), ", ") }

// readMapping reads a mapping into t, and returns the values of the mapping's keys.
func readMapping[T any](v value, t *T, keys []key[T]) map[string]value {
	entries, _ := v.entries(wantKeys(keys))
	return readEntries(entries, t, keys)
}

func readEntries[T any](entries []entry, t *T, keys []key[T]) map[string]value {
	given := map[string]value{}
	for _, e := range entries {
		i := slices.IndexFunc(keys, func(k key[T]) bool { return k.name == e.name })
		if i < 0 {
			e.value.file.refuse(e.line, "%s is unknown%s", e.value.path, suggest(e.name, names(keys)))
			continue
		}
		given[e.name] = e.value
		keys[i].read(t, e.value)
	}
	return given
}

// suggest returns what to write instead of an unknown name: the known name that it resembles, and all of them.
func suggest(unknown string, known []string) string {
	return fmt.Sprintf("%s, want one of %s", Hint(unknown, known), strings.Join(known, ", "))
}

// Hint returns a question with the known name that an unknown one resembles, or "" if there is none.
func Hint(unknown string, known []string) string {
	unknown = shorten(unknown)
	nearest := slices.MinFunc(known, func(a, b string) int { return distance(unknown, a) - distance(unknown, b) })
	if distance(unknown, nearest) > (len(nearest)+1)/3 {
		return ""
	}
	return fmt.Sprintf(" (is %s meant?)", nearest)
}

// distance returns how many bytes must be inserted, deleted or replaced to turn a into b, their
// Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1) // row[j] is the distance between a[:i] and b[:j]
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
