package lab

import (
	_ "embed"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// programs lists the packages of the programs that GoProgram returns, each with its version.
//
//go:embed programs.txt
var programs string

// Program returns the path of a program. It skips the test if the program is not installed; the message
// names the Debian package that contains it.
func Program(t testing.TB, name, debianPackage string) string {
	t.Helper()
	for _, file := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(file); err == nil {
			return path
		}
	}
	Skip(t, "needs %s (Debian package %s)", name, debianPackage)
	return ""
}

// GoProgram returns the path of a program that `make programs` built: the program of that name in
// programs.txt, in the version given there. It skips the test if the program has not been built.
func GoProgram(t testing.TB, name string) string {
	t.Helper()
	for line := range strings.Lines(programs) {
		program, version, found := strings.Cut(strings.TrimSpace(line), "@")
		if !found || path.Base(program) != name {
			continue
		}
		cache, err := os.UserCacheDir()
		if err != nil {
			Skip(t, "needs %s %s (make programs): %v", name, version, err)
		}
		file := filepath.Join(cache, "shaker_exporter", "programs", program+"@"+version, name)
		if _, err := os.Stat(file); err != nil {
			Skip(t, "needs %s %s (make programs)", name, version)
		}
		return file
	}
	t.Fatalf("programs.txt has no program %s", name)
	return ""
}
