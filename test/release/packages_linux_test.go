package release

import (
	"compress/gzip"
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

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// formats are the formats of the packages.
var formats = []string{"deb", "rpm", "apk"}

// Directories of a package that have more files than packageFiles lists.
const (
	docDir      = "usr/share/doc/shaker-exporter/"
	licensesDir = docDir + "licenses/"
	examplesDir = docDir + "examples/"
	docsDir     = docDir + "docs/"
)

type packageFile struct {
	path    string
	mode    fs.FileMode // by default 0644
	formats string      // by default all
	config  bool        // the administrator's changes are kept
}

// in reports whether packages of a format have the file.
func (f packageFile) in(format string) bool {
	return f.formats == "" || slices.Contains(strings.Fields(f.formats), format)
}

// packageFiles are the files of the packages, except those in licensesDir, examplesDir and docsDir.
var packageFiles = []packageFile{
	{path: "usr/bin/shaker_exporter", mode: 0o755},
	{path: "etc/shaker_exporter/shaker.yml", config: true},
	{path: "etc/default/shaker_exporter", formats: "deb rpm", config: true},
	{path: "etc/conf.d/shaker_exporter", formats: "apk", config: true},
	{path: "etc/init.d/shaker_exporter", formats: "apk", mode: 0o755},
	{path: "lib/systemd/system/shaker_exporter.service", formats: "deb"},
	{path: "usr/lib/systemd/system/shaker_exporter.service", formats: "rpm"},
	{path: "usr/lib/sysusers.d/shaker_exporter.conf", formats: "deb rpm"},
	{path: "usr/share/man/man1/shaker_exporter.1.gz"},
	{path: "usr/share/bash-completion/completions/shaker_exporter"},
	{path: "usr/share/fish/vendor_completions.d/shaker_exporter.fish"},
	{path: "usr/share/zsh/vendor-completions/_shaker_exporter", formats: "deb"},
	{path: "usr/share/zsh/site-functions/_shaker_exporter", formats: "rpm apk"},
	{path: "usr/share/doc/shaker-exporter/README.md"},
	{path: "usr/share/doc/shaker-exporter/copyright"},
	{path: "usr/share/doc/shaker-exporter/changelog.gz", formats: "deb"},
	{path: "usr/share/doc/shaker-exporter/CHANGELOG.md", formats: "rpm apk"},
	{path: "usr/share/lintian/overrides/shaker-exporter", formats: "deb"},
}

// packageArchitectures has the names of the architectures in each format by the end of a package's name.
var packageArchitectures = map[string]map[string]string{
	"amd64": {"deb": "amd64", "rpm": "x86_64", "apk": "x86_64"},
	"arm64": {"deb": "arm64", "rpm": "aarch64", "apk": "aarch64"},
	"armv7": {"deb": "armhf", "rpm": "armv7hl", "apk": "armv7"},
}

// extractors are shell scripts for a package $1 and a directory $2. They extract the files of the package, and print
// its name, version and architecture, and the paths of its configuration files, if the format marks them.
var extractors = map[string]string{
	"deb": `dpkg-deb --extract "$1" "$2"
		dpkg-deb --show --showformat '${Package} ${Version} ${Architecture}\n' "$1"
		dpkg-deb --ctrl-tarfile "$1" | tar --extract --to-stdout ./conffiles`,
	"rpm": `rpm --checksig "$1" >&2
		rpm --root "$2" --install --noscripts --ignorearch "$1" >&2
		rpm --root "$2" --verify shaker-exporter >&2
		rm -r "$2/var" "$2/root" 2>/dev/null || true
		rpm --query --package --queryformat '%{name} %{version} %{arch}\n' "$1"
		rpm --query --package --configfiles "$1"`,
	"apk": `tar --extract --gzip --file="$1" --directory="$2" --warning=no-unknown-keyword --exclude='.[pP]*'
		tar --extract --gzip --to-stdout --warning=no-unknown-keyword --file="$1" .PKGINFO |
			sed -n 's/^\(pkgname\|pkgver\|arch\) = //p' | paste -sd ' '`,
}

// wantPackages checks the packages of a name, given the content of the archive of that name.
func wantPackages(t *testing.T, out, name string, archive map[string]packed) {
	t.Helper()
	archiveFile := func(path string) string { return archive[name+"/"+path].content }
	architecture := name[strings.LastIndex(name, "-")+1:]
	for _, format := range formats {
		t.Run(architecture+" "+format, func(t *testing.T) {
			switch format {
			case "deb":
				lab.Program(t, "dpkg-deb", "dpkg")
			case "rpm":
				lab.NeedRoot(t) // rpm calls chroot
				lab.Program(t, "rpm", "rpm")
			}
			dir := t.TempDir()
			cmd := exec.Command("sh", "-ec", extractors[format], "sh", name+"."+format, dir)
			cmd.Dir = out
			var stderr strings.Builder
			cmd.Stderr = &stderr
			stdout, err := cmd.Output()
			if err != nil {
				t.Fatalf("extract %s.%s: %v\n%s", name, format, err, &stderr)
			}
			lines := strings.Split(strings.TrimSpace(string(stdout)), "\n")
			identity := "shaker-exporter 1.2.3 " + packageArchitectures[architecture][format]
			if lines[0] != identity {
				t.Errorf("the package is %q, want %q", lines[0], identity)
			}
			files := readTree(t, dir)
			var licenses, config []string
			for _, want := range packageFiles {
				if !want.in(format) {
					continue
				}
				if want.mode == 0 {
					want.mode = 0o644
				}
				got, ok := files[want.path]
				if !ok || got.mode != want.mode || got.content == "" {
					t.Errorf("%s: %t, %v, want a file with content and %v", want.path, ok, got, want.mode)
				}
				if want.config {
					config = append(config, "/"+want.path)
				}
			}
			if got := lines[1:]; format != "apk" && !equalSets(got, config) {
				t.Errorf("the configuration files are %q, want %q", got, config)
			}
			for _, path := range slices.Sorted(maps.Keys(files)) {
				got := files[path]
				if license, ok := strings.CutPrefix(path, licensesDir); ok {
					licenses = append(licenses, license)
					if want := archiveFile("licenses/" + license); got.content != want || got.mode != 0o644 {
						t.Errorf("%s has %v, want the content of the archive and %v", path, got, fs.FileMode(0o644))
					}
					continue
				}
				if example, ok := strings.CutPrefix(path, examplesDir); ok {
					want := archiveFile("examples/" + example)
					if example == "systemd/raw.conf" {
						want = packagedPaths(want)
					}
					if got.content != want || got.mode != 0o644 {
						t.Errorf("%s has %v, want the content of the archive and %v", path, got, fs.FileMode(0o644))
					}
					continue
				}
				if page, ok := strings.CutPrefix(path, docsDir); ok {
					if _, ok := archive[name+"/docs/"+page]; !ok || filepath.Ext(page) != ".md" || got.mode != 0o644 {
						t.Errorf("%s has %v, want only pages of the archive, with %v", path, got, fs.FileMode(0o644))
					}
					continue
				}
				if !slices.ContainsFunc(packageFiles, func(want packageFile) bool {
					return want.path == path && want.in(format)
				}) {
					t.Errorf("the package has %s, which does not belong in it", path)
				}
			}
			for _, complaint := range lab.LicenseComplaints(
				strings.NewReader(files["usr/bin/shaker_exporter"].content), licenses) {
				t.Error(complaint)
			}
			wantLinks(t, files, docDir)
			if _, ok := files[docsDir+"raw.md"]; !ok {
				t.Error("the package has no docs/raw.md, which a hint names")
			}
			if files["usr/bin/shaker_exporter"].content != archiveFile("shaker_exporter") {
				t.Error("the program is not that of the archive, want the same")
			}
			if files["etc/shaker_exporter/shaker.yml"].content != archiveFile("examples/shaker.yml") {
				t.Error("the configuration is not examples/shaker.yml, want the same")
			}
			if architecture == runtime.GOARCH {
				wantGenerated(t, files)
			}
			if format == "apk" {
				return
			}
			// The unit is that of the examples, with the path of the package and without how to install it.
			unit := files["lib/systemd/system/shaker_exporter.service"].content +
				files["usr/lib/systemd/system/shaker_exporter.service"].content
			_, want, _ := strings.Cut(packagedPaths(archiveFile("examples/systemd/shaker_exporter.service")), "\n\n")
			if unit != want {
				t.Errorf("the unit is\n%s\nwant\n%s", unit, want)
			}
		})
	}
}

// wantGenerated checks the files of a package that its program prints.
func wantGenerated(t *testing.T, files map[string]packed) {
	t.Helper()
	program := released(t, files["usr/bin/shaker_exporter"].content)
	for path, flag := range map[string]string{
		"usr/share/man/man1/shaker_exporter.1.gz":                  "--help-man",
		"usr/share/bash-completion/completions/shaker_exporter":    "--completion-script-bash",
		"usr/share/fish/vendor_completions.d/shaker_exporter.fish": "--completion-script-fish",
		"usr/share/zsh/vendor-completions/_shaker_exporter":        "--completion-script-zsh",
		"usr/share/zsh/site-functions/_shaker_exporter":            "--completion-script-zsh",
	} {
		got, ok := files[path]
		if !ok {
			continue // wantPackages knows which formats have it
		}
		if strings.HasSuffix(path, ".gz") {
			got.content = gunzip(t, got.content)
		}
		if want := output(t, ".", program, flag); got.content != want {
			t.Errorf("%s has the content\n%s\nwant what %s prints\n%s", path, got.content, flag, want)
		}
	}
	const title = `.TH SHAKER_EXPORTER 1 "2026-01-01" "shaker_exporter 1.2.3" "User Commands"` + "\n"
	if page := gunzip(t, files["usr/share/man/man1/shaker_exporter.1.gz"].content); !strings.HasPrefix(page, title) {
		t.Errorf("the man page begins with %.100q, want %q", page, title)
	}
	if changelog, ok := files["usr/share/doc/shaker-exporter/changelog.gz"]; ok {
		const first = "shaker-exporter (1.2.3) stable; urgency=medium\n\n  "
		if text := gunzip(t, changelog.content); !strings.HasPrefix(text, first) || !strings.Contains(text, "\n  * ") {
			t.Errorf("the changelog begins with %.100q, want %q and a list", text, first)
		}
	}
}

func gunzip(t *testing.T, text string) string {
	t.Helper()
	r, err := gzip.NewReader(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// packagedPaths replaces the paths of the examples by those of a package.
func packagedPaths(text string) string {
	text = strings.ReplaceAll(text, "/usr/local/bin/", "/usr/bin/")
	return regexp.MustCompile(`examples/systemd/raw\.conf`).ReplaceAllString(text, "/"+examplesDir+"systemd/raw.conf")
}

// readTree returns the files below a directory by their paths.
func readTree(t *testing.T, dir string) map[string]packed {
	t.Helper()
	files := make(map[string]packed)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, dir+"/")] = packed{info.Mode(), string(content)}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func equalSets(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// The versions of the packages sort like the versions that git describes, and nfpm gives them to the packages. Those of
// apk packages are valid for Alpine.
func TestPackageVersions(t *testing.T) {
	needMake(t, "go", "tar", "gzip", "find")
	lab.Program(t, "dpkg", "dpkg")
	nfpm := lab.GoProgram(t, "nfpm")
	releaseEnv(t)
	script := lab.Read(t, "scripts/release.sh")
	function := regexp.MustCompile(`(?ms)^package_version\(\) \{\n.*?^\}\n`).FindString(script)
	if function == "" {
		t.Fatal("scripts/release.sh has no function package_version")
	}
	for _, c := range []struct{ version, deb, apk string }{
		{version: "1.2.3", deb: "1.2.3", apk: "1.2.3"},
		{version: "1.2.3-rc.1", deb: "1.2.3-rc.1", apk: "1.2.3_rc1"},
		{version: "1.2.3-rc1", deb: "1.2.3-rc1", apk: "1.2.3_rc1"},
		{version: "1.2.3-5-g0123abcdef01", deb: "1.2.3+5.g0123abcdef01", apk: "1.2.3_p5"},
		{version: "1.2.3-rc.1-5-g0123abcdef01", deb: "1.2.3-rc.1+5.g0123abcdef01", apk: "1.2.3_rc1_p5"},
		{version: "1.2.3-dirty", deb: "1.2.3+dirty", apk: "1.2.3"},
		{version: "1.2.3-5-g0123abcdef01-dirty", deb: "1.2.3+5.g0123abcdef01.dirty", apk: "1.2.3_p5"},
		{version: "1.2.3-nightly.7", deb: "1.2.3-nightly.7", apk: "1.2.3_pre"},
		{version: "1.2.3-7", deb: "1.2.3-7", apk: "1.2.3_pre"},
		{version: "1.2.3+a_b", deb: "1.2.3+a.b", apk: "1.2.3"},
		{version: "0123abcdef01", deb: "0.0.0+0123abcdef01", apk: "0.0.0_git1700000000"},
		{version: "1e23abcdef01", deb: "0.0.0+1e23abcdef01", apk: "0.0.0_git1700000000"},
		{version: "b123abcdef01-dirty", deb: "0.0.0+b123abcdef01.dirty", apk: "0.0.0_git1700000000"},
		{version: "nightly-5-g0123abcdef01", deb: "0.0.0+nightly+5.g0123abcdef01", apk: "0.0.0_git1700000000"},
	} {
		for format, want := range map[string]string{"deb": c.deb, "rpm": c.deb, "apk": c.apk} {
			got := strings.TrimSpace(run(t, ".", "epoch=1700000000 version=$1\n"+function+"package_version $2",
				c.version, format))
			if got != want {
				t.Errorf("the version of a %s of %s is %q, want %q", format, c.version, got, want)
			}
		}
		dir := t.TempDir()
		lab.Write(t, dir, "nfpm.yaml", "{name: x, arch: amd64, description: x, version: "+`"`+c.apk+`"`+"}\n")
		got := run(t, dir, `"$1" package --packager apk --target x.apk >&2
			tar --extract --gzip --to-stdout --warning=no-unknown-keyword --file=x.apk .PKGINFO | grep ^pkgver`, nfpm)
		if want := "pkgver = " + c.apk + "\n"; !strings.HasSuffix(got, want) {
			t.Errorf("the apk of %s has %q, want %q", c.version, got, want)
		}
		if !alpineVersion.MatchString(c.apk) {
			t.Errorf("%s is not a version of Alpine", c.apk)
		}
	}
	sorted := []string{"1.2.3~rc.1", "1.2.3~rc.1+5.g01", "1.2.3", "1.2.3+5.g01", "1.2.4~rc.1"}
	for i := range len(sorted) - 1 {
		run(t, ".", `dpkg --compare-versions "$1" lt "$2"`, sorted[i], sorted[i+1])
	}
}

// alpineVersion matches the versions that apk accepts, without the number of the build:
// https://wiki.alpinelinux.org/wiki/Package_policies
var alpineVersion = regexp.MustCompile(
	`^[0-9]+(\.[0-9]+)*[a-z]?(_(alpha|beta|pre|rc|cvs|svn|git|hg|p)[0-9]*)*$`)

// make release-notes prints the top section of CHANGELOG.md.
func TestReleaseNotes(t *testing.T) {
	needMake(t, "awk")
	releaseEnv(t)
	dir := t.TempDir()
	for _, name := range []string{"Makefile", "scripts/release-notes.sh"} {
		lab.Write(t, dir, name, lab.Read(t, name))
	}
	const notes = "The second version.\n\n- A change\n  of two lines\n\nThe library:\n\n- Another one\n"
	lab.Write(t, dir, "CHANGELOG.md", "# Changelog\n\n## 1.3.0 / 2026-01-02\n\n"+notes+"\n## 1.2.0\n\n- Old\n")
	if got := run(t, dir, "make -s release-notes"); strings.TrimRight(got, "\n") != strings.TrimRight(notes, "\n") {
		t.Errorf("make release-notes prints %q, want %q", got, notes)
	}
	if got := run(t, ".", "make -s release-notes"); len(got) < 1000 || strings.Contains(got, "\n## ") {
		t.Errorf("make release-notes prints %d bytes with other sections, want the top section of CHANGELOG.md:\n%s",
			len(got), got)
	}
}

// Programs are built once, and again with another Go release or other build tags. The program go is a script here: what
// it builds is a file with what `go version -m` would print.
func TestPrograms(t *testing.T) {
	needMake(t, "sed", "grep")
	dir := t.TempDir()
	for name, text := range map[string]string{
		"bin/go": `#!/bin/sh
			case $1 in
			env) echo "$GO" ;;
			version) printf '%s: ' "$3" && cat "$3" ;;
			install) printf '%s\n\tbuild\t-tags=%s\n' "$GO" "${3#-tags=}" >"$GOBIN/tool" && chmod +x "$GOBIN/tool" ;;
			esac`,
		"plain": "# A comment\nexample.com/tool@v1\n", "tags": "example.com/tool@v1 a,b\n",
	} {
		if err := os.Chmod(lab.Write(t, dir, name, text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "shaker_exporter/programs/example.com/tool@v1"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "shaker_exporter/programs/example.com/tool@v1/tool") + "\n"
	for _, c := range []struct {
		release, list string
		built         bool
	}{
		{release: "go1.26.8", list: "plain", built: true},
		{release: "go1.26.8", list: "plain"},
		{release: "go1.26.9", list: "plain"},
		{release: "go1.27.0", list: "plain", built: true},
		{release: "go1.27.0", list: "tags", built: true},
		{release: "go1.27rc1", list: "tags"},
		{release: "go1.27.0", list: "plain", built: true},
	} {
		want := file
		if c.built {
			want = "building example.com/tool@v1\n" + file
		}
		got := run(t, ".", `XDG_CACHE_HOME="$1" PATH="$1/bin:$PATH" GO="$2" sh scripts/programs.sh "$1/$3" 2>&1`,
			dir, c.release, c.list)
		if got != want {
			t.Errorf("with %s and the list %s, scripts/programs.sh prints %q, want %q", c.release, c.list, got, want)
		}
	}
}
