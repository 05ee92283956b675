package examples

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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

const composeFile = "compose/compose.yml"

// A service is what is read of one in compose.yml.
type service struct {
	Image, Build            string
	Command, Volumes, Ports []string
	CapDrop                 []string `yaml:"cap_drop"`
	SecurityOpt             []string `yaml:"security_opt"`
	ReadOnly                bool     `yaml:"read_only"`
	Healthcheck             struct{ Test []string }
}

// A composition is what is read of compose.yml.
type composition struct {
	Services map[string]service
	Volumes  map[string]any
}

// port returns the port that the service listens on in its container.
func (s service) port() (port int) {
	if len(s.Ports) == 1 {
		fmt.Sscanf(s.Ports[0], "127.0.0.1:%d:%d", new(int), &port)
	}
	return port
}

func parseCompose(text string) (c composition, err error) {
	return c, yaml.Unmarshal([]byte(text), &c)
}

var (
	pinned  = regexp.MustCompile(`^[a-z/]+:v?\d+\.\d+\.\d+$`)
	private = regexp.MustCompile(`^127\.0\.0\.1:\d+:\d+$`)
)

// composeComplaints says what is wrong with compose.yml besides its form.
func composeComplaints(text string) (wrong []string) {
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
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
			complain("%s: ports %s", name, s.Ports)
		}
		if !slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}) {
			complain("%s: security_opt %s", name, s.SecurityOpt)
		}
		for _, volume := range s.Volumes {
			from, rest, _ := strings.Cut(volume, ":")
			if _, named := c.Volumes[from]; named {
				continue
			}
			if info, err := os.Stat(filepath.Join("compose", from)); err != nil {
				complain("%s: %v", name, err)
			} else if !info.IsDir() {
				complain("%s: %s is a file, and one in its place would not be seen", name, from)
			}
			if !strings.HasSuffix(rest, ":ro") {
				complain("%s: %s can be written", name, from)
			}
		}
		if s.Build == "" {
			continue
		}
		if _, err := os.Stat(filepath.Join("compose", s.Build, "Dockerfile")); err != nil {
			complain("%s: %v", name, err)
		}
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) {
			complain("%s: may do what it need not", name)
		}
	}
	return wrong
}

// docker-compose accepts compose.yml, what that mounts is there, and nothing can be reached
// from elsewhere. The controls are files with mistakes.
func TestCompose(t *testing.T) {
	program := lab.Program(t, "docker-compose", "docker-compose")
	check := func(file string) (string, error) {
		out, err := exec.Command(program, "--file="+file, "config", "--quiet").CombinedOutput()
		return string(out), err
	}
	if out, err := check(composeFile); err != nil || out != "" {
		t.Errorf("%v: %s", err, out)
	}
	text := lab.Read(t, composeFile)
	for _, w := range composeComplaints(text) {
		t.Error(w)
	}

	broken := lab.Write(t, t.TempDir(), "compose.yml", strings.Replace(text, "cap_drop:", "cap_drops:", 1))
	if out, err := check(broken); err == nil || !strings.Contains(out, "'cap_drops'") {
		t.Errorf("of a misspelled key docker-compose says: %v %s", err, out)
	}
	for _, c := range []struct{ old, new, want string }{
		{"prom/prometheus:v3.16.0", "prom/prometheus:latest", "prometheus: image prom/prometheus:latest is not pinned"},
		{"127.0.0.1:9093:9093", "9093:9093", "alertmanager: ports [9093:9093]"},
		{"../rules:", "../rule:", "prometheus: stat rule: no such file or directory"},
		{"..:/etc/alertmanager:ro", "..:/etc/alertmanager", "alertmanager: .. can be written"},
		{".:/etc/shaker_exporter:ro", "./shaker.yml:/etc/shaker_exporter/shaker.yml:ro", "shaker-exporter: ./shaker.yml is a file, and one in its place would not be seen"},
		{"cap_drop: [ALL]", "cap_drop: []", "shaker-exporter: may do what it need not"},
		{"build: ../..", "build: ..", "shaker-exporter: stat Dockerfile: no such file or directory"},
	} {
		if strings.Count(text, c.old) != 1 {
			t.Fatalf("compose.yml has no %s", c.old)
		}
		if got := composeComplaints(strings.Replace(text, c.old, c.new, 1)); !slices.Equal(got, []string{c.want}) {
			t.Errorf("with %s: %q, want %q", c.new, got, c.want)
		}
	}
}

// The services find each other by their names and do what they are there for, with the files
// and arguments that they have in their containers: targets are probed, rules are in force,
// Alertmanager is told, and who is asked for health says the truth. As in containers of its own,
// each has an address of its own, and that is what it calls localhost, unless that is ::1, where
// nobody listens.
func TestComposeServices(t *testing.T) {
	simnet.NewWire(t, nil, "192.0.2.0/24")
	c, err := parseCompose(lab.Read(t, composeFile))
	if err != nil {
		t.Fatal(err)
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
			"/etc/hosts":       lab.Write(t, dir, name+".hosts", "::1 localhost\n"+addresses[name]+" localhost\n"+names),
			"/etc/resolv.conf": lab.Write(t, dir, "resolv.conf", "nameserver 127.0.0.1\n"), // where there is none
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
		t.Fatalf("the health check is %q", health)
	}
	healthy := func() error { return isolated("shaker-exporter", shaker, health[2:]...).Run() }
	if healthy() == nil {
		t.Error("the exporter is healthy though it does not run")
	}
	start("shaker-exporter", shaker, "--web.listen-address=127.0.0.1:10115") // too: in its container it listens everywhere
	if err := healthy(); err != nil {
		t.Errorf("the exporter is not healthy: %v", err)
	}
	start("alertmanager", lab.Program(t, "prometheus-alertmanager", "prometheus-alertmanager"), "--cluster.listen-address=") // there is no other to find
	cmd, address := command("prometheus", lab.Program(t, "prometheus", "prometheus"))
	prometheus := process.ServePrometheus(t, cmd, address)

	want := map[string]string{"prometheus:9090": "open", "alertmanager:9093": "open", "grafana:3000": "refused", "192.0.2.1:443": "timeout"}
	got := make(map[string]string)
	lab.Eventually(t, "each target has been probed", func() bool {
		for _, sample := range prometheus.Query("probe_result_info") {
			got[sample.Labels["instance"]] = sample.Labels["result"]
		}
		return len(got) == len(want)
	})
	if !maps.Equal(got, want) {
		t.Errorf("the targets are %v, want %v", got, want)
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
		t.Errorf("Alertmanager is %s", url)
	}
	var inForce json.RawMessage
	prometheus.API("rules", &inForce)
	ruleFiles := regexp.MustCompile(`(?m)^  - (rules/.*\.yml)$`).FindAllStringSubmatch(lab.Read(t, "prometheus.yml"), -1)
	if ruleFiles == nil {
		t.Error("the simplest Prometheus has no rules")
	}
	for _, file := range ruleFiles {
		for _, r := range rulesOf(t, file[1]) {
			if name := cmp.Or(r.Alert, r.Record); !bytes.Contains(inForce, []byte(`"name":"`+name+`"`)) {
				t.Errorf("of %s, which the simplest Prometheus has, %s is not in force", file[1], name)
			}
		}
	}
	// Grafana is not here to be asked. Who it asks is a service, at its port.
	source := regexp.MustCompile(`url: http://([a-z-]+):(\d+)\n`).FindStringSubmatch(lab.Read(t, "grafana/provisioning/datasources/prometheus.yml"))
	if source == nil || source[2] != strconv.Itoa(c.Services[source[1]].port()) {
		t.Errorf("Grafana asks %q", source)
	}
}

// contained lays the files that a service mounts below a directory, as they are in its
// container, and returns its arguments with the paths that they have there.
func (s service) contained(t *testing.T, root string) (args []string) {
	t.Helper()
	for _, volume := range s.Volumes {
		parts := strings.Split(volume, ":")
		from, to := filepath.Join("compose", parts[0]), filepath.Join(root, parts[1])
		if len(parts) == 2 { // one that is empty at first
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
