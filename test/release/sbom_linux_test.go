package release

import (
	"debug/buildinfo"
	"encoding/json"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// The SBOM lists the modules in the program, with their versions, and is the same in another clone.
func TestSBOM(t *testing.T) {
	needSlow(t)
	needMake(t, "go", "tar", "gzip", "find")
	releaseEnv(t)
	root, _ := clone(t)
	here := "linux/" + runtime.GOARCH
	name := "shaker_exporter-1.2.3.linux-" + runtime.GOARCH
	build := func(dir string) string {
		run(t, dir, `make -s release PACKAGES= PLATFORMS="$1"`, here)
		run(t, filepath.Join(dir, "dist"), "sha256sum --check --strict sha256sums.txt")
		return lab.Read(t, filepath.Join(dir, "dist", name+".spdx.json"))
	}
	text := build(root)
	var document struct {
		SPDXVersion       string
		Name              string
		DocumentNamespace string
		CreationInfo      struct{ Created string }
		Packages          []struct{ Name, VersionInfo string }
	}
	if err := json.Unmarshal([]byte(text), &document); err != nil {
		t.Fatalf("%s.spdx.json: %v", name, err)
	}
	const home = "https://github.com/shaker-exporter/shaker_exporter"
	if document.SPDXVersion != "SPDX-2.3" || document.Name != "shaker_exporter" ||
		document.CreationInfo.Created != committedUTC ||
		!strings.HasPrefix(document.DocumentNamespace, home+"/sbom/"+name+"-") {
		t.Errorf("the SBOM is %s of %s, created %s, with the namespace %s; want SPDX-2.3 of shaker_exporter, "+
			"created %s, with a namespace below %s", document.SPDXVersion, document.Name, document.CreationInfo.Created,
			document.DocumentNamespace, committedUTC, home)
	}
	var got []string
	for _, p := range document.Packages {
		got = append(got, p.Name+" "+p.VersionInfo)
	}
	run(t, root, `tar -xzf "dist/$1.tar.gz" "$1/shaker_exporter"`, name)
	info, err := buildinfo.ReadFile(filepath.Join(root, name, "shaker_exporter"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"shaker_exporter 1.2.3", info.Main.Path + " 1.2.3", "stdlib " + info.GoVersion}
	for _, module := range info.Deps {
		want = append(want, module.Path+" "+module.Version)
	}
	for _, module := range want {
		if !slices.Contains(got, module) {
			t.Errorf("the SBOM lacks %s; it has\n%s", module, strings.Join(got, "\n"))
		}
	}
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	output(t, root, "git", "clone", "-q", ".", elsewhere)
	if again := build(elsewhere); again != text {
		t.Error("the SBOM is another one if it is built elsewhere, want the same")
	}
}
