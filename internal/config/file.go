package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"sort"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Load reads a configuration file, as [Parse] does. A file of more than 16 MiB is refused, and
// so is a FIFO whose writer does not come to an end in 5 s.
func Load(name string) (c *Config, warnings []string, err error) {
	if name == "" {
		return Default(), nil, nil
	}
	text, err := read(name, time.Now().Add(patience))
	if err != nil {
		return nil, nil, err
	}
	return Parse(name, text)
}

// Parse reads the text of a configuration file of that name. What the text leaves out is as
// it is by default.
//
// The error tells all that is wrong with the text, a line for each, in the order of its
// lines. Whatever this process may not use on this host is wrong as well. A warning is
// about what this host lacks now and may have later: the address or the interface to
// send from.
func Parse(name string, text []byte) (c *Config, warnings []string, err error) {
	f := &file{name: name}
	c = Default()
	if root := f.parse(text); root != nil {
		readMapping(value{Node: root, file: f, line: root.Line, path: "the file"}, c, configKeys)
	}
	if f.exhausted != nil { // the rest is wrong because it was not read
		return nil, nil, errors.New(f.text(*f.exhausted))
	}
	if len(f.errors) > 0 {
		var errs []error
		for _, text := range f.texts(f.errors) {
			errs = append(errs, errors.New(text))
		}
		return nil, nil, errors.Join(errs...)
	}
	return c, f.texts(f.warnings), nil
}

// file is a configuration file that is being read.
type file struct {
	name             string
	errors, warnings []remark
	alias            int     // line of the last alias
	budget           int     // how many more nodes may be visited
	exhausted        *remark // said when the budget is used up
}

// remark is something to be said about a line.
type remark struct {
	line int
	text string
}

func (f *file) text(r remark) string { return fmt.Sprintf("%s:%d: %s", f.name, r.line, r.text) }

// texts returns the remarks in the order of their lines, each once: what several modules
// have in common is read for each of them.
func (f *file) texts(remarks []remark) []string {
	slices.SortStableFunc(remarks, func(a, b remark) int { return cmp.Compare(a.line, b.line) })
	var texts []string
	seen := map[remark]bool{}
	for _, r := range remarks {
		if !seen[r] {
			seen[r] = true
			texts = append(texts, f.text(r))
		}
	}
	return texts
}

func (f *file) refuse(line int, format string, args ...any) {
	f.errors = append(f.errors, remark{line: line, text: fmt.Sprintf(format, args...)})
}

// parse returns the content of the file's only document, or nil if there is something
// wrong with it as YAML, or it is empty.
func (f *file) parse(text []byte) *yaml.Node {
	line := 0
	for content := range bytes.Lines(text) {
		if line++; !utf8.Valid(content) {
			f.refuse(line, "the text is not UTF-8")
			return nil
		}
	}
	documents, err := parseYAML(text)
	switch {
	case err != nil:
		line, is := errorLine(text, err), syntaxError(err)
		if tabIndents(text, line, err) {
			is = "a tab cannot indent, want blanks"
		}
		f.refuse(line, "this is no YAML: %s", is)
		return nil
	case len(documents) > 1:
		f.refuse(documents[1].Line, "a second document begins, want one")
		return nil
	case len(documents) == 0 || isEmpty(documents[0].Content[0]):
		f.refuse(1, "there is nothing in it, want targets or modules")
		return nil
	}
	root := documents[0].Content[0]
	f.budget = maxAliased
	if !f.survey(root, nil) {
		return nil
	}
	return root
}

func parseYAML(text []byte) (documents []*yaml.Node, err error) {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var document yaml.Node
		if err := decoder.Decode(&document); err == io.EOF {
			return documents, nil
		} else if err != nil {
			return nil, err
		}
		documents = append(documents, &document)
	}
}

var yamlPrefix = regexp.MustCompile(`^yaml: (line \d+: )?`)

// syntaxError returns what the parser says, without the line.
func syntaxError(err error) string { return yamlPrefix.ReplaceAllString(err.Error(), "") }

// errorLine returns the first line with which the parser says this of the text. The parser's
// own line is now that, now the one before, and with some errors there is none.
func errorLine(text []byte, err error) int {
	lines := bytes.SplitAfter(text, []byte("\n"))
	return 1 + sort.Search(len(lines)-1, func(n int) bool {
		_, other := parseYAML(bytes.Join(lines[:n+1], nil))
		return other != nil && syntaxError(other) == syntaxError(err)
	})
}

// tabIndents tells whether the parser says this of the line for a tab: with a blank in its
// place it would not.
func tabIndents(text []byte, line int, err error) bool {
	lines := bytes.SplitAfter(text, []byte("\n"))[:line]
	lines[line-1] = bytes.ReplaceAll(lines[line-1], []byte("\t"), []byte(" "))
	_, other := parseYAML(bytes.Join(lines, nil))
	return other == nil || syntaxError(other) != syntaxError(err)
}

// maxAliased is how many nodes the aliases of a file may stand for in all. Without a limit
// a few lines could stand for any number.
const maxAliased = 100_000

// tags are those that values may have, as a rule without being written.
var tags = []string{"!!str", "!!int", "!!float", "!!bool", "!!null", "!!timestamp", "!!seq", "!!map", "!!merge"}

// survey looks at all nodes once, and allows as many visits. It is false if there is what
// cannot be read: a tag of somebody's own, or an alias in what it stands for, to which
// there would be no end.
func (f *file) survey(node *yaml.Node, within []*yaml.Node) bool {
	f.budget++
	if node.Kind == yaml.AliasNode && slices.Contains(within, node.Alias) {
		f.refuse(node.Line, "the alias *%s is part of what it stands for", node.Value)
		return false
	}
	if tag := node.ShortTag(); node.Kind != yaml.AliasNode && !slices.Contains(tags, tag) {
		f.refuse(node.Line, "the tag %s is unknown, want none", quote(tag))
		return false
	}
	ok := true
	for _, child := range node.Content {
		ok = f.survey(child, append(within, node)) && ok
	}
	return ok
}

// visit counts the visit of a node. It is false if there were too many.
func (f *file) visit() bool {
	if f.budget--; f.budget < 0 && f.exhausted == nil {
		f.exhausted = &remark{line: f.alias, text: fmt.Sprintf("the aliases stand for more than %d keys and values", maxAliased)}
	}
	return f.exhausted == nil
}
