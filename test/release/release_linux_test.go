package release

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"debug/elf"
	"debug/pe"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
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

// committed is the time of the commit in the clones of these tests, and committedUTC the same time as the exporter
// prints it.
const (
	committed    = "2026-01-02T03:04:05+05:30"
	committedUTC = "2026-01-01T21:34:05Z"
)

// needMake skips the test if git, make or one of the other programs is not installed.
func needMake(t *testing.T, programs ...string) {
	t.Helper()
	debianPackage := map[string]string{"sh": "dash", "find": "findutils", "go": "golang-go", "awk": "mawk"}
	for _, program := range append([]string{"git", "make", "sh"}, programs...) {
		lab.Program(t, program, cmp.Or(debianPackage[program], program))
	}
}

// releaseEnv gives the test an environment in which git and make work in the same way on every machine.
func releaseEnv(t *testing.T) {
	t.Helper()
	// A git hook, a make around the tests, or the build of a package may have set these variables.
	for _, name := range []string{"GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE",
		"MAKEFLAGS", "SOURCE_DATE_EPOCH", "VERSION", "PLATFORMS", "OUT", "PACKAGES", "SBOM", "ALLOW_DIRTY"} {
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

// run runs a shell script in a directory and returns its output. The arguments are its $1, $2 and so on.
func run(t *testing.T, dir, script string, args ...string) string {
	t.Helper()
	return output(t, dir, "sh", append([]string{"-ec", script, "sh"}, args...)...)
}

// output runs a program in a directory and returns its output.
func output(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// clone makes a repository of one commit with the tag v1.2.3 and returns its directory and the commit's hash. The
// commit has all files of this working tree that git does not ignore, committed or not, or only those with the names.
func clone(t *testing.T, names ...string) (dir, revision string) {
	t.Helper()
	lab.Program(t, "git", "git")
	dir = t.TempDir()
	list := exec.Command("git", "-c", "safe.directory=*", // the working tree may belong to another user
		"ls-files", "-z", "--cached", "--others", "--exclude-standard", "--")
	list.Args = append(list.Args, names...)
	files, err := list.Output()
	if err != nil {
		lab.Skip(t, "needs a clone of the repository: git ls-files: %v", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(files), "\x00"), "\x00") {
		content, err := os.ReadFile(name)
		if os.IsNotExist(err) {
			continue // deleted, but not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		lab.Write(t, dir, name, string(content))
	}
	output(t, dir, "git", "init", "-q")
	output(t, dir, "git", "add", ".")
	output(t, dir, "git", "commit", "-q", "-m", "First version")
	output(t, dir, "git", "tag", "v1.2.3")
	return dir, strings.TrimSpace(output(t, dir, "git", "rev-parse", "HEAD"))
}

// packed is a file or a directory in an archive.
type packed struct {
	mode    fs.FileMode
	content string
}

// String describes the file without its content.
func (p packed) String() string { return fmt.Sprintf("%v, %d bytes", p.mode, len(p.content)) }

// unpack returns the content of an archive by name. It fails the test if the archive depends on the user or the
// machine that built it, or has another time than made.
func unpack(t *testing.T, archive []byte, made time.Time) map[string]packed {
	t.Helper()
	unzipped, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	if unzipped.Name != "" || !unzipped.ModTime.IsZero() {
		t.Errorf("gzip's header has the name %q and the time %v, want neither", unzipped.Name, unzipped.ModTime)
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
		if header.Uid != 0 || header.Gid != 0 || header.Uname != "" || header.Gname != "" {
			t.Fatalf("%s has the owner %d %q and the group %d %q, want 0 and 0 without names",
				header.Name, header.Uid, header.Uname, header.Gid, header.Gname)
		}
		if !header.ModTime.Equal(made) {
			t.Fatalf("%s has the time %v, want %v", header.Name, header.ModTime.UTC(), made.UTC())
		}
		// The entries are sorted: a directory, its content, and then its next sibling.
		name := strings.ReplaceAll(header.Name, "/", "\x00")
		if name < before {
			t.Fatalf("%s comes after %s, want sorted entries", header.Name, strings.ReplaceAll(before, "\x00", "/"))
		}
		before = name
		entries[header.Name] = packed{header.FileInfo().Mode(), string(content)}
	}
}

// userFiles returns the files of a clone that belong in an archive, by their names below the directory. The
// binary and the licenses are not among them.
func userFiles(t *testing.T, root, directory string) map[string]packed {
	t.Helper()
	want := map[string]packed{directory + "/": {fs.ModeDir | 0o755, ""}}
	for _, name := range []string{"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md",
		"docs", "examples"} {
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
	for name, file := range want {
		if path.Ext(name) == ".md" {
			file.content = absoluteLinks(want, directory+"/", name)
			want[name] = file
		}
	}
	return want
}

// relativeLink matches a link of a page to a file. Its groups are the path and what follows it.
var relativeLink = regexp.MustCompile(`\]\(([^)#: ]+)([)#])`)

// deadLinks returns the relative links of a page that lead to none of the files.
func deadLinks(files map[string]packed, page string) (dead []string) {
	for _, link := range relativeLink.FindAllStringSubmatch(files[page].content, -1) {
		target := path.Join(path.Dir(page), link[1])
		found := false
		for name := range files {
			found = found || name == target || strings.HasPrefix(name, target+"/")
		}
		if !found {
			dead = append(dead, link[1])
		}
	}
	return dead
}

// absoluteLinks returns the content of a page, with links to the repository instead of the dead links.
func absoluteLinks(files map[string]packed, root, page string) string {
	dead := deadLinks(files, page)
	return relativeLink.ReplaceAllStringFunc(files[page].content, func(text string) string {
		link := relativeLink.FindStringSubmatch(text)
		if !slices.Contains(dead, link[1]) {
			return text
		}
		target := strings.TrimPrefix(path.Join(path.Dir(page), link[1]), root)
		return "](https://github.com/shaker-exporter/shaker_exporter/blob/main/" + target + link[2]
	})
}

// wantLinks checks that relative links of the pages below a directory lead to files, and that some links to sources
// lead to the repository.
func wantLinks(t *testing.T, files map[string]packed, root string) {
	t.Helper()
	toRepository := 0
	for name, file := range files {
		if !strings.HasPrefix(name, root) || path.Ext(name) != ".md" {
			continue
		}
		if dead := deadLinks(files, name); len(dead) > 0 {
			t.Errorf("%s has links to %q, which are not there", name, dead)
		}
		toRepository += strings.Count(file.content,
			"](https://github.com/shaker-exporter/shaker_exporter/blob/main/shaker/")
	}
	if toRepository == 0 {
		t.Error("no page has a link to a source in the repository, so the check of links is incomplete")
	}
}

// The control of wantLinks: a page of the clone has dead links if the sources are missing.
func TestDeadLinks(t *testing.T) {
	files := map[string]packed{
		"x/docs/a.md": {content: "[](b.md) [](../c#d) [](c.png) [](../e) [](https://example.com/f) [](#g) [](../../h)"},
		"x/docs/b.md": {}, "x/e/file": {},
	}
	want := []string{"../c", "c.png", "../../h"}
	if got := deadLinks(files, "x/docs/a.md"); !slices.Equal(got, want) {
		t.Errorf("deadLinks = %q, want %q", got, want)
	}
}

// The archives and packages of a release contain what a user needs and nothing that depends on who built them; the
// binaries are static and print their version. A build in another environment, with a cache of its own, gives the same
// bytes.
//
// The first build is for three platforms, one for each way in which the script names archives and binaries, and
// proves what the archives contain. The other builds are for one platform, because the script treats all platforms
// in the same way: the second build proves that an archive is reproducible, and the last two prove that the time and
// uncommitted changes show in the archive. .ci/run builds all platforms.
func TestRelease(t *testing.T) {
	lab.SkipWithRace(t)
	if testing.Short() {
		t.Skip("builds the exporter several times")
	}
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		lab.Skip(t, "needs an amd64 or arm64 machine, this one is %s", runtime.GOARCH)
	}
	needMake(t, "go", "tar", "gzip", "find")
	lab.GoProgram(t, "nfpm")
	releaseEnv(t)
	root, revision := clone(t)
	made, err := time.Parse(time.RFC3339, committed)
	if err != nil {
		t.Fatal(err)
	}
	here := "linux/" + runtime.GOARCH
	out := filepath.Join(root, "dist") // the default, which git ignores
	t.Logf("%s", run(t, root, `make --no-print-directory release SBOM= PLATFORMS="$1"`,
		here+" linux/arm windows/amd64"))

	const armv7, windows = "shaker_exporter-1.2.3.linux-armv7", "shaker_exporter-1.2.3.windows-amd64"
	ours := "shaker_exporter-1.2.3.linux-" + runtime.GOARCH
	binaries := map[string]string{ours: "shaker_exporter", armv7: "shaker_exporter", windows: "shaker_exporter.exe"}
	archives := make(map[string][]byte)
	built := make(map[string]string)
	for name, binary := range binaries {
		archive, err := os.ReadFile(filepath.Join(out, name+".tar.gz"))
		if err != nil {
			t.Fatal(err)
		}
		archives[name] = archive
		entries := unpack(t, archive, made)
		built[name] = entries[name+"/"+binary].content
		checkLicenses(t, name, entries, built[name])
		wantLinks(t, entries, name+"/")
		want := userFiles(t, root, name)
		want[name+"/"+binary] = packed{0o755, built[name]}
		for file := range want {
			if got, ok := entries[file]; !ok {
				t.Errorf("%s lacks %s, want %v", name, file, want[file])
			} else if got != want[file] {
				t.Errorf("%s has %s with %v, want the clone's content with %v", name, file, got, want[file])
			}
			delete(entries, file)
		}
		for file := range entries {
			t.Errorf("%s has %s, which does not belong in the archive", name, file)
		}
		if file := name + "/examples/prometheus.yml"; want[file].content == "" {
			t.Errorf("userFiles lacks %s, so the check of the archive is incomplete", file)
		}
	}

	const chart = "shaker-exporter-1.2.3.tgz"
	t.Run("sums", func(t *testing.T) {
		var want []string
		for name := range binaries {
			want = append(want, name+".tar.gz: OK")
		}
		for _, name := range []string{ours, armv7} {
			for _, format := range formats {
				want = append(want, name+"."+format+": OK")
			}
		}
		want = append(want, chart+": OK")
		slices.Sort(want)
		got := strings.Split(strings.TrimSpace(run(t, out, "sha256sum --check --strict sha256sums.txt")), "\n")
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("sha256sum --check prints %q, want %q", got, want)
		}
		wantFiles(t, out, len(want)+1) // and the checksums
	})

	t.Run("packages", func(t *testing.T) {
		wantPackages(t, out, ours, unpack(t, archives[ours], made))
		wantPackages(t, out, armv7, unpack(t, archives[armv7], made))
	})
	packages := map[string]string{chart: lab.Read(t, filepath.Join(out, chart))}
	for _, format := range formats {
		packages[ours+"."+format] = lab.Read(t, filepath.Join(out, ours+"."+format))
	}

	t.Run("binaries", func(t *testing.T) {
		machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
		for name, machine := range map[string]elf.Machine{ours: machines[runtime.GOARCH], armv7: elf.EM_ARM} {
			file, err := elf.NewFile(strings.NewReader(built[name]))
			if err != nil {
				t.Fatalf("the binary of %s: %v", name, err)
			}
			for _, segment := range file.Progs {
				if segment.Type == elf.PT_INTERP || segment.Type == elf.PT_DYNAMIC {
					t.Errorf("the binary of %s has a segment %v, want a static binary", name, segment.Type)
				}
			}
			if file.Machine != machine {
				t.Errorf("the binary of %s is for %v, want %v", name, file.Machine, machine)
			}
			if file.Section(".note.go.buildid") == nil { // macOS' LC_UUID is made from the build ID
				t.Errorf("the binary of %s has no section .note.go.buildid, want a build ID", name)
			}
		}
		file, err := pe.NewFile(strings.NewReader(built[windows]))
		if err != nil {
			t.Fatalf("the binary of %s: %v", windows, err)
		}
		if want := uint16(pe.IMAGE_FILE_MACHINE_AMD64); file.Machine != want {
			t.Errorf("the binary of %s is for machine %#x, want %#x", windows, file.Machine, want)
		}
	})

	t.Run("version", func(t *testing.T) {
		program := released(t, built[ours])
		wantVersion(t, program, "1.2.3", revision, committedUTC)
		lab.Need(t)
		process.Start(t, exec.Command(program)).Listening(exporter.Port)
		_, metrics := exporter.Get(t, "/metrics")
		for _, label := range []string{`version="1.2.3"`, fmt.Sprintf("revision=%q", revision)} {
			if !regexp.MustCompile(`(?m)^shaker_exporter_build_info\{.*` + label + `.*\} 1$`).MatchString(metrics) {
				t.Errorf("GET /metrics: shaker_exporter_build_info lacks %s:\n%s", label, metrics)
			}
		}
	})

	t.Run("in another environment", func(t *testing.T) {
		elsewhere := filepath.Join(t.TempDir(), "some", "where", "else")
		t.Setenv("GOCACHE", filepath.Join(t.TempDir(), "cache"))
		t.Setenv("GOAMD64", "v3")
		t.Setenv("GOARM64", "v8.1")
		t.Setenv("TZ", "America/St_Johns")
		t.Setenv("USER", "someone")
		t.Setenv("GOFLAGS", "-tags=other")
		t.Setenv("GOEXPERIMENT", "nogreenteagc")
		t.Setenv("GZIP", "--rsyncable")
		t.Setenv("TAR_OPTIONS", "--exclude=docs")
		t.Setenv("GO_EXTLINK_ENABLED", "1")
		t.Setenv("GODEBUG", "gotypesalias=0")
		settings := t.TempDir()
		t.Setenv("GOENV", lab.Write(t, settings, "goenv", "GOEXPERIMENT=nogreenteagc\nGOFIPS140=latest\n"))
		attributes := lab.Write(t, settings, "attributes", "docs/faq.md export-ignore\ndocs/cost.md text eol=crlf\n")
		t.Setenv("GIT_CONFIG_GLOBAL", lab.Write(t, settings, "gitconfig",
			"[core]\nautocrlf = true\nattributesFile = "+attributes+"\n[tar]\numask = 0777\n"))
		for name, value := range map[string]string{"COUNT": "1", "KEY_0": "core.eol", "VALUE_0": "crlf"} {
			t.Setenv("GIT_CONFIG_"+name, value)
		}
		run(t, root, `umask 077; git clone -q . "$1"; echo other.go >"$1/.git/info/exclude"
			echo "docs/scale.md text eol=crlf" >"$1/.git/info/attributes"
			printf 'package main\nfunc init() { println("other") }\n' >"$1/other.go"
			make -C "$1" release SBOM= PLATFORMS="$2" OUT=../out`, elsewhere, here)
		again, err := os.ReadFile(filepath.Join(filepath.Dir(elsewhere), "out", ours+".tar.gz"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again, archives[ours]) {
			entries := unpack(t, archives[ours], made)
			for file, got := range unpack(t, again, made) {
				if got != entries[file] {
					t.Errorf("%s: built elsewhere with %v, built first with %v", file, got, entries[file])
				}
			}
			t.Errorf("%s.tar.gz has other bytes if it is built elsewhere, want the same", ours)
		}
		for name, first := range packages {
			if again := lab.Read(t, filepath.Join(filepath.Dir(elsewhere), "out", name)); again != first {
				t.Errorf("%s has other bytes if it is built elsewhere, want the same", name)
			}
		}
	})

	// The control case: an archive for another time has other bytes.
	t.Run("at another time", func(t *testing.T) {
		run(t, root, `SOURCE_DATE_EPOCH=1 make release SBOM= PACKAGES=deb PLATFORMS="$1"`, here)
		other, err := os.ReadFile(filepath.Join(out, ours+".tar.gz"))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(other, archives[ours]) {
			t.Errorf("with SOURCE_DATE_EPOCH=1 %s.tar.gz has the same bytes, want others", ours)
		}
		for _, name := range []string{ours + ".deb", chart} {
			if lab.Read(t, filepath.Join(out, name)) == packages[name] {
				t.Errorf("with SOURCE_DATE_EPOCH=1 %s has the same bytes, want others", name)
			}
		}
		binary := unpack(t, other, time.Unix(1, 0))[ours+"/shaker_exporter"].content
		wantVersion(t, released(t, binary), "1.2.3", revision, "1970-01-01T00:00:01Z")
		wantFiles(t, out, 4) // the previous archives and packages of the version are gone
		// make release keeps the archives of other versions, and all of them if a build fails.
		run(t, root, `touch dist/shaker_exporter-1.2.2.linux-other.tar.gz; echo invalid >broken.go
			! make -s release SBOM= PACKAGES= PLATFORMS="$1" VERSION=1.2.3 ALLOW_DIRTY=1; rm broken.go`, here)
		wantFiles(t, out, 5)
	})

	// A release of uncommitted changes contains them, and its version and revision say so.
	t.Run("dirty", func(t *testing.T) {
		lab.Write(t, root, "new.go", "package main\n")
		run(t, root, "rm docs/faq.md; echo new >docs/new.md; echo kept >docs/kept.prof; git add -f docs/kept.prof")
		run(t, root, `make release SBOM= PACKAGES= PLATFORMS="$1" ALLOW_DIRTY=1`, here)
		ours := "shaker_exporter-1.2.3-dirty.linux-" + runtime.GOARCH
		archive, err := os.ReadFile(filepath.Join(out, ours+".tar.gz"))
		if err != nil {
			t.Fatal(err)
		}
		entries := unpack(t, archive, made)
		if _, ok := entries[ours+"/docs/faq.md"]; ok {
			t.Errorf("%s has docs/faq.md, which was removed", ours)
		}
		if got := entries[ours+"/docs/new.md"].content; got != "new\n" {
			t.Errorf("%s has docs/new.md with %q, want %q", ours, got, "new\n")
		}
		if got := entries[ours+"/docs/kept.prof"].content; got != "kept\n" {
			t.Errorf("%s has docs/kept.prof, which git ignores unless it is added, with %q, want %q",
				ours, got, "kept\n")
		}
		program := released(t, entries[ours+"/shaker_exporter"].content)
		wantVersion(t, program, "1.2.3-dirty", revision+"-modified", committedUTC)
	})
}

// checkLicenses checks the licenses in an archive, and removes them from the entries.
func checkLicenses(t *testing.T, name string, entries map[string]packed, binary string) {
	t.Helper()
	var licenses []string
	for file, got := range entries {
		path, ok := strings.CutPrefix(file, name+"/licenses/")
		if !ok {
			continue
		}
		delete(entries, file)
		if got.mode.IsDir() {
			continue
		}
		licenses = append(licenses, path)
		if got.mode != 0o644 || got.content == "" {
			t.Errorf("%s has %s with %v, want %v and a text", name, file, got, fs.FileMode(0o644))
		}
	}
	for _, complaint := range lab.LicenseComplaints(strings.NewReader(binary), licenses) {
		t.Errorf("%s: %s", name, complaint)
	}
}

// wantFiles checks how many files a directory has.
func wantFiles(t *testing.T, dir string, want int) {
	t.Helper()
	if files, err := os.ReadDir(dir); err != nil || len(files) != want {
		t.Errorf("ReadDir(%s) = %v, %v, want %d files", dir, files, err, want)
	}
}

// released writes a binary to a file that can be executed, and returns its path.
func released(t *testing.T, binary string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "shaker_exporter")
	if err := os.WriteFile(path, []byte(binary), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// wantVersion checks what a binary prints with --version.
func wantVersion(t *testing.T, program, version, revision, date string) {
	t.Helper()
	out, err := exec.Command(program, "--version").CombinedOutput()
	if err != nil {
		t.Fatalf("%s --version: %v: %s", program, err, out)
	}
	first := fmt.Sprintf("shaker_exporter, version %s (branch: , revision: %s)\n", version, revision)
	if !strings.HasPrefix(string(out), first) || !regexp.MustCompile(`\n  build date: +`+date+"\n").Match(out) {
		t.Errorf("--version prints\n%swant the first line\n%sand the build date %s", out, first, date)
	}
}

// A binary that `go build` builds in a clone prints the same version as the binary of a release.
func TestVersionOfGoBuild(t *testing.T) {
	lab.Program(t, "go", "golang-go")
	releaseEnv(t)
	root, revision := clone(t)
	program := filepath.Join(t.TempDir(), "shaker_exporter")
	output(t, root, "go", "build", "-buildvcs=true", "-o", program, ".")
	wantVersion(t, program, "1.2.3", revision, committedUTC)
}

// make release refuses to build a release that would not be reproducible, or without what it needs, and its last
// lines say why.
func TestReleaseRefused(t *testing.T) {
	needMake(t, "go")
	releaseEnv(t)
	const dirty = "release: uncommitted changes, the release would not be reproducible:\n"
	const noCommit = "release: no commit to release, "
	for _, c := range []struct {
		name   string
		before string // a script that changes the clone
		args   string // of make
		want   string // in the output
	}{
		{name: "new file", before: "touch new.go", want: dirty + "?? new.go\n"},
		{name: "changed file", before: "echo >>README.md", want: dirty + " M README.md\n"},
		{name: "no clone", before: "rm -rf .git", want: noCommit},
		{name: "no commit", before: "rm -rf .git && git init -q", want: noCommit},
		{name: "another clone", before: "mkdir x && git mv Makefile scripts x && git commit -q -m x", args: "-C x",
			want: noCommit},
		{name: "version", args: "VERSION=v1/2",
			want: "release: invalid version v1/2, want only letters, digits and .+_-\n"},
		{name: "no platform", args: "PLATFORMS=",
			want: "release: PLATFORMS is empty, want at least one platform"},
		{name: "platforms with a comma", args: "PLATFORMS=linux/amd64,linux/arm64",
			want: "release: invalid platform linux/amd64,linux/arm64 in PLATFORMS, want spaces between platforms\n"},
		{name: "second platform", args: "PLATFORMS='linux/amd64 foo'",
			want: "release: invalid platform foo in PLATFORMS, want one that `go tool dist list` prints"},
		{name: "armv7", args: "PLATFORMS=linux/armv7",
			want: "release: invalid platform linux/armv7 in PLATFORMS, want linux/arm, which is ARMv7\n"},
		{name: "version of two numbers", args: "VERSION=1.2",
			want: "release: invalid version 1.2, want a semantic version, such as VERSION=1.2.3 or "},
		{name: "time", args: "SOURCE_DATE_EPOCH=abc",
			want: "release: invalid SOURCE_DATE_EPOCH abc, want the seconds since 1970"},
		{name: "late time", args: "SOURCE_DATE_EPOCH=8589934592",
			want: "release: invalid SOURCE_DATE_EPOCH 8589934592, want the seconds since 1970"},
		{name: "output", args: "OUT=README.md",
			want: "release: invalid directory OUT: mkdir: cannot create directory 'README.md': File exists\n"},
		{name: "format", args: "PACKAGES='deb msi'",
			want: "release: invalid format msi in PACKAGES, want only deb, rpm and apk\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, _ := clone(t, "Makefile", "scripts", "README.md")
			got := run(t, root, c.before+"\n! make -s release OUT=../out PACKAGES= SBOM= "+c.args+" 2>&1")
			if !strings.Contains(got, c.want) {
				t.Errorf("after %q, make release %s prints %q, want %q", c.before, c.args, got, c.want)
			}
			built, err := filepath.Glob(filepath.Join(filepath.Dir(root), "out", "*"))
			if err != nil || len(built) > 0 {
				t.Errorf("after %q, make release %s built %q, %v, want nothing", c.before, c.args, built, err)
			}
		})
	}
}

// make release replaces the files of its version in OUT, keeps those of all other versions, also of one whose name
// begins in the same way, and names what does not belong to the release.
func TestReleaseKeepsOtherVersions(t *testing.T) {
	lab.SkipWithRace(t)
	needMake(t, "go", "tar", "gzip", "find")
	releaseEnv(t)
	root, _ := clone(t)
	others := []string{
		"shaker-exporter-1.2.2.tgz",
		"shaker_exporter-1.2.3-rc.1.linux-amd64.deb",
		"shaker_exporter-1.2.3-rc.linux.1.linux-amd64.deb",
		"shaker_exporter-1.2.3.linux-amd64.deb",
	}
	own := []string{"shaker_exporter-1.2.3-rc.linux-mips.tar.gz", "shaker_exporter-1.2.3-rc.plan9-386.spdx.json",
		"shaker-exporter-1.2.3-rc.tgz", "sha256sums.txt"}
	got := run(t, root, `mkdir dist; for file; do echo old >"dist/$file"; done
		make -s release PACKAGES= SBOM= PLATFORMS=linux/amd64 VERSION=1.2.3-rc`, append(own, others...)...)
	want := "release: dist also has files that are not of this release, do not publish them with it:\n" +
		strings.Join(others, "\n") + "\n"
	if !strings.HasSuffix(got, want) {
		t.Errorf("make release prints\n%s\nwant at the end\n%s", got, want)
	}
	const archive, chart = "shaker_exporter-1.2.3-rc.linux-amd64.tar.gz", "shaker-exporter-1.2.3-rc.tgz"
	names := slices.Sorted(slices.Values(append([]string{archive, chart, "sha256sums.txt"}, others...)))
	files := strings.Fields(run(t, root, "ls dist"))
	slices.Sort(files)
	if !slices.Equal(files, names) {
		t.Errorf("after make release, dist has %q, want %q", files, names)
	}
	if got, want := run(t, filepath.Join(root, "dist"), "sha256sum --check --strict sha256sums.txt"),
		chart+": OK\n"+archive+": OK\n"; got != want {
		t.Errorf("sha256sum --check prints %q, want %q", got, want)
	}
	// The control: nothing is named if nothing else is there.
	if got := run(t, root, "make -s release PACKAGES= SBOM= PLATFORMS=linux/amd64 OUT=-other"); strings.Contains(
		got, "not of this release") {
		t.Errorf("make release into an empty directory prints\n%s\nwant no other files in it", got)
	}
}

// make chart refuses a version that is not a semantic version, except for those that git describes.
func TestChartRefused(t *testing.T) {
	needMake(t, "tar", "gzip")
	releaseEnv(t)
	root, _ := clone(t, "Makefile", "LICENSE", "scripts", "charts", "examples", ".gitignore")
	for _, version := range []string{"0.1", "01.2.3", "v", "..", "1.2.3-01", "nightly"} {
		got := run(t, root, `! make -s chart VERSION="$1" OUT=../out 2>&1`, version)
		want := "chart: invalid version " + version + ", want a semantic version, such as VERSION=1.2.3 or "
		if !strings.HasPrefix(got, want) {
			t.Errorf("make chart VERSION=%s prints %q, want %q", version, got, want)
		}
	}
	const wantTime = "chart: invalid SOURCE_DATE_EPOCH abc, want the seconds since 1970"
	if got := run(t, root, "! make -s chart SOURCE_DATE_EPOCH=abc OUT=../out 2>&1"); !strings.HasPrefix(got, wantTime) {
		t.Errorf("make chart SOURCE_DATE_EPOCH=abc prints %q, want %q", got, wantTime)
	}
	// Without a clone, git has neither the version nor the time.
	const withoutClone = `cd .. && rm -rf source && mkdir source && cp -r "$1"/* source && cd source && `
	for variables, want := range map[string]string{
		"":                              "chart: no version, want VERSION=1.2.3, or a git clone of the repository\n",
		"VERSION=1.2.3":                 "chart: no time, want SOURCE_DATE_EPOCH=1767225600, or a git clone of the ",
		"VERSION=1 SOURCE_DATE_EPOCH=1": "chart: invalid version 1,", // the control
	} {
		got := run(t, root, withoutClone+"! make -s chart OUT=../out "+variables+" 2>&1", root)
		if !strings.Contains(got, want) {
			t.Errorf("without a clone, make chart %s prints %q, want %q", variables, got, want)
		}
	}
	// A backup of an editor is not a template.
	lab.Write(t, root, "charts/shaker-exporter/templates/service.yaml~", "invalid")
	run(t, root, "make -s chart VERSION=1.2.4 OUT=../out && ! tar -tzf ../out/shaker-exporter-1.2.4.tgz | grep -F '~'")
	for version, want := range map[string]string{
		"": "1.2.3", "v1.2.3-rc.1": "1.2.3-rc.1", "0123456789ab-dirty": "0.0.0-g0123456789ab-dirty",
		"v1.2-5-g0123456789ab": "0.0.0-g1-2-5-g0123456789ab",
	} {
		got := run(t, root, `make -s chart VERSION="$1" OUT=../out`, version)
		if want := "shaker-exporter-" + want + ".tgz\n"; got != want {
			t.Errorf("make chart VERSION=%s prints %q, want %q", version, got, want)
		}
	}
}

// make release and make chart work in a clone of another user, as many containers have it, although git refuses to read
// it.
func TestReleaseOfAnothersClone(t *testing.T) {
	lab.NeedRoot(t)
	needMake(t)
	releaseEnv(t)
	root, _ := clone(t, "Makefile", "LICENSE", "scripts", "charts", "examples", "README.md")
	// The control case: git refuses.
	if got := run(t, root, "chown -R 1:1 .; ! git status 2>&1"); !strings.Contains(got, "dubious ownership") {
		t.Errorf("git status prints %q, want a refusal because of dubious ownership", got)
	}
	const want = "release: PLATFORMS is empty" // the clone was read
	if got := run(t, root, "! make -s release PLATFORMS= OUT=../out 2>&1"); !strings.Contains(got, want) {
		t.Errorf("make release prints %q, want %q", got, want)
	}
	if got, want := run(t, root, "make -s chart OUT=../out 2>&1 || true"), "shaker-exporter-1.2.3.tgz\n"; got != want {
		t.Errorf("make chart prints %q, want %q", got, want)
	}
}

// make without a target builds nothing and prints the help.
func TestMakeHelp(t *testing.T) {
	needMake(t, "sed")
	releaseEnv(t)
	got, want := run(t, ".", "make -s"), run(t, ".", "make -s help")
	if got != want || !regexp.MustCompile(`(?m)^make release `).MatchString(got) {
		t.Errorf("make prints %q, want the help %q with a line for make release", got, want)
	}
}
