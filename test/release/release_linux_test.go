package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"debug/pe"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// committed is when the clones of these tests were committed, and committedUTC what that
// is where the exporter says it.
const (
	committed    = "2026-01-02T03:04:05+05:30"
	committedUTC = "2026-01-01T21:34:05Z"
)

// releaseEnv gives the test an environment in which git and make do what they do anywhere.
func releaseEnv(t *testing.T) {
	t.Helper()
	for _, program := range []string{"git", "make", "tar", "gzip"} {
		lab.Program(t, program, program)
	}
	// Of a hook, a surrounding make, or the build of a package.
	for _, name := range []string{"GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "MAKEFLAGS", "SOURCE_DATE_EPOCH", "VERSION", "PLATFORMS", "OUT", "ALLOW_DIRTY"} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	for name, value := range map[string]string{
		"GIT_CONFIG_GLOBAL": os.DevNull, "GIT_CONFIG_NOSYSTEM": "1",
		"GIT_AUTHOR_NAME": "lab", "GIT_AUTHOR_EMAIL": "lab@example.com", "GIT_AUTHOR_DATE": committed,
		"GIT_COMMITTER_NAME": "lab", "GIT_COMMITTER_EMAIL": "lab@example.com", "GIT_COMMITTER_DATE": committed,
	} {
		t.Setenv(name, value)
	}
}

// run runs a shell command, whose $1 and so on are the arguments, in a directory, and
// returns what it prints.
func run(t *testing.T, dir, command string, args ...string) string {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"-ec", command, "sh"}, args...)...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// clone returns a repository of one commit, v1.2.3, which has the files that are here, all of
// them or those that are named, committed or not; and the commit's hash.
func clone(t *testing.T, names ...string) (dir, revision string) {
	t.Helper()
	dir = t.TempDir()
	// The working tree may be someone else's.
	list := exec.Command("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--")
	list.Args = append(list.Args, names...)
	files, err := list.Output()
	if err != nil {
		lab.Skip(t, "needs a clone of the repository: git ls-files: %v", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(files), "\x00"), "\x00") {
		content, err := os.ReadFile(name)
		if os.IsNotExist(err) {
			continue // it is to be removed by the next commit
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		lab.Write(t, dir, name, string(content))
	}
	run(t, dir, "git init -q && git add . && git commit -q -m 'The first version' && git tag v1.2.3")
	return dir, strings.TrimSpace(run(t, dir, "git rev-parse HEAD"))
}

// A packed file is one of an archive.
type packed struct {
	mode    fs.FileMode
	content string
}

// unpack returns what is in an archive, and fails the test if that tells who has made it,
// on what machine, or another time than the one that it is made for.
func unpack(t *testing.T, archive []byte, made time.Time) map[string]packed {
	t.Helper()
	unzipped, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	if unzipped.Name != "" || !unzipped.ModTime.IsZero() {
		t.Errorf("gzip's header has %q, %v", unzipped.Name, unzipped.ModTime)
	}
	entries := make(map[string]packed)
	before := ""
	for r := tar.NewReader(unzipped); ; {
		header, err := r.Next()
		if err == io.EOF {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if header.Uid != 0 || header.Gid != 0 || header.Uname != "" || header.Gname != "" || !header.ModTime.Equal(made) {
			t.Fatalf("%s is of %d %q, %d %q, %v", header.Name, header.Uid, header.Uname, header.Gid, header.Gname, header.ModTime.UTC())
		}
		// A directory comes before what is in it, and that before what is beside it.
		name := strings.ReplaceAll(header.Name, "/", "\x00")
		if name < before {
			t.Fatalf("%s is not in its place", header.Name)
		}
		before = name
		entries[header.Name] = packed{header.FileInfo().Mode(), string(content)}
	}
}

// userFiles returns what a user gets besides the binary, below the directory.
func userFiles(t *testing.T, root, directory string) map[string]packed {
	t.Helper()
	want := map[string]packed{directory + "/": {fs.ModeDir | 0o755, ""}}
	for _, name := range []string{"LICENSE", "README.md", "CHANGELOG.md", "docs", "examples"} {
		err := filepath.WalkDir(filepath.Join(root, name), func(path string, d fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) == ".go" {
				return err
			}
			name := directory + strings.TrimPrefix(path, root)
			if d.IsDir() {
				want[name+"/"] = packed{fs.ModeDir | 0o755, ""}
				return nil
			}
			content, err := os.ReadFile(path)
			want[name] = packed{0o644, string(content)}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return want
}

// The archives of a release have what a user needs and nothing that tells where they were
// made; the binaries are static and say what they are. Whoever makes them again gets the
// same bytes. `make release` itself, in .ci/run, makes those of all platforms.
func TestRelease(t *testing.T) {
	if testing.Short() || lab.Race {
		t.Skip("builds for a minute or more, without the race detector")
	}
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		lab.Skip(t, "needs amd64 or arm64")
	}
	releaseEnv(t)
	root, revision := clone(t)
	made, err := time.Parse(time.RFC3339, committed)
	if err != nil {
		t.Fatal(err)
	}
	here := "linux/" + runtime.GOARCH
	out := filepath.Join(root, "dist") // by default, and ignored by git
	t.Logf("%s", run(t, root, `make --no-print-directory release PLATFORMS="$1"`, here+" linux/arm windows/amd64"))

	ours := "shaker_exporter-v1.2.3.linux-" + runtime.GOARCH
	binaries := map[string]string{ours: "shaker_exporter", "shaker_exporter-v1.2.3.linux-armv7": "shaker_exporter", "shaker_exporter-v1.2.3.windows-amd64": "shaker_exporter.exe"}
	archives := make(map[string][]byte)
	built := make(map[string]string)
	for name, binary := range binaries {
		archive, err := os.ReadFile(filepath.Join(out, name+".tar.gz"))
		if err != nil {
			t.Fatal(err)
		}
		archives[name] = archive
		entries, want := unpack(t, archive, made), userFiles(t, root, name)
		built[name] = entries[name+"/"+binary].content
		want[name+"/"+binary] = packed{0o755, built[name]}
		var licenses []string
		for file, got := range entries {
			path, ok := strings.CutPrefix(file, name+"/licenses/")
			if !ok {
				continue
			}
			delete(entries, file)
			if !got.mode.IsDir() {
				licenses = append(licenses, path)
				want := packed{0o644, got.content}
				if got != want || got.content == "" {
					t.Errorf("%s: %v, %d bytes", file, got.mode, len(got.content))
				}
			}
		}
		for _, wrong := range lab.LicenseComplaints(strings.NewReader(built[name]), licenses) {
			t.Errorf("%s: %s", name, wrong)
		}
		for file := range maps.Keys(want) {
			if got, ok := entries[file]; !ok || got != want[file] {
				t.Errorf("%s has %s: %t, with %v and %d bytes, want %v and %d bytes", name, file, ok, got.mode, len(got.content), want[file].mode, len(want[file].content))
			}
			delete(entries, file)
		}
		for file := range entries {
			t.Errorf("%s has %s", name, file)
		}
		if _, ok := want[name+"/examples/prometheus.yml"]; !ok {
			t.Errorf("%s is not wanted to have examples/prometheus.yml", name)
		}
	}

	t.Run("sums", func(t *testing.T) {
		var want []string
		for name := range binaries {
			want = append(want, name+".tar.gz: OK")
		}
		slices.Sort(want)
		got := strings.Split(strings.TrimSpace(run(t, out, "sha256sum --check --strict sha256sums.txt")), "\n")
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("sha256sum --check says %q, want %q", got, want)
		}
		if files, err := os.ReadDir(out); err != nil || len(files) != len(binaries)+1 {
			t.Errorf("dist has %v, %v", files, err)
		}
	})

	t.Run("binaries", func(t *testing.T) {
		for name, machine := range map[string]elf.Machine{
			ours:                                 map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH],
			"shaker_exporter-v1.2.3.linux-armv7": elf.EM_ARM,
		} {
			file, err := elf.NewFile(strings.NewReader(built[name]))
			if err != nil {
				t.Fatal(err)
			}
			for _, segment := range file.Progs {
				if segment.Type == elf.PT_INTERP || segment.Type == elf.PT_DYNAMIC {
					t.Errorf("%s is not static: it has %v", name, segment.Type)
				}
			}
			if file.Machine != machine {
				t.Errorf("%s is for %v", name, file.Machine)
			}
			if file.Section(".note.go.buildid") == nil { // from which macOS' LC_UUID is made
				t.Errorf("%s has no build ID", name)
			}
		}
		windows, err := pe.NewFile(strings.NewReader(built["shaker_exporter-v1.2.3.windows-amd64"]))
		if err != nil || windows.Machine != pe.IMAGE_FILE_MACHINE_AMD64 {
			t.Errorf("windows: %v, %v", windows, err)
		}
	})

	t.Run("version", func(t *testing.T) {
		lab.Need(t)
		program := released(t, built[ours])
		wantVersion(t, program, "v1.2.3", revision, committedUTC)
		process.Start(t, exec.Command(program)).Listening(10115)
		_, metrics := exporter.Get(t, "/metrics")
		for _, label := range []string{`version="v1.2.3"`, fmt.Sprintf("revision=%q", revision)} {
			if !regexp.MustCompile(`(?m)^shaker_exporter_build_info\{.*` + label + `.*\} 1$`).MatchString(metrics) {
				t.Errorf("shaker_exporter_build_info lacks %s", label)
			}
		}
	})

	t.Run("again", func(t *testing.T) {
		elsewhere := filepath.Join(t.TempDir(), "some", "where", "else")
		t.Setenv("GOCACHE", filepath.Join(t.TempDir(), "cache"))
		t.Setenv("GOAMD64", "v3")
		t.Setenv("GOARM64", "v8.1")
		t.Setenv("TZ", "America/St_Johns")
		t.Setenv("USER", "someone")
		t.Setenv("GOFLAGS", "-tags=other")
		t.Setenv("GOEXPERIMENT", "nospinbitmutex")
		t.Setenv("GZIP", "--rsyncable")
		t.Setenv("TAR_OPTIONS", "--exclude=docs")
		run(t, root, `umask 077; git clone -q . "$1"; echo other.go >"$1/.git/info/exclude"
			printf 'package main\nfunc init() { println("other") }\n' >"$1/other.go"; make -C "$1" release PLATFORMS="$2" OUT=../out`, elsewhere, here)
		again, err := os.ReadFile(filepath.Join(filepath.Dir(elsewhere), "out", ours+".tar.gz"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again, archives[ours]) {
			entries := unpack(t, archives[ours], made)
			for file, got := range unpack(t, again, made) {
				if got != entries[file] {
					t.Errorf("%s: %v, %d bytes, was %v, %d bytes", file, got.mode, len(got.content), entries[file].mode, len(entries[file].content))
				}
			}
			t.Error("the archive made elsewhere is another one")
		}
	})

	// The control: an archive that is made for another time is another one.
	t.Run("at another time", func(t *testing.T) {
		run(t, root, `SOURCE_DATE_EPOCH=1 make release PLATFORMS="$1"`, here)
		other, err := os.ReadFile(filepath.Join(out, ours+".tar.gz"))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(other, archives[ours]) {
			t.Error("the archive is the same")
		}
		binary := unpack(t, other, time.Unix(1, 0))[ours+"/shaker_exporter"].content
		wantVersion(t, released(t, binary), "v1.2.3", revision, "1970-01-01T00:00:01Z")
		if files, err := os.ReadDir(out); err != nil || len(files) != 2 {
			t.Errorf("dist still has what was there before: %v, %v", files, err)
		}
		// Of another version it is left alone.
		run(t, root, `touch dist/shaker_exporter-v1.2.2.linux-other.tar.gz; ! make -s release PLATFORMS=linux/none`)
		if files, err := os.ReadDir(out); err != nil || len(files) != 3 {
			t.Errorf("dist has %v, %v", files, err)
		}
	})

	// One that is made of what is not committed says so.
	t.Run("dirty", func(t *testing.T) {
		lab.Write(t, root, "new.go", "package main\n")
		run(t, root, "rm docs/faq.md; echo new >docs/new.md")
		run(t, root, `make release PLATFORMS="$1" ALLOW_DIRTY=1`, here)
		ours := "shaker_exporter-v1.2.3-dirty.linux-" + runtime.GOARCH
		archive, err := os.ReadFile(filepath.Join(out, ours+".tar.gz"))
		if err != nil {
			t.Fatal(err)
		}
		entries := unpack(t, archive, made)
		if _, old := entries[ours+"/docs/faq.md"]; old || entries[ours+"/docs/new.md"].content != "new\n" {
			t.Errorf("%s has not the docs that are there", ours)
		}
		wantVersion(t, released(t, entries[ours+"/shaker_exporter"].content), "v1.2.3-dirty", revision+"-modified", committedUTC)
	})
}

// released returns the path of a binary that can be run.
func released(t *testing.T, binary string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "shaker_exporter")
	if err := os.WriteFile(path, []byte(binary), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// wantVersion checks what a binary says of itself.
func wantVersion(t *testing.T, program, version, revision, date string) {
	t.Helper()
	out, err := exec.Command(program, "--version").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	first := fmt.Sprintf("shaker_exporter, version %s (branch: , revision: %s)\n", version, revision)
	if !strings.HasPrefix(string(out), first) || !regexp.MustCompile(`\n  build date: +`+date+"\n").Match(out) {
		t.Errorf("want %sof %s, it says %s", first, date, out)
	}
}

// A binary of `go build` in a clone says what it is as well as that of a release does.
func TestVersionOfGoBuild(t *testing.T) {
	releaseEnv(t)
	root, revision := clone(t)
	program := filepath.Join(t.TempDir(), "shaker_exporter")
	run(t, root, `go build -buildvcs=true -o "$1" .`, program)
	wantVersion(t, program, "v1.2.3", revision, committedUTC)
}

// Nothing is released that nobody could make again, and the last line says why.
func TestReleaseRefused(t *testing.T) {
	releaseEnv(t)
	for name, c := range map[string]struct {
		before, args string
		want         string
	}{
		"new file":      {"touch new.go", "", "release: nobody could make this release again, for these are not committed:\n?? new.go\n"},
		"changed file":  {"echo >>README.md", "", "release: nobody could make this release again, for these are not committed:\n M README.md\n"},
		"no clone":      {"rm -rf .git", "", "release: there is no commit here to release: "},
		"no commit":     {"rm -rf .git && git init -q", "", "release: there is no commit here to release: "},
		"another clone": {"mkdir x && git mv Makefile scripts x && git commit -q -m x", "-C x", "release: there is no commit here to release: "},
		"version":       {"", "VERSION=v1/2", "release: the version is v1/2, want letters, digits and .+_- only\n"},
		"no platform":   {"", "PLATFORMS=", "release: PLATFORMS names none\n"},
	} {
		t.Run(name, func(t *testing.T) {
			root, _ := clone(t, "Makefile", "scripts/release.sh", "README.md")
			run(t, root, c.before+"\n! make -s release OUT=../out "+c.args+" >../said 2>&1")
			said, err := os.ReadFile(filepath.Join(filepath.Dir(root), "said"))
			if err != nil || !strings.Contains(string(said), c.want) {
				t.Errorf("%v, it says %q, want %q", err, said, c.want)
			}
			if files, err := filepath.Glob(filepath.Join(filepath.Dir(root), "out", "*")); err != nil || len(files) > 0 {
				t.Errorf("it made %v, %v", files, err)
			}
		})
	}
}

// A clone may be someone else's: git refuses to look at it, but a container often builds so.
func TestReleaseOfAnothersClone(t *testing.T) {
	lab.NeedRoot(t)
	releaseEnv(t)
	root, _ := clone(t, "Makefile", "scripts/release.sh", "README.md")
	run(t, root, "chown -R 1:1 .\n! git status >../said 2>&1\ngrep -q 'dubious ownership' ../said") // the control
	if got := run(t, root, "! make -s release PLATFORMS= OUT=../out 2>&1"); !strings.Contains(got, "release: PLATFORMS names none\n") {
		t.Errorf("it says %s", got)
	}
}

// `make` alone makes nothing: it says what can be made.
func TestMakeHelp(t *testing.T) {
	releaseEnv(t)
	if got, want := run(t, ".", "make -s"), run(t, ".", "make -s help"); got != want || !strings.HasPrefix(got, "make release ") {
		t.Errorf("make says %q", got)
	}
}
