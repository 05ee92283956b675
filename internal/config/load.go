package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Load reads a configuration from a file. The error says all that is wrong with it, a line
// for each thing. The warnings say what may not work as it is meant on this host now.
func Load(file string) (c *Config, warnings []string, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	return Parse(file, text)
}

// Parse is Load for a text. The name is that of its file.
func Parse(name string, text []byte) (c *Config, warnings []string, err error) {
	r := &reader{name: name}
	c = r.read(text)
	if len(r.problems) > 0 {
		return nil, nil, errors.Join(r.told(r.problems)...)
	}
	for _, warning := range r.told(r.warnings) {
		warnings = append(warnings, warning.Error())
	}
	return c, warnings, nil
}

// A reader reads a document and collects what there is to say about it.
type reader struct {
	name     string
	problems []remark
	warnings []remark
	merged   int // mappings
}

// A remark is about a line, 0 if it is about none.
type remark struct {
	line int
	text string
}

func (r *reader) wrong(line int, format string, args ...any) {
	r.problems = append(r.problems, remark{line, fmt.Sprintf(format, args...)})
}

func (r *reader) warn(line int, format string, args ...any) {
	r.warnings = append(r.warnings, remark{line, fmt.Sprintf(format, args...)})
}

// told returns the remarks in the order of their lines.
func (r *reader) told(remarks []remark) []error {
	slices.SortStableFunc(remarks, func(a, b remark) int { return cmp.Compare(a.line, b.line) })
	var errs []error
	for _, remark := range slices.Compact(remarks) { // an anchor may have been read twice
		where := r.name
		if remark.line > 0 {
			where = fmt.Sprintf("%s:%d", r.name, remark.line)
		}
		errs = append(errs, fmt.Errorf("%s: %s", where, remark.text))
	}
	return errs
}

// read reads the document.
func (r *reader) read(text []byte) *Config {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document yaml.Node
	switch err := decoder.Decode(&document); {
	case err == io.EOF || err == nil && len(document.Content) == 0:
		r.wrong(0, "there is nothing in it, want targets or modules")
		return nil
	case err != nil:
		r.wrong(0, "%s", strings.TrimPrefix(err.Error(), "yaml: "))
		return nil
	}
	c := Default()
	r.section("", r.pairs("", document.Content[0]), c.keys(r))
	var second yaml.Node
	if err := decoder.Decode(&second); err != io.EOF {
		r.wrong(second.Line, "there is a second document in it, want one")
	}
	return c
}

// A section is the keys that a mapping may have, and what reads the value of each. Its
// errors begin with what the value is.
type section map[string]func(value *yaml.Node) error

// A pair is a key of a mapping and its value.
type pair struct {
	key   string
	line  int // of the key
	value *yaml.Node
}

// section reads the pairs of a mapping. What is said of a key begins with where.
func (r *reader) section(where string, pairs []pair, keys section) {
	names := slices.Sorted(maps.Keys(keys))
	for _, p := range pairs {
		read, ok := keys[p.key]
		if !ok {
			r.wrong(p.line, "%s%s is no key, want %s", where, word(p.key), oneOf(likely(p.key, names)))
			continue
		}
		if err := read(p.value); err != nil {
			r.wrong(p.value.Line, "%s%s %v", where, p.key, err)
		}
	}
}

// pairs returns the pairs of a mapping, and after them those that it is merged with (<<).
func (r *reader) pairs(where string, node *yaml.Node) []pair {
	m := mapping{reader: r, where: where, lines: make(map[string]int)}
	m.add(node)
	return m.pairs
}

// A mapping collects pairs, the first one of each key.
type mapping struct {
	*reader
	where string
	pairs []pair
	lines map[string]int // of the keys so far
}

func (m *mapping) add(node *yaml.Node) {
	node = resolved(node)
	switch {
	case isNull(node):
		return
	case node.Kind != yaml.MappingNode:
		m.wrong(node.Line, "%s is %s, want a mapping", cmp.Or(strings.TrimRight(m.where, ".: "), "the document"), kind(node))
		return
	}
	// Mappings that are merged with others can be many more than there are in the text.
	if m.merged++; m.merged > 10_000 {
		m.problems = append(m.problems[:0], remark{node.Line, "too many mappings are merged (<<)"})
		return
	}
	own := make(map[string]bool)
	var merged []*yaml.Node
	for i := 0; i < len(node.Content); i += 2 {
		key, value := resolved(node.Content[i]), resolved(node.Content[i+1])
		switch {
		case key.Tag == "!!merge":
			merged = append(merged, value)
		case key.Kind != yaml.ScalarNode:
			m.wrong(key.Line, "%sa key is %s, want a word", m.where, kind(key))
		case own[key.Value]:
			m.wrong(key.Line, "%s%s is given twice, first in line %d", m.where, word(key.Value), m.lines[key.Value])
		default:
			own[key.Value] = true
			if _, ok := m.lines[key.Value]; !ok {
				m.lines[key.Value] = key.Line
				m.pairs = append(m.pairs, pair{key.Value, key.Line, value})
			}
		}
	}
	for _, value := range merged {
		if value.Kind != yaml.SequenceNode {
			m.add(value)
			continue
		}
		for _, value := range value.Content {
			m.add(value)
		}
	}
}

// resolved returns the node that an alias stands for.
func resolved(node *yaml.Node) *yaml.Node {
	for node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	return node
}

func isNull(node *yaml.Node) bool { return node.Kind == yaml.ScalarNode && node.Tag == "!!null" }

// kind says what a node is.
func kind(node *yaml.Node) string {
	switch {
	case node.Kind == yaml.MappingNode:
		return "a mapping"
	case node.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(node), node.Value == "":
		return "empty"
	}
	return word(node.Value)
}

// word quotes a text if it is not as simple as most are.
func word(text string) string {
	simple := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("_-./:%[]*", c)
	}
	if text != "" && len(text) < 100 && !strings.ContainsFunc(text, func(c rune) bool { return !simple(c) }) {
		return text
	}
	return fmt.Sprintf("%.100q", text)
}

// likely returns the one of the names that is most like a text, or all if none is.
func likely(text string, names []string) []string {
	for _, name := range names {
		if distance(text, name) <= 2 {
			return []string{name}
		}
	}
	return names
}

// distance is how many letters have to be changed, added or removed to make b of a
// (Levenshtein).
func distance(a, b string) int {
	if len(a) > 100 {
		return len(a)
	}
	previous := make([]int, len(b)+1)
	for j := range previous {
		previous[j] = j
	}
	for i := range len(a) {
		row := []int{i + 1}
		for j := range len(b) {
			changed := previous[j]
			if a[i] != b[j] {
				changed++
			}
			row = append(row, min(changed, previous[j+1]+1, row[j]+1))
		}
		previous = row
	}
	return previous[len(b)]
}

// oneOf lists what is possible.
func oneOf(values []string) string {
	if len(values) == 1 {
		return values[0]
	}
	return strings.Join(values[:len(values)-1], ", ") + " or " + values[len(values)-1]
}
