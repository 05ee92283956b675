package documents

import (
	"go/scanner"
	"go/token"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// What the exporter prints is ASCII, because a terminal in a POSIX locale has nothing else. Only what a caller sends
// may contain other characters, and the status page, which declares its encoding.
func TestMessagesAreASCII(t *testing.T) {
	for _, pattern := range []string{
		"*.go", "collector/*.go", "shaker/*.go", "internal/cli/*.go", "internal/config/*.go", "internal/probe/*.go",
		"internal/server/*.go",
	} {
		for _, file := range lab.Files(t, pattern) {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			if found := notASCII(file, lab.Read(t, file)); len(found) > 0 {
				t.Errorf("literals with characters beyond ASCII: %q, want none", found)
			}
		}
	}
	// The control: a literal is found, and a comment may be in any language.
	const source = "package p // …\nconst Text = \"…\" + `×`\n"
	if found := notASCII("p.go", source); len(found) != 2 {
		t.Errorf("literals with characters beyond ASCII in %q: %q, want two", source, found)
	}
}

// notASCII returns the string and character literals of a Go file that have characters beyond ASCII.
func notASCII(file, source string) (found []string) {
	beyond := func(c rune) bool { return c > '~' }
	files := token.NewFileSet()
	var s scanner.Scanner
	s.Init(files.AddFile(file, -1, len(source)), []byte(source), nil, 0)
	for {
		switch at, kind, literal := s.Scan(); {
		case kind == token.EOF:
			return found
		case (kind == token.STRING || kind == token.CHAR) && strings.ContainsFunc(literal, beyond):
			found = append(found, files.Position(at).String()+": "+literal)
		}
	}
}
