package lab

import (
	"debug/buildinfo"
	_ "embed"
	goversion "go/version"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

// programs lists the packages of the programs that GoProgram returns, each with its version and its build tags, if
// any.
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

// GoProgram returns the path of a program that `make programs` built: the program of that name in programs.txt, in
// the version and with the build tags given there, built with the Go release of the tests. It skips the test if it
// has not been built so.
func GoProgram(t testing.TB, name string) string {
	t.Helper()
	for line := range strings.Lines(programs) {
		line, tags, _ := strings.Cut(strings.TrimSpace(line), " ")
		program, version, found := strings.Cut(line, "@")
		if !found || path.Base(program) != name {
			continue
		}
		cache, err := os.UserCacheDir()
		if err != nil {
			Skip(t, "needs %s %s (make programs): %v", name, version, err)
		}
		file := filepath.Join(cache, "shaker_exporter", "programs", program+"@"+version, name)
		built, err := buildinfo.ReadFile(file)
		if err != nil {
			Skip(t, "needs %s %s (make programs)", name, version)
		}
		if tags != "" && !slices.Contains(built.Settings, debug.BuildSetting{Key: "-tags", Value: tags}) {
			Skip(t, "needs %s %s with the build tags %s (make programs)", name, version, tags)
		}
		if release := goversion.Lang(runtime.Version()); goversion.Lang(built.GoVersion) != release {
			Skip(t, "needs %s %s built with %s (make programs)", name, version, release)
		}
		return file
	}
	t.Fatalf("programs.txt has no program %s", name)
	return ""
}
