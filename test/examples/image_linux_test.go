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
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// The build arguments.
const (
	imageVersion   = "v1.2.3"
	imageRevision  = "0123456789abcdef0123456789abcdef01234567"
	imageBuildDate = "2001-02-03T04:05:06Z"
)

// The Dockerfile makes an image with the exporter and its licenses. The exporter knows its version, and probes without
// root and without capabilities. The controls are images that differ in one property.
func TestImage(t *testing.T) {
	b := newBuilder(t)
	b.build("shaker", "../Dockerfile",
		"VERSION="+imageVersion, "REVISION="+imageRevision, "BUILD_DATE="+imageBuildDate)
	for _, problem := range b.problems("shaker") {
		t.Errorf("the image of the Dockerfile has a problem: %s", problem)
	}
	b.run("shaker")

	for instruction, want := range map[string]string{
		"USER 0":                  "the user is 0",
		"COPY LICENSE /licenses/": "LICENSE -rw-r--r-- is of no module",
		"COPY LICENSE /COPY": "the files are /COPY -rw-r--r-- /LICENSE -rw-r--r-- " +
			"/shaker_exporter -rwxr-xr-x",
		`ENTRYPOINT ["/bin"]`:               "the entry point is [/bin]",
		"EXPOSE 9115":                       "the ports are map[10115/tcp:{} 9115/tcp:{}]",
		"LABEL " + label("version") + "=v2": "the label " + label("version") + " is v2",
	} {
		b.build("control", lab.Write(t, t.TempDir(), "Dockerfile", "FROM localhost/shaker\n"+instruction+"\n"))
		if got := b.problems("control"); !slices.Equal(got, []string{want}) {
			t.Errorf("with the instruction %s, the problems are %q, want %q", instruction, got, want)
		}
	}
}

// The image for another platform contains a program for that platform, compiled on this one.
func TestImageForAnotherPlatform(t *testing.T) {
	other, want := "arm64", elf.EM_AARCH64
	if runtime.GOARCH == other {
		other, want = "amd64", elf.EM_X86_64
	}
	b := newBuilder(t)
	// Newer builders set BUILDPLATFORM.
	b.buildFor("linux/"+other, "shaker", "../Dockerfile", "BUILDPLATFORM=linux/"+runtime.GOARCH)
	if got := b.inspect("shaker").Architecture; got != other {
		t.Errorf("the architecture of the image for %s = %s, want %s", other, got, other)
	}
	file := filepath.Join(b.mount("shaker"), "shaker_exporter")
	program, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	if program.Machine != want {
		t.Errorf("the machine of the program for %s = %v, want %v", other, program.Machine, want)
	}
}

// The build context contains LICENSE, scripts/licenses.sh and the files that the compiler reads for any platform, and
// no other files.
func TestImageContext(t *testing.T) {
	b := newBuilder(t)
	b.build("context", lab.Write(t, t.TempDir(), "Dockerfile", "FROM scratch\nCOPY . /\n"))
	var got []string
	for _, file := range contents(t, b.mount("context")) {
		got = append(got, strings.Fields(file)[0])
	}
	want := []string{"/LICENSE", "/go.mod", "/go.sum", "/scripts/licenses.sh"}
	out, err := exec.Command(b.golang, "list", "-deps", "-f", `{{if and .Module .Module.Main}}{{$dir := .Dir}}
		{{- range .GoFiles}}{{$dir}}/{{.}}{{"\n"}}{{end -}}
		{{- range .IgnoredGoFiles}}{{$dir}}/{{.}}{{"\n"}}{{end -}}
		{{- range .EmbedFiles}}{{$dir}}/{{.}}{{"\n"}}{{end -}}{{end}}`, "..").Output()
	if err != nil {
		t.Fatalf("go list -deps ..: %v", err)
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
		t.Errorf("the build context contains\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A builder builds images, without a daemon and without a network.
type builder struct {
	t       *testing.T
	program string
	golang  string // the go command
	dir     string
	volumes []string // directories of this machine that the commands of a build see
}

// newBuilder returns a builder with a substitute for the official image of Go. The substitute has a shell. Its builds
// see this machine's Go, its build cache, and the modules that it has downloaded.
func newBuilder(t *testing.T) *builder {
	t.Helper()
	lab.SkipWithRace(t)
	lab.NeedRoot(t)
	b := &builder{t: t, program: lab.Program(t, "buildah", "buildah"), golang: lab.Program(t, "go", "golang-go"),
		dir: t.TempDir()}
	busybox, err := os.ReadFile(lab.Program(t, "busybox", "busybox-static"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.buildah("rm", "--all")
		b.buildah("rmi", "--all", "--force")
	})
	dockerfile := lab.Read(t, "../Dockerfile")
	from := regexp.MustCompile(`(?m)^FROM --platform=\S+ (golang:\S+) AS`).FindStringSubmatch(dockerfile)
	if from == nil {
		t.Fatalf("the Dockerfile has no stage with an image of Go:\n%s", dockerfile)
	}
	file := lab.Write(t, b.dir, "golang/Dockerfile", `FROM scratch
COPY busybox /bin/sh
RUN ["/bin/sh", "-c", "mkdir /root /tmp"]
ENV PATH=/usr/local/go/bin:/bin GOPATH=/go GOCACHE=/cache GOPROXY=file:///proxy GOSUMDB=off GOTOOLCHAIN=local
`)
	context := filepath.Dir(file)
	if err := os.WriteFile(filepath.Join(context, "busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	b.buildah("build", "--tag=docker.io/library/"+from[1], context)
	b.volumes = []string{
		b.goEnv("GOROOT") + ":/usr/local/go:ro",
		b.goEnv("GOCACHE") + ":/cache",
		b.goEnv("GOMODCACHE") + "/cache/download:/proxy:ro",
	}
	return b
}

// goEnv returns a variable of Go's environment.
func (b *builder) goEnv(name string) string {
	b.t.Helper()
	out, err := exec.Command(b.golang, "env", name).Output()
	if err != nil {
		b.t.Fatalf("go env %s: %v", name, err)
	}
	return strings.TrimSpace(string(out))
}

// command returns a buildah command that uses the builder's own storage.
func (b *builder) command(args ...string) *exec.Cmd {
	cmd := exec.Command(b.program, append([]string{"--root=" + filepath.Join(b.dir, "root"),
		"--runroot=" + filepath.Join(b.dir, "runroot"), "--storage-driver=vfs"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+b.dir, "BUILDAH_ISOLATION=chroot")
	return cmd
}

// buildah runs buildah and returns its output without the space around it.
func (b *builder) buildah(args ...string) string {
	b.t.Helper()
	cmd := b.command(args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("buildah %s: %v\n%s%s", strings.Join(args, " "), err, out, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// build builds an image for this machine from the repository.
func (b *builder) build(tag, dockerfile string, buildArgs ...string) {
	b.t.Helper()
	b.buildFor("linux/"+runtime.GOARCH, tag, dockerfile, buildArgs...)
}

// buildFor builds an image for a platform from the repository.
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

// An imageConfig is the configuration of an image.
type imageConfig struct {
	Architecture string
	Config       struct {
		User         string
		Entrypoint   []string
		ExposedPorts map[string]struct{}
		Labels       map[string]string
	}
}

// inspect returns the configuration of an image.
func (b *builder) inspect(image string) imageConfig {
	b.t.Helper()
	var inspected struct{ OCIv1 imageConfig }
	out := b.buildah("inspect", "--type=image", image)
	if err := json.Unmarshal([]byte(out), &inspected); err != nil {
		b.t.Fatalf("buildah inspect %s: %v in %s", image, err, out)
	}
	return inspected.OCIv1
}

// mount returns a directory with the files of an image.
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

// label returns the name of a predefined label of the Open Container Initiative.
func label(name string) string { return "org.opencontainers.image." + name }

// problems returns the differences between an image and the wanted one.
func (b *builder) problems(image string) (problems []string) {
	b.t.Helper()
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
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
	problems = append(problems, lab.LicenseComplaints(program, licenses)...)
	if got := strings.Join(others, " "); got != "/LICENSE -rw-r--r-- /shaker_exporter -rwxr-xr-x" {
		complain("the files are %s", got)
	}
	return problems
}

// run runs a container of an image without capabilities, and probes with it.
func (b *builder) run(image string) {
	t := b.t
	t.Helper()
	container := b.buildah("from", "--pull-never", image)
	run := []string{"run", "--cap-drop=all", container, "--"}
	p := process.Start(t, b.command(append(run, b.inspect(image).Config.Entrypoint...)...))
	p.Listening(exporter.Port)
	const probe = "http://localhost:10115/probe?target=localhost:10115"
	if body := lab.Get(t, probe); !strings.Contains(body, "\nprobe_success 1\n") {
		t.Errorf("GET %s, in the container: want probe_success 1 in\n%s", probe, body)
	}
	metrics := lab.Get(t, "http://localhost:10115/metrics")
	info := regexp.MustCompile("(?m)^shaker_exporter_build_info{.*").FindString(metrics)
	version := strings.TrimPrefix(imageVersion, "v") // the exporter's versions have no v
	for _, want := range []string{`version="` + version + `"`, `revision="` + imageRevision + `"`} {
		if !strings.Contains(info, want) {
			t.Errorf("build info in /metrics = %q, want %s in it", info, want)
		}
	}
	pid := pidOf(t, "shaker_exporter")
	for field, want := range map[string]string{
		"Uid": "65534\t65534\t65534\t65534", "Gid": "65534\t65534\t65534\t65534", "Groups": "65534",
		"CapPrm": noCapabilities, "CapEff": noCapabilities, "CapInh": noCapabilities, "CapAmb": noCapabilities,
	} {
		if got := statusOf(t, pid, field); got != want {
			t.Errorf("%s of the exporter in the container = %q, want %q", field, got, want)
		}
	}
	out, err := b.command("run", container, "--", "/shaker_exporter", "--version").CombinedOutput()
	if want := "build date:       " + imageBuildDate; err != nil || !strings.Contains(string(out), want) {
		t.Errorf("shaker_exporter --version, in the container: %v, want %q in\n%s", err, want, out)
	}
	b.runRaw(container)
	syscall.Kill(pid, syscall.SIGTERM)
	if code := p.Wait(); code != 0 {
		t.Errorf("exit code of the container after SIGTERM = %d, want 0", code)
	}
}

// runRaw probes without sockets in a container. Root may do so with one capability. The user of the image may not.
func (b *builder) runRaw(container string) {
	b.t.Helper()
	for _, c := range []struct {
		args []string
		want string
	}{
		{args: []string{"--user=0:0", "--cap-add=CAP_NET_RAW"}, want: "seq=1 open"},
		{args: []string{"--user=0:0", "--cap-drop=CAP_NET_RAW"}, want: "\nhint: containers: docker run --user=0"},
		{args: []string{"--cap-add=CAP_NET_RAW"}, want: "\nhint: containers: docker run --user=0"},
	} {
		args := append([]string{"run"}, append(c.args, container, "--", "/shaker_exporter",
			"probe", "--probe.engine=raw", "127.0.0.1:10115")...)
		out, _ := b.command(args...).CombinedOutput() // exits with 1 without the capability
		if !strings.Contains(string(out), c.want) {
			b.t.Errorf("buildah %s prints\n%s\nwant %q in it", strings.Join(args, " "), out, c.want)
		}
	}
}

// noCapabilities is an empty capability set in /proc/PID/status.
const noCapabilities = "0000000000000000"

// pidOf returns the process that runs a program in this network namespace. It fails the test unless there is exactly
// one such process.
func pidOf(t *testing.T, program string) int {
	t.Helper()
	pids := pidsOf(t, program)
	if len(pids) != 1 {
		t.Fatalf("%s is run by the processes %v, want one process", program, pids)
	}
	return pids[0]
}

// pidsOf returns the processes that run a program in this network namespace.
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
		path, _ := os.Readlink(process + "/exe") // "" if the process has just ended
		if namespace, _ := os.Readlink(process + "/ns/net"); filepath.Base(path) == program && namespace == here {
			var pid int
			fmt.Sscan(filepath.Base(process), &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

// statusOf returns a field of /proc/PID/status, "" if the field is missing.
func statusOf(t *testing.T, pid int, field string) string {
	t.Helper()
	for line := range strings.Lines(lab.Read(t, fmt.Sprintf("/proc/%d/status", pid))) {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
