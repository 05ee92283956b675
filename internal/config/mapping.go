package config

import (
	"fmt"
	"slices"
	"strings"
)

// names returns the names of the keys, but those that are refused.
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

// readMapping reads a mapping into t, and returns the values of its keys.
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

// suggest returns which names there are, and first the one that may be meant.
func suggest(name string, known []string) string {
	name = shorten(name)
	nearest := slices.MinFunc(known, func(a, b string) int { return distance(name, a) - distance(name, b) })
	hint := ""
	if distance(name, nearest) <= (len(nearest)+1)/3 {
		hint = fmt.Sprintf(" (is %s meant?)", nearest)
	}
	return fmt.Sprintf("%s, there are %s", hint, strings.Join(known, ", "))
}

// distance returns how many letters have to be put in, left out or replaced to make one
// text of the other (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1) // of the distances of a[:i] to each b[:j]
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
