package config

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// value is a value in the file, and what a problem with it names.
type value struct {
	*yaml.Node // not an alias, but the node that it stands for
	file       *file
	line       int    // of a scalar; of a mapping or a list, the line of its key
	path       string // such as "module smtp: tcp.dscp"
	prefix     string // what the paths of its keys begin with, such as "module smtp: tcp."
	inList     bool   // whether it is an entry of a list
}

// entry is a key of a mapping and its value.
type entry struct {
	name  string
	line  int // of the key
	value value
}

// within returns a value within v. The line is that of its key.
func (v value) within(node *yaml.Node, line int, path, prefix string) value {
	if node.Kind == yaml.AliasNode {
		v.file.alias = node.Line
		node = node.Alias
	}
	if node.Kind == yaml.ScalarNode {
		line = node.Line
	}
	return value{Node: node, file: v.file, line: line, path: path, prefix: prefix}
}

func (v value) refuse(format string, args ...any) {
	v.file.refuse(v.line, "%s "+format, append([]any{v.path}, args...)...)
}

// wrong refuses the value because it is not what is wanted.
func (v value) wrong(want string) {
	var is string
	switch {
	case v.Kind == yaml.MappingNode:
		is = "is a mapping"
	case v.Kind == yaml.SequenceNode:
		is = "is a list"
	case isNull(v.Node):
		is = "has no value"
	case v.inList: // without quotes, "an entry is closed" would be about the entry
		is = "is " + strconv.Quote(shorten(v.Value))
	default:
		is = "is " + v.quote()
	}
	v.refuse("%s, want %s", is, want)
}

// quote returns a scalar as the file has it, shortened.
func (v value) quote() string {
	if v.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 {
		return strconv.Quote(shorten(v.Value))
	}
	return quote(v.Value)
}

// quote shortens a text, and quotes it if it would be unclear without quotes.
func quote(text string) string {
	text = shorten(text)
	unclear := func(r rune) bool { return r == '"' || unicode.IsSpace(r) || !unicode.IsGraphic(r) }
	if text == "" || strings.ContainsFunc(text, unclear) {
		return strconv.Quote(text)
	}
	return text
}

func shorten(text string) string {
	const limit = 80
	if runes := []rune(text); len(runes) > limit {
		return string(runes[:limit]) + "..." // not an ellipsis, which not every terminal has
	}
	return text
}

// isEmpty reports whether the node is null or a mapping without keys.
func isEmpty(node *yaml.Node) bool {
	return isNull(node) || node.Kind == yaml.MappingNode && len(node.Content) == 0
}

func isNull(node *yaml.Node) bool {
	return node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null"
}

// tags are the tags of YAML's own types that a value may have. Usually they are not written.
var tags = []string{"!!str", "!!int", "!!float", "!!bool", "!!null", "!!timestamp", "!!seq", "!!map", "!!merge"}

// is reports whether the value is of that kind and not null. If it is not, it is refused. A value with an unknown
// tag is refused too, but the content of a mapping or a list does not depend on its tag.
func (v value) is(kind yaml.Kind, want string) bool {
	ok := v.Kind == kind && !isNull(v.Node)
	if tag := v.ShortTag(); !slices.Contains(tags, tag) {
		v.refuse("has the unknown tag %s, want no tag", quote(tag))
		return ok && kind != yaml.ScalarNode
	}
	if !ok {
		v.wrong(want)
	}
	return ok
}

// text returns the text of a scalar. If the value is not a scalar, ok is false and it is refused.
func (v value) text(want string) (text string, ok bool) { return v.Value, v.is(yaml.ScalarNode, want) }

// choice reads one of the choices.
func (v value) choice(into *string, choices ...string) {
	want := strings.Join(choices[:len(choices)-1], ", ") + " or " + choices[len(choices)-1]
	text, ok := v.text(want)
	switch {
	case ok && slices.Contains(choices, text):
		*into = text
	case ok:
		v.wrong(want)
	}
}

// boolean reads true or false, or another word that YAML has for them.
func (v value) boolean(into *bool) {
	const want = "true or false"
	if v.is(yaml.ScalarNode, want) && v.Decode(into) != nil {
		v.wrong(want)
	}
}

// leadingZero matches a number such as 064, which is octal in YAML 1.1 and decimal in YAML 1.2.
var leadingZero = regexp.MustCompile(`^[-+]?0[0-9_]*[0-9]$`)

// number reads an integer from first to last. It may be written 0x34 or 0o64, but not 064.
func number[T uint8 | uint32 | int](v value, into *T, first, last uint64) (ok bool) {
	want := fmt.Sprintf("%d to %d", first, last)
	if !v.is(yaml.ScalarNode, want) {
		return false
	}
	tag := v.ShortTag()
	if leadingZero.MatchString(v.Value) && (tag == "!!int" || tag == "!!float") { // 089 is a float
		n, err := strconv.ParseUint(strings.NewReplacer("+", "", "_", "").Replace(v.Value), 10, 64)
		if err == nil && n >= first && n <= last {
			want = fmt.Sprintf("%d: a leading 0 would make it octal", n)
		}
		v.wrong(want)
		return false
	}
	var n uint64
	if tag != "!!int" || v.Decode(&n) != nil || n < first || n > last {
		v.wrong(want)
		return false
	}
	*into = T(n)
	return true
}

// duration reads a duration from first to last.
func (v value) duration(into *time.Duration, first, last time.Duration) {
	want := fmt.Sprintf("a duration with a unit, from %s to %s", showDuration(first), showDuration(last))
	v.durationThat(want, into, func(d time.Duration) bool { return d >= first && d <= last })
}

// seconds reads a duration of whole seconds from first to last.
func (v value) seconds(into *time.Duration, first, last time.Duration) {
	v.durationThat(wantSeconds(first, last), into, func(d time.Duration) bool { return inSeconds(d, first, last) })
}

func wantSeconds(first, last time.Duration) string {
	return fmt.Sprintf("whole seconds with a unit, from %s to %s", showDuration(first), showDuration(last))
}

func inSeconds(d, first, last time.Duration) bool {
	return d >= first && d <= last && d%time.Second == 0
}

// durationThat reads a duration for which ok is true.
func (v value) durationThat(want string, into *time.Duration, ok func(time.Duration) bool) {
	text, isText := v.text(want)
	if !isText {
		return
	}
	duration, err := time.ParseDuration(text)
	if err != nil || !ok(duration) {
		v.wrong(want)
		return
	}
	*into = duration
}

// items returns the values of a list. If the value is not a list, ok is false and it is refused.
func (v value) items(want string) (items []value, ok bool) {
	if !v.is(yaml.SequenceNode, want) {
		return nil, false
	}
	for _, node := range v.Content {
		item := v.within(node, node.Line, v.path+": an entry", "")
		item.inList = true
		if !v.file.visit() {
			return nil, false
		}
		items = append(items, item)
	}
	return items, true
}

// entries returns the keys of a mapping and their values, in the order of the file, followed by
// those that the mapping merges (<<) and does not have itself. If the value is not a mapping, ok is
// false and it is refused.
func (v value) entries(want string) (entries []entry, ok bool) {
	if !v.is(yaml.MappingNode, want) {
		return nil, false
	}
	if !v.file.visit() {
		return nil, false
	}
	lines := map[string]int{} // of the keys
	var merged []value
	for i := 0; i < len(v.Content); i += 2 {
		line := v.Content[i].Line
		key := v.within(v.Content[i], line, v.path+": a key", "")
		name, ok := key.text("a name")
		if !ok {
			continue
		}
		// YAML 1.2 reads {a:} as the key a without a value. This parser, of YAML 1.1, takes the colon for a part of it.
		if v.Style&yaml.FlowStyle != 0 && key.Style == 0 && isImplicit(v.Content[i+1]) {
			name = strings.TrimSuffix(name, ":")
		}
		path := v.prefix + quote(name)
		e := entry{name: name, line: line, value: v.within(v.Content[i+1], line, path, path+".")}
		if !v.file.visit() {
			return nil, false
		}
		if first, twice := lines[name]; twice {
			v.file.refuse(line, "%s is given twice, first on line %d", e.value.path, first)
			continue
		}
		lines[name] = line
		if key.ShortTag() == "!!merge" {
			merged = e.value.merges(v)
			continue
		}
		entries = append(entries, e)
	}
	for _, other := range merged {
		others, _ := other.entries(want)
		for _, e := range others {
			if _, own := lines[e.name]; !own {
				lines[e.name] = e.line
				entries = append(entries, e)
			}
		}
	}
	return entries, true
}

// isImplicit reports whether a node is not in the file at all, as the value of a key without one.
func isImplicit(n *yaml.Node) bool { return n.ShortTag() == "!!null" && n.Value == "" }

// merges returns the mappings that a mapping merges, as if they were written there. They are v, the
// value of its key <<.
func (v value) merges(mapping value) (merged []value) {
	nodes := []*yaml.Node{v.Node}
	if v.Kind == yaml.SequenceNode {
		nodes = v.Content
	}
	for _, node := range nodes {
		other := mapping.within(node, v.line, mapping.path, mapping.prefix)
		if other.Kind != yaml.MappingNode {
			v.refuse("must be a mapping or a list of mappings")
			continue
		}
		merged = append(merged, other)
	}
	return merged
}
