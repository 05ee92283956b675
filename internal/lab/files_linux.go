package lab

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Read returns the content of a file.
func Read(t testing.TB, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// Write writes a file in a directory, creates the file's parent directories if necessary, and returns the
// path of the file.
func Write(t testing.TB, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Files returns the paths that match a pattern. It fails the test if no path matches.
func Files(t testing.TB, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || found == nil {
		t.Fatalf("Glob(%q) = %v, %v, want at least one file", pattern, found, err)
	}
	return found
}

// Replace returns the text of a file with replacements: pairs of old and new text. It fails the test unless each
// old text occurs once.
func Replace(t testing.TB, file, text string, replacements ...string) string {
	t.Helper()
	for pair := range slices.Chunk(replacements, 2) {
		if n := strings.Count(text, pair[0]); n != 1 {
			t.Fatalf("%s contains %q %d times, want once", file, pair[0], n)
		}
		text = strings.Replace(text, pair[0], pair[1], 1)
	}
	return text
}
