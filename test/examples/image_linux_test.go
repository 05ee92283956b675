package examples

import (
	"cmp"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// What the build is told.
const (
	imageVersion   = "v1.2.3"
	imageRevision  = "0123456789abcdef0123456789abcdef01234567"
	imageBuildDate = "2001-02-03T04:05:06Z"
)

// The Dockerfile makes an image that holds the exporter and its licenses, knows its version, and
// probes without root and without capabilities. The controls are images that are otherwise.
func TestImage(t *testing.T) {
	b := newBuilder(t)
	b.build("shaker", "../Dockerfile", "VERSION="+imageVersion, "REVISION="+imageRevision, "BUILD_DATE="+imageBuildDate)
	if wrong := b.complaints("shaker"); wrong != nil {
		t.Errorf("%s", strings.Join(wrong, "\n"))
	}
	b.run("shaker")

	for instruction, want := range map[string]string{
		"USER 0":                            "the user is 0",
		"COPY LICENSE /licenses/":           "LICENSE -rw-r--r-- is of no module",
		"COPY LICENSE /COPY":                "it holds /COPY -rw-r--r-- /LICENSE -rw-r--r-- /shaker_exporter -rwxr-xr-x",
		`ENTRYPOINT ["/bin"]`:               "the entry point is [/bin]",
		"EXPOSE 9115":                       "the ports are map[10115/tcp:{} 9115/tcp:{}]",
		"LABEL " + label("version") + "=v2": "the label " + label("version") + " is v2",
	} {
		b.build("control", lab.Write(t, t.TempDir(), "Dockerfile", "FROM localhost/shaker\n"+instruction+"\n"))
		if got := b.complaints("control"); !slices.Equal(got, []string{want}) {
			t.Errorf("with %s: %q, want %q", instruction, got, want)
		}
	}
}

// The image for another platform has a program for that, which this machine's compiler has made.
func TestImageForAnotherPlatform(t *testing.T) {
	other, want := "arm64", elf.EM_AARCH64
	if runtime.GOARCH == other {
		other, want = "amd64", elf.EM_X86_64
	}
	b := newBuilder(t)
	// Newer builders know by themselves what they run on.
	b.buildFor("linux/"+other, "shaker", "../Dockerfile", "BUILDPLATFORM=linux/"+runtime.GOARCH)
	if got := b.inspect("shaker").Architecture; got != other {
		t.Errorf("the image for %s says that it is for %s", other, got)
	}
	program, err := elf.Open(filepath.Join(b.mount("shaker"), "shaker_exporter"))
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	if program.Machine != want {
		t.Errorf("the program for %s is for %v", other, program.Machine)
	}
}

// The build is given LICENSE, scripts/licenses.sh and what the compiler reads, of any platform, and
// nothing else.
func TestImageContext(t *testing.T) {
	b := newBuilder(t)
	b.build("context", lab.Write(t, t.TempDir(), "Dockerfile", "FROM scratch\nCOPY . /\n"))
	var got []string
	for _, file := range contents(t, b.mount("context")) {
		got = append(got, strings.Fields(file)[0])
	}
	want := []string{"/LICENSE", "/go.mod", "/go.sum", "/scripts/licenses.sh"}
	list := exec.Command("go", "list", "-deps", "-f", `{{if and .Module .Module.Main}}{{$dir := .Dir}}
		{{- range .GoFiles}}{{$dir}}/{{.}}{{"\n"}}{{end -}}
		{{- range .IgnoredGoFiles}}{{$dir}}/{{.}}{{"\n"}}{{end -}}
		{{- range .EmbedFiles}}{{$dir}}/{{.}}{{"\n"}}{{end -}}{{end}}`, "..")
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	top, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range strings.Fields(string(out)) {
		if !strings.HasSuffix(file, "_test.go") {
			want = append(want, strings.TrimPrefix(file, top))
		}
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the context is\n%s, want\n%s", got, want)
	}
}

// A builder makes images, without a daemon and without a network.
type builder struct {
	t       *testing.T
	program string
	dir     string
	volumes []string // what commands of a build see of this machine
}

// newBuilder returns a builder that knows the official image of Go. It is not that image: it
// has a shell, and its builds see this machine's Go, what that has compiled before, and the
// modules as it has fetched them.
func newBuilder(t *testing.T) *builder {
	t.Helper()
	lab.NeedRoot(t)
	b := &builder{t: t, program: lab.Program(t, "buildah", "buildah"), dir: t.TempDir()}
	t.Cleanup(func() {
		b.buildah("rm", "--all")
		b.buildah("rmi", "--all", "--force")
	})
	dockerfile := lab.Read(t, "../Dockerfile")
	from := regexp.MustCompile(`(?m)^FROM --platform=\S+ (golang:\S+) AS`).FindStringSubmatch(dockerfile)
	if from == nil {
		t.Fatalf("no image of Go in %s", dockerfile)
	}
	file := lab.Write(t, b.dir, "golang/Dockerfile", `FROM scratch
COPY busybox /bin/sh
RUN ["/bin/sh", "-c", "mkdir /root /tmp"]
ENV PATH=/usr/local/go/bin:/bin GOPATH=/go GOCACHE=/cache GOPROXY=file:///proxy GOSUMDB=off GOTOOLCHAIN=local
`)
	busybox, err := os.ReadFile(lab.Program(t, "busybox", "busybox-static"))
	if err != nil {
		t.Fatal(err)
	}
	context := filepath.Dir(file)
	if err := os.WriteFile(filepath.Join(context, "busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	b.buildah("build", "--tag=docker.io/library/"+from[1], context)
	b.volumes = []string{
		goEnv(t, "GOROOT") + ":/usr/local/go:ro",
		goEnv(t, "GOCACHE") + ":/cache",
		goEnv(t, "GOMODCACHE") + "/cache/download:/proxy:ro",
	}
	return b
}

// goEnv returns one of Go's settings.
func goEnv(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command(lab.Program(t, "go", "golang-go"), "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// command returns a command of buildah with a storage of its own.
func (b *builder) command(args ...string) *exec.Cmd {
	cmd := exec.Command(b.program, append([]string{"--root=" + filepath.Join(b.dir, "root"),
		"--runroot=" + filepath.Join(b.dir, "runroot"), "--storage-driver=vfs"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+b.dir, "BUILDAH_ISOLATION=chroot")
	return cmd
}

// buildah runs it and returns what it prints.
func (b *builder) buildah(args ...string) string {
	b.t.Helper()
	cmd := b.command(args...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("buildah %s: %v\n%s%s", strings.Join(args, " "), err, out, &said)
	}
	return strings.TrimSpace(string(out))
}

// build makes an image for this machine from the repository.
func (b *builder) build(tag, dockerfile string, buildArgs ...string) {
	b.t.Helper()
	b.buildFor("linux/"+runtime.GOARCH, tag, dockerfile, buildArgs...)
}

func (b *builder) buildFor(platform, tag, dockerfile string, buildArgs ...string) {
	b.t.Helper()
	args := []string{"build", "--pull-never", "--platform=" + platform, "--tag=" + tag, "--file=" + dockerfile}
	for _, volume := range b.volumes {
		args = append(args, "--volume="+volume)
	}
	for _, arg := range buildArgs {
		args = append(args, "--build-arg="+arg)
	}
	b.buildah(append(args, "..")...)
}

// An imageConfig is what an image says of itself.
type imageConfig struct {
	Architecture string
	Config       struct {
		User         string
		Entrypoint   []string
		ExposedPorts map[string]struct{}
		Labels       map[string]string
	}
}

func (b *builder) inspect(image string) imageConfig {
	b.t.Helper()
	var answer struct{ OCIv1 imageConfig }
	if err := json.Unmarshal([]byte(b.buildah("inspect", "--type=image", image)), &answer); err != nil {
		b.t.Fatal(err)
	}
	return answer.OCIv1
}

// mount returns the directory where the files of an image are.
func (b *builder) mount(image string) string {
	b.t.Helper()
	return b.buildah("mount", b.buildah("from", "--pull-never", image))
}

// contents returns the paths and modes of the files in a directory.
func contents(t *testing.T, dir string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		found = append(found, strings.TrimPrefix(path, dir)+" "+info.Mode().String())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	return found
}

// label returns the name that the Open Container Initiative has given a label.
func label(name string) string { return "org.opencontainers.image." + name }

// complaints says what an image should not be like.
func (b *builder) complaints(image string) (wrong []string) {
	b.t.Helper()
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	config := b.inspect(image).Config
	if config.User != "65534:65534" {
		complain("the user is %s", config.User)
	}
	if !slices.Equal(config.Entrypoint, []string{"/shaker_exporter"}) {
		complain("the entry point is %v", config.Entrypoint)
	}
	if _, ok := config.ExposedPorts["10115/tcp"]; !ok || len(config.ExposedPorts) != 1 {
		complain("the ports are %v", config.ExposedPorts)
	}
	for name, want := range map[string]string{
		"title":    "shaker_exporter",
		"source":   "https://github.com/shaker-exporter/shaker_exporter",
		"licenses": "Apache-2.0",
		"version":  imageVersion, "revision": imageRevision, "created": imageBuildDate,
	} {
		if got := config.Labels[label(name)]; got != want {
			complain("the label %s is %s", label(name), cmp.Or(got, "missing"))
		}
	}
	root := b.mount(image)
	var licenses, others []string
	for _, file := range contents(b.t, root) {
		if license, ok := strings.CutPrefix(file, "/licenses/"); ok {
			licenses = append(licenses, license)
		} else {
			others = append(others, file)
		}
	}
	program, err := os.Open(filepath.Join(root, "shaker_exporter"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer program.Close()
	wrong = append(wrong, lab.LicenseComplaints(program, licenses)...)
	got := strings.Join(others, " ")
	if got != "/LICENSE -rw-r--r-- /shaker_exporter -rwxr-xr-x" {
		complain("it holds %s", got)
	}
	return wrong
}

// run runs an image as it says itself, and probes with it.
func (b *builder) run(image string) {
	t := b.t
	t.Helper()
	container := b.buildah("from", "--pull-never", image)
	p := process.Start(t, b.command(append([]string{"run", "--cap-drop=all", container, "--"}, b.inspect(image).Config.Entrypoint...)...))
	p.Listening(10115)
	if body := lab.Get(t, "http://localhost:10115/probe?target=localhost:10115"); !strings.Contains(body, "\nprobe_success 1\n") {
		t.Errorf("it probes itself: %s", body)
	}
	metrics := lab.Get(t, "http://localhost:10115/metrics")
	for _, want := range []string{`version="` + imageVersion + `"`, `revision="` + imageRevision + `"`} {
		info := regexp.MustCompile("(?m)^shaker_exporter_build_info{.*").FindString(metrics)
		if !strings.Contains(info, want) {
			t.Errorf("%s has no %s", info, want)
		}
	}
	pid := pidOf(t, "shaker_exporter")
	for field, want := range map[string]string{
		"Uid": "65534\t65534\t65534\t65534", "Gid": "65534\t65534\t65534\t65534", "Groups": "65534",
		"CapPrm": noCapabilities, "CapEff": noCapabilities, "CapInh": noCapabilities, "CapAmb": noCapabilities,
	} {
		if got := statusOf(t, pid, field); got != want {
			t.Errorf("%s is %q, want %q", field, got, want)
		}
	}
	out, err := b.command("run", container, "--", "/shaker_exporter", "--version").CombinedOutput()
	if want := "build date:       " + imageBuildDate; err != nil || !strings.Contains(string(out), want) {
		t.Errorf("--version: %v\n%s, want %s", err, out, want)
	}
	syscall.Kill(pid, syscall.SIGTERM)
	if code := p.Wait(); code != 0 {
		t.Errorf("it ends with %d", code)
	}
}

// noCapabilities is what a process without any has in its status.
const noCapabilities = "0000000000000000"

// pidOf returns the one process that runs a program in this network namespace.
func pidOf(t *testing.T, program string) int {
	t.Helper()
	pids := pidsOf(t, program)
	if len(pids) != 1 {
		t.Fatalf("%s is run by %d", program, pids)
	}
	return pids[0]
}

func pidsOf(t *testing.T, program string) (pids []int) {
	t.Helper()
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range processes {
		path, _ := os.Readlink(process + "/exe") // one that has just ended has none
		if namespace, _ := os.Readlink(process + "/ns/net"); filepath.Base(path) == program && namespace == here {
			var pid int
			fmt.Sscan(filepath.Base(process), &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

// statusOf returns a field of a process' status in /proc.
func statusOf(t *testing.T, pid int, field string) string {
	t.Helper()
	for line := range strings.Lines(lab.Read(t, fmt.Sprintf("/proc/%d/status", pid))) {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
