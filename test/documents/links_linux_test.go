package documents

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"unicode"
)

// Every link of a page to a file or a heading of the repository leads to it.
func TestDocsLinks(t *testing.T) {
	links := 0
	for _, page := range allPages(t) {
		broken, n := brokenLinks(os.DirFS("."), page)
		links += n
		for _, link := range broken {
			t.Errorf("%s: the link to %s leads to no file or heading", page, link)
		}
	}
	if links < 20 {
		t.Errorf("found %d links, want at least 20", links)
	}
}

// The control case of TestDocsLinks: brokenLinks finds exactly the broken links.
func TestDocsBrokenLinks(t *testing.T) {
	files := fstest.MapFS{
		"a.go": {Data: []byte("package a")},
		"docs/page.md": {Data: []byte("# The page\n## `code`, and: more_of-it?\n## Twice\n## Twice\n" +
			"[](../a.go) [](https://example.com/b) [](mailto:a@example.com) [](#the-page) [](#code-and-more_of-it)\n" +
			"[](#twice-1) [](page.md#twice)\n" +
			"`[](b)`\n```text\n[](c)\n# No heading\n```\n" +
			"[](b.go) [](#no-heading) [](#twice-2) [](../a.go#the-page) [](../../a.go) ![](b.png)\n")},
	}
	want := []string{"b.go", "#no-heading", "#twice-2", "../a.go#the-page", "../../a.go", "b.png"}
	if got, n := brokenLinks(files, "docs/page.md"); !slices.Equal(got, want) || n != 11 {
		t.Errorf("brokenLinks(docs/page.md) = %q of %d links, want %q of 11", got, n, want)
	}
}

var (
	code    = regexp.MustCompile("`[^`\n]*`")
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#{1,6} (.*)$`)
)

// brokenLinks returns the links of a page that lead to no file, or to no heading of the file, and how many
// links it checked. It does not check links to other hosts.
func brokenLinks(files fs.FS, page string) (broken []string, n int) {
	text, err := fs.ReadFile(files, page)
	if err != nil {
		return []string{err.Error()}, 0
	}
	prose := code.ReplaceAllString(fence.ReplaceAllString(string(text), ""), "")
	for _, found := range link.FindAllStringSubmatch(prose, -1) {
		if strings.Contains(found[1], "://") || strings.HasPrefix(found[1], "mailto:") {
			continue
		}
		n++
		name, anchor, hasAnchor := strings.Cut(found[1], "#")
		target := page
		if name != "" {
			target = path.Join(path.Dir(page), name)
		}
		info, err := fs.Stat(files, target)
		if err != nil || hasAnchor && (info.IsDir() || !slices.Contains(anchors(files, target), anchor)) {
			broken = append(broken, found[1])
		}
	}
	return broken, n
}

// anchors returns the anchors that GitHub gives to the headings of a page.
func anchors(files fs.FS, page string) []string {
	text, err := fs.ReadFile(files, page)
	if err != nil || path.Ext(page) != ".md" {
		return nil
	}
	var anchors []string
	times := make(map[string]int)
	for _, found := range heading.FindAllStringSubmatch(fence.ReplaceAllString(string(text), ""), -1) {
		anchor := strings.Map(func(c rune) rune {
			switch {
			case c == ' ':
				return '-'
			case unicode.IsLetter(c), unicode.IsDigit(c), c == '-', c == '_':
				return unicode.ToLower(c)
			}
			return -1
		}, found[1])
		if n := times[anchor]; n > 0 {
			anchors = append(anchors, fmt.Sprintf("%s-%d", anchor, n))
		} else {
			anchors = append(anchors, anchor)
		}
		times[anchor]++
	}
	return anchors
}
