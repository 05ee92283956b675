package config

import (
	"bytes"
	"io"
	"regexp"
	"slices"
	"strconv"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// parse returns the content of the file's only document. It is nil, and the file is refused, if
// the text is not valid YAML or has no content.
func (f *file) parse(text []byte) *yaml.Node {
	lines := bytes.SplitAfter(text, []byte("\n"))
	if i := slices.IndexFunc(lines, func(line []byte) bool { return !utf8.Valid(line) }); i >= 0 {
		f.refuse(i+1, "invalid UTF-8")
		return nil
	}
	documents, failure := parseYAML(text)
	documents = slices.DeleteFunc(documents, func(d *yaml.Node) bool { return isNull(d.Content[0]) })
	switch {
	case failure != nil:
		line := failure.findLine(lines)
		if failure.causedByTab(lines, line) {
			failure.message = "tabs are not allowed for indentation, want spaces"
		}
		f.refuse(line, "invalid YAML: %s", shorten(failure.message))
	case len(documents) > 1:
		f.refuse(documents[1].Line, "a second document begins, want only one")
	case len(documents) == 0 || isEmpty(documents[0].Content[0]):
		f.refuse(1, "file is empty, want targets or modules")
	default:
		return documents[0].Content[0]
	}
	return nil
}

// syntaxError is an error of the YAML parser.
type syntaxError struct {
	message  string // without a line
	line     int    // according to the parser, 0 if it names none
	lastRead int    // the last line that the parser read
}

var yamlPrefix = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

func parseYAML(text []byte) (documents []*yaml.Node, failure *syntaxError) {
	r := byteReader{bytes.NewReader(text)}
	decoder := yaml.NewDecoder(r)
	for {
		var document yaml.Node
		err := decoder.Decode(&document)
		if err == io.EOF {
			return documents, nil
		}
		if err != nil {
			prefix := yamlPrefix.FindStringSubmatch(err.Error())
			line, _ := strconv.Atoi(prefix[1])
			read := text[:len(text)-r.Len()]
			lastRead := 1 + bytes.Count(bytes.TrimSuffix(read, []byte("\n")), []byte("\n"))
			return nil, &syntaxError{message: err.Error()[len(prefix[0]):], line: line, lastRead: lastRead}
		}
		documents = append(documents, &document)
	}
}

// byteReader reads one byte at a time, so that its position is where the parser is.
type byteReader struct{ *bytes.Reader }

func (r byteReader) Read(p []byte) (n int, err error) { return r.Reader.Read(p[:min(1, len(p))]) }

// findLine returns the first of the text's lines at which the error shows: if the text ended
// there, the parser would report the same. The parser's own line is often an earlier one, or
// missing.
//
// To try a line is to parse the text up to it, so only a few are tried: the parser's own line and
// the next one, for a construct that is never closed, and the last lines that the parser read,
// because it reads up to the token after the error.
func (e *syntaxError) findLine(lines [][]byte) int {
	begin := e.line
	if begin > e.lastRead { // the parser names the end of a construct that begins on line 1
		begin = 1
	}
	before := contentBefore(lines, e.lastRead)
	for _, line := range []int{begin, begin + 1, contentBefore(lines, before), before} {
		if 0 < line && line < e.lastRead && e.isReported(lines[:line]) {
			return line
		}
	}
	return e.lastRead
}

// causedByTab reports whether the error at a line goes away if spaces replace the line's tabs.
func (e *syntaxError) causedByTab(lines [][]byte, line int) bool {
	spaces := bytes.ReplaceAll(lines[line-1], []byte("\t"), []byte(" "))
	return !e.isReported(append(slices.Clone(lines[:line-1]), spaces))
}

func (e *syntaxError) isReported(lines [][]byte) bool {
	_, failure := parseYAML(bytes.Join(lines, nil))
	return failure != nil && failure.message == e.message
}

// contentBefore returns the last line before a line that is more than a comment, or 0.
func contentBefore(lines [][]byte, line int) int {
	for line--; line > 0; line-- {
		if content := bytes.TrimSpace(lines[line-1]); len(content) > 0 && content[0] != '#' {
			return line
		}
	}
	return 0
}
