package config

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Parse reads the text of a configuration file of that name. Keys that the text leaves out have
// their default values.
//
// The error has one line for each mistake in the text, in the order of the text's lines. An option
// that this process may not use on this host is a mistake too. A warning is about an address or an
// interface to send from that this host lacks now, but may have later, about a setting from a file of
// blackbox_exporter that has no effect, about a watched module that cannot show every lost SYN, about ports of flows
// that others may use, or about connections that are held without a way to notice that their peer is gone.
func Parse(name string, text []byte) (c *Config, warnings []string, err error) {
	f := &file{name: name, budget: maxAliased}
	c = Default()
	if root := f.parse(text); root != nil && f.survey(root, nil) {
		readMapping(value{Node: root, file: f, line: root.Line, path: "the file"}, c, configKeys)
	}
	if f.exhausted != nil { // the other errors may be its consequences
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

// file is a configuration file while it is read.
type file struct {
	name             string
	errors, warnings []problem
	foreign          *Foreign                  // what the module that is read turned out to be, nil if not foreign
	tcp              map[string]value          // the keys of the section tcp that was read last
	patterns         map[string]*regexp.Regexp // by their texts
	alias            int                       // line of the alias that was read last
	budget           int                       // how many more nodes may be visited
	exhausted        *problem                  // the error when the budget is used up
}

// problem is an error or a warning about a line.
type problem struct {
	line int
	text string
}

func (f *file) text(p problem) string { return fmt.Sprintf("%s:%d: %s", f.name, p.line, p.text) }

// texts returns the problems in the order of their lines, each once: a mapping may be merged, and
// thus read, more than once.
func (f *file) texts(problems []problem) []string {
	slices.SortStableFunc(problems, func(a, b problem) int { return cmp.Compare(a.line, b.line) })
	var texts []string
	seen := map[problem]bool{}
	for _, p := range problems {
		if !seen[p] {
			seen[p] = true
			texts = append(texts, f.text(p))
		}
	}
	return texts
}

func (f *file) refuse(line int, format string, args ...any) {
	f.errors = append(f.errors, problem{line: line, text: fmt.Sprintf(format, args...)})
}

// maxAliased is how many nodes the aliases of a file may stand for in total. Without a limit, a few
// lines could stand for any number of nodes.
const maxAliased = 100_000

// survey walks all nodes of the file and adds one visit of each to the budget. It returns false, and
// refuses the file, if an alias is within the value that it stands for, which never ends.
func (f *file) survey(node *yaml.Node, within []*yaml.Node) bool {
	f.budget++
	if node.Kind == yaml.AliasNode && slices.Contains(within, node.Alias) {
		f.refuse(node.Line, "the alias *%s is within the value that it stands for", shorten(node.Value))
		return false
	}
	ok := true
	for _, child := range node.Content {
		ok = f.survey(child, append(within, node)) && ok
	}
	return ok
}

// visit counts the visit of a node. It returns false if there were too many.
func (f *file) visit() bool {
	if f.budget--; f.budget < 0 && f.exhausted == nil {
		text := fmt.Sprintf("the aliases stand for more than %d keys and values", maxAliased)
		f.exhausted = &problem{line: f.alias, text: text}
	}
	return f.exhausted == nil
}
