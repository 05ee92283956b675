package examples

import (
	"bytes"
	"cmp"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

const (
	composeFile    = "compose/compose.yml"
	rawComposeFile = "compose/raw.yml"
)

// A service is a service of compose.yml, with the fields that the tests check.
type service struct {
	Image, Build            string
	Command, Volumes, Ports []string
	CapDrop                 []string `yaml:"cap_drop"`
	CapAdd                  []string `yaml:"cap_add"`
	User                    string
	SecurityOpt             []string `yaml:"security_opt"`
	ReadOnly                bool     `yaml:"read_only"`
	Healthcheck             struct{ Test []string }
}

// A composition is the content of compose.yml, with the fields that the tests check.
type composition struct {
	Services map[string]service
	Volumes  map[string]any
}

// port returns the port on which the service listens in its container.
func (s service) port() (port int) {
	if len(s.Ports) == 1 {
		fmt.Sscanf(s.Ports[0], "127.0.0.1:%d:%d", new(int), &port)
	}
	return port
}

// parseCompose reads the text of compose.yml.
func parseCompose(text string) (c composition, err error) {
	return c, yaml.Unmarshal([]byte(text), &c)
}

var (
	pinned  = regexp.MustCompile(`^[a-z/]+:v?\d+\.\d+\.\d+$`)
	private = regexp.MustCompile(`^127\.0\.0\.1:\d+:\d+$`)
)

// composeProblems returns what is wrong with the content of compose.yml. It does not check the schema.
func composeProblems(text string) (problems []string) {
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	c, err := parseCompose(text)
	if err != nil {
		return []string{err.Error()}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Services)) {
		s := c.Services[name]
		if s.Build == "" && !pinned.MatchString(s.Image) {
			complain("%s: image %s is not pinned", name, s.Image)
		}
		if len(s.Ports) != 1 || !private.MatchString(s.Ports[0]) {
			complain("%s: ports %s are not one port of 127.0.0.1", name, s.Ports)
		}
		if !slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}) {
			complain("%s: security_opt is %s", name, s.SecurityOpt)
		}
		for _, volume := range s.Volumes {
			from, rest, _ := strings.Cut(volume, ":")
			if _, named := c.Volumes[from]; named {
				continue
			}
			if info, err := os.Stat(filepath.Join("compose", from)); err != nil {
				complain("%s: %v", name, err)
			} else if !info.IsDir() {
				complain("%s: %s is a file, and the container would not see its replacement", name, from)
			}
			if !strings.HasSuffix(rest, ":ro") {
				complain("%s: %s is writable", name, from)
			}
		}
		if s.Build == "" {
			continue
		}
		if _, err := os.Stat(filepath.Join("compose", s.Build, "Dockerfile")); err != nil {
			complain("%s: %v", name, err)
		}
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) {
			complain("%s: has capabilities or a writable file system", name)
		}
	}
	return problems
}

// docker-compose accepts compose.yml, all mounted files exist, and only this machine can reach the ports. The controls
// are files with mistakes.
func TestCompose(t *testing.T) {
	text := lab.Read(t, composeFile)
	for _, problem := range composeProblems(text) {
		t.Errorf("%s has a problem: %s", composeFile, problem)
	}
	for _, c := range []struct{ old, new, want string }{
		{
			old: "prom/prometheus:v3.16.0", new: "prom/prometheus:latest",
			want: "prometheus: image prom/prometheus:latest is not pinned",
		},
		{
			old: "127.0.0.1:9093:9093", new: "9093:9093",
			want: "alertmanager: ports [9093:9093] are not one port of 127.0.0.1",
		},
		{
			old: "../rules:", new: "../rule:",
			want: "prometheus: stat rule: no such file or directory",
		},
		{
			old: "..:/etc/alertmanager:ro", new: "..:/etc/alertmanager",
			want: "alertmanager: .. is writable",
		},
		{
			old: ".:/etc/shaker_exporter:ro", new: "./shaker.yml:/etc/shaker_exporter/shaker.yml:ro",
			want: "shaker-exporter: ./shaker.yml is a file, and the container would not see its replacement",
		},
		{
			old: "cap_drop: [ALL]", new: "cap_drop: []",
			want: "shaker-exporter: has capabilities or a writable file system",
		},
		{
			old: "build: ../..", new: "build: ..",
			want: "shaker-exporter: stat Dockerfile: no such file or directory",
		},
	} {
		got := composeProblems(lab.Replace(t, composeFile, text, c.old, c.new))
		if want := []string{c.want}; !slices.Equal(got, want) {
			t.Errorf("with %s, the problems are %q, want %q", c.new, got, want)
		}
	}
	t.Run("docker-compose", func(t *testing.T) {
		program := lab.Program(t, "docker-compose", "docker-compose")
		check := func(files ...string) (string, error) {
			var args []string
			for _, file := range files {
				args = append(args, "--file="+file)
			}
			out, err := exec.Command(program, append(args, "config", "--quiet")...).CombinedOutput()
			return string(out), err
		}
		if out, err := check(composeFile); err != nil || out != "" {
			t.Errorf("docker-compose config: %v, want no error and no output\n%s", err, out)
		}
		if out, err := check(composeFile, rawComposeFile); err != nil || out != "" {
			t.Errorf("docker-compose config with %s: %v, want no error and no output\n%s", rawComposeFile, err, out)
		}
		misspelled := lab.Write(t, t.TempDir(), "compose.yml", strings.Replace(text, "cap_drop:", "cap_drops:", 1))
		if out, err := check(misspelled); err == nil || !strings.Contains(out, "'cap_drops'") {
			t.Errorf("docker-compose config, with a misspelled key: %v, want an error about 'cap_drops'\n%s", err, out)
		}
	})
}

// With raw.yml, the exporter is root with one capability and has one more argument. Everything else stays as it is.
func TestComposeRaw(t *testing.T) {
	c, err := parseCompose(lab.Read(t, composeFile))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := parseCompose(lab.Read(t, rawComposeFile))
	if err != nil {
		t.Fatal(err)
	}
	got, want := raw.Services["shaker-exporter"], service{
		Command: append(c.Services["shaker-exporter"].Command, "--probe.engine=raw"),
		User:    "0:0", CapAdd: []string{"NET_RAW"},
	}
	if !reflect.DeepEqual(got, want) || len(raw.Services) != 1 {
		t.Errorf("%s changes the services to %+v, want only the exporter, to %+v", rawComposeFile, raw.Services, want)
	}
}

// The services find each other by their names and work together with the files and arguments that they have in their
// containers: the targets are probed, the rules are loaded, Prometheus finds Alertmanager, and the health check is
// right. As in containers, each service has its own address, to which localhost resolves, after ::1, where no service
// listens. Only the scrape interval is shorter.
func TestComposeServices(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	alertmanager := lab.Program(t, "prometheus-alertmanager", "prometheus-alertmanager")
	prometheusProgram := lab.GoProgram(t, "prometheus")
	lab.Program(t, "sh", "dash") // for process.WithFiles
	simnet.NewWire(t, nil, "192.0.2.0/24")
	c, err := parseCompose(lab.Read(t, composeFile))
	if err != nil {
		t.Fatalf("decode %s: %v", composeFile, err)
	}
	// As a Go module, version 3.16.0 is v0.316.0.
	info, err := buildinfo.ReadFile(prometheusProgram)
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`^v0\.3(\d\d)\.`).ReplaceAllString(info.Main.Version, "v3.$1.")
	if want := "prom/prometheus:" + version; c.Services["prometheus"].Image != want {
		t.Errorf("the image of prometheus is %s, want the version that this test runs, %s",
			c.Services["prometheus"].Image, want)
	}
	dir := t.TempDir()
	addresses := make(map[string]string)
	var names string
	for i, name := range slices.Sorted(maps.Keys(c.Services)) {
		addresses[name] = fmt.Sprintf("127.0.1.%d", i+1)
		names += addresses[name] + " " + name + "\n"
	}
	isolated := func(name string, program string, args ...string) *exec.Cmd {
		return process.WithFiles(t, exec.Command(program, args...), map[string]string{
			"/etc/hosts": lab.Write(t, dir, name+".hosts", "::1 localhost\n"+addresses[name]+" localhost\n"+names),
			// No DNS server listens there.
			"/etc/resolv.conf": lab.Write(t, dir, "resolv.conf", "nameserver 127.0.0.1\n"),
		})
	}
	command := func(name, program string, args ...string) (cmd *exec.Cmd, address string) {
		t.Helper()
		s := c.Services[name]
		address = net.JoinHostPort(addresses[name], strconv.Itoa(s.port()))
		args = append(args, s.contained(t, filepath.Join(dir, name))...)
		return isolated(name, program, append(args, "--web.listen-address="+address)...), address
	}
	start := func(name, program string, args ...string) {
		t.Helper()
		cmd, _ := command(name, program, args...)
		s := c.Services[name]
		process.Start(t, cmd).Listening(s.port())
	}

	shaker := exporter.Command(t).Path
	health := c.Services["shaker-exporter"].Healthcheck.Test
	if len(health) < 2 || health[0] != "CMD" || health[1] != "/shaker_exporter" {
		t.Fatalf("the health check is %q, want CMD, /shaker_exporter and arguments", health)
	}
	healthy := func() error { return isolated("shaker-exporter", shaker, health[2:]...).Run() }
	if healthy() == nil {
		t.Error("the health check succeeds before the exporter runs, want a failure")
	}
	// In its container, the exporter listens on all addresses.
	start("shaker-exporter", shaker, "--web.listen-address=127.0.0.1:10115")
	if err := healthy(); err != nil {
		t.Errorf("the health check of the running exporter: %v, want no error", err)
	}
	start("alertmanager", alertmanager, "--cluster.listen-address=") // it is not a cluster
	cmd, address := command("prometheus", prometheusProgram)
	config := filepath.Join(dir, "prometheus/etc/prometheus/prometheus.yml")
	faster := lab.Replace(t, config, lab.Read(t, config), "scrape_interval: 15s", "scrape_interval: 1s")
	if err := os.WriteFile(config, []byte(faster), 0o644); err != nil {
		t.Fatal(err)
	}
	prometheus := process.ServePrometheus(t, cmd, address)

	want := map[string]string{
		"prometheus:9090": "open", "alertmanager:9093": "open", "grafana:3000": "refused", "192.0.2.1:443": "timeout",
	}
	got := make(map[string]string)
	lab.Eventually(t, "each target has been probed", func() bool {
		for _, sample := range prometheus.Query("probe_result_info") {
			got[sample.Labels["instance"]] = sample.Labels["result"]
		}
		return len(got) == len(want)
	})
	if !maps.Equal(got, want) {
		t.Errorf("the results of the targets are %v, want %v", got, want)
	}
	lab.Eventually(t, "the exporter itself has been scraped", func() bool {
		return len(prometheus.Query(`shaker_exporter_build_info{job="shaker_exporter"}`)) == 1
	})
	var found struct{ ActiveAlertmanagers []struct{ URL string } }
	lab.Eventually(t, "Alertmanager is found", func() bool {
		prometheus.API("alertmanagers", &found)
		return len(found.ActiveAlertmanagers) == 1
	})
	if url := found.ActiveAlertmanagers[0].URL; url != "http://alertmanager:9093/api/v2/alerts" {
		t.Errorf("the URL of Alertmanager is %s, want http://alertmanager:9093/api/v2/alerts", url)
	}
	var active json.RawMessage
	prometheus.API("rules", &active)
	ruleFile := regexp.MustCompile(`(?m)^  - (rules/.*\.yml)$`)
	ruleFiles := ruleFile.FindAllStringSubmatch(lab.Read(t, "prometheus.yml"), -1)
	if ruleFiles == nil {
		t.Error("prometheus.yml has no rule files")
	}
	for _, file := range ruleFiles {
		for _, r := range rulesOf(t, file[1]) {
			if name := cmp.Or(r.Alert, r.Record); !bytes.Contains(active, []byte(`"name":"`+name+`"`)) {
				t.Errorf("the rule %s of %s, which prometheus.yml has, is not active", name, file[1])
			}
		}
	}
	// Grafana itself is not installed. The URL of its data source is that of a service.
	const sources = "grafana/provisioning/datasources/prometheus.yml"
	source := regexp.MustCompile(`url: http://([a-z-]+):(\d+)\n`).FindStringSubmatch(lab.Read(t, sources))
	if source == nil || source[2] != strconv.Itoa(c.Services[source[1]].port()) {
		t.Errorf("the URL in %s is %q, want a service and its port", sources, source)
	}
}

// contained copies the files that a service mounts to a directory that stands for the root of its container. It
// returns the arguments of the service with paths in that directory.
func (s service) contained(t *testing.T, root string) (args []string) {
	t.Helper()
	for _, volume := range s.Volumes {
		parts := strings.Split(volume, ":")
		from, to := filepath.Join("compose", parts[0]), filepath.Join(root, parts[1])
		if len(parts) == 2 { // a named volume, which is empty
			from = t.TempDir()
		}
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
	}
	for _, arg := range s.Command {
		args = append(args, strings.Replace(arg, "=/", "="+root+"/", 1))
	}
	return args
}
