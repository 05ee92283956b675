package examples

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

const (
	unitFile     = "systemd/shaker_exporter.service"
	unitProgram  = "/usr/local/bin/shaker_exporter"
	exposureGoal = "11" // 1.1 of 10: most of that is the network, which is its work
)

// systemd understands every word of the unit, and finds it hardly exposed. The controls are a
// misspelled setting, and the unit without one restriction or another.
func TestUnit(t *testing.T) {
	analyze := lab.Program(t, "systemd-analyze", "systemd")
	unit := strings.ReplaceAll(lab.Read(t, unitFile), unitProgram, exporter.Command(t).Path)
	verify := func(unit string) string {
		file := lab.Write(t, t.TempDir(), "shaker_exporter.service", unit)
		out, err := exec.Command(analyze, "verify", "--man=no", file).CombinedOutput()
		if err != nil && len(out) == 0 {
			t.Fatal(err)
		}
		return string(out)
	}
	security := func(unit string) error {
		file := lab.Write(t, t.TempDir(), "shaker_exporter.service", unit)
		return exec.Command(analyze, "security", "--offline=yes", "--threshold="+exposureGoal, file).Run()
	}
	if out := verify(unit); out != "" {
		t.Errorf("systemd-analyze verify:\n%s", out)
	}
	if err := security(unit); err != nil {
		t.Errorf("systemd-analyze security: %v", err)
	}
	if out := verify(strings.Replace(unit, "ProtectClock=", "ProtectClocks=", 1)); !strings.Contains(out, "Unknown key 'ProtectClocks'") {
		t.Errorf("of a misspelled setting systemd-analyze verify says %q", out)
	}
	for _, setting := range []string{"DynamicUser", "CapabilityBoundingSet", "PrivateUsers", "RestrictAddressFamilies", "SystemCallFilter"} {
		if security(regexp.MustCompile("(?m)^"+setting+"=.*").ReplaceAllString(unit, "")) == nil {
			t.Errorf("without %s the unit is as little exposed", setting)
		}
	}
}

// The longest probe ends before systemd loses its patience.
func TestUnitWaitsForRunningProbes(t *testing.T) {
	limit := regexp.MustCompile(`(?m)^TimeoutStopSec=(\S+)$`).FindStringSubmatch(lab.Read(t, unitFile))
	if limit == nil {
		t.Fatal("no TimeoutStopSec")
	}
	if d, err := time.ParseDuration(limit[1]); err != nil || d <= config.MaxTimeout+collector.AnswerTime {
		t.Errorf("TimeoutStopSec is %s, a probe may take %v", limit[1], config.MaxTimeout+collector.AnswerTime)
	}
}

// sandboxProbes are the probes that an exporter makes in the sandbox: all that the
// configuration can make it do. Each has its result, or the status of its answer.
var sandboxProbes = []struct{ target, module, want string }{
	{"192.0.2.1:80", "tcp_connect", `result="open"`},
	{"[2001:db8::1]:80", "tcp_connect", `result="open"`},
	{"web.test:80", "tcp_connect", `result="open"`},
	{"truncated.web.test:80", "tcp_connect", `result="open"`},
	{"web.test:80", "every_address", `probe_addresses_open 2`},
	{"absent.test:80", "tcp_connect", `result="dns_not_found"`},
	{"192.0.2.2:80", "tcp_connect", `result="refused"`},
	{"192.0.2.3:80", "tcp_connect", `icmp="admin_prohibited"`},
	{"[2001:db8::3]:80", "tcp_connect", `icmp="admin_prohibited"`},
	{"192.0.2.4:80", "short", `result="timeout"`},
	{"192.0.2.5:80", "path", `probe_path_hop_info{hop="2",address="198.51.100.2",icmp="ttl_exceeded"}`},
	{"[2001:db8::5]:80", "path", `probe_path_hop_info{hop="2",address="2001:db8:1::2",icmp="ttl_exceeded"}`},
	{"192.0.2.1:80", "marked", `result="open"`},
	{"192.0.2.1:80", "fin", `probe_tcp_ack_sent 1`},
	{"[fe80::1%DEVICE]:80", "tcp_connect", `result="open"`},
	{"169.254.169.254:80", "tcp_connect", `targets.deny 169.254.169.254/32:* forbids it`},
}

const sandboxConfig = `
targets: {deny: ["169.254.169.254:*"]}
modules:
  tcp_connect: {prober: tcp}
  every_address: {prober: tcp, tcp: {addresses: all}}
  short: {prober: tcp, timeout: 300ms}
  path: {prober: tcp, tcp: {path: always}}
  marked: {prober: tcp, tcp: {interface: DEVICE, source_ports: 40000-40999, dscp: 46, ttl: 60}}
  fin: {prober: tcp, tcp: {close: fin}}
`

// A real systemd runs the unit, and in its sandbox the exporter can do what it can do outside,
// but has no privilege. The controls are sandboxes that are narrower.
func TestSystemd(t *testing.T) {
	network := simnet.NewNetwork(t)
	for place, answer := range map[string]simnet.Answer{
		"192.0.2.1": simnet.SYNACK(), "2001:db8::1": simnet.SYNACK(), "fe80::1": simnet.SYNACK(),
		"192.0.2.2": simnet.RST(),
		"192.0.2.3": simnet.ICMP("198.51.100.9", 3, 13), "2001:db8::3": simnet.ICMP("2001:db8:1::9", 1, 1),
	} {
		network.At(place, answer)
	}
	network.At("192.0.2.5", simnet.SYNACK()).Behind("198.51.100.1", "198.51.100.2")
	network.At("2001:db8::5", simnet.SYNACK()).Behind("2001:db8:1::1", "2001:db8:1::2")
	web := []string{"192.0.2.1", "2001:db8::1"}
	simnet.ServeDNS(t, "127.0.0.1:53", simnet.Names{"web.test": web, "truncated.web.test": web})
	conf := strings.ReplaceAll(sandboxConfig, "DEVICE", network.Interface())

	s := bootSystemd(t)
	s.configure(conf)
	probe := func() (wrong []string) {
		outside := process.Start(t, process.WithFiles(t, exec.Command(s.program, "--web.listen-address=:10116", "--config.file="+s.config),
			map[string]string{"/etc/resolv.conf": s.resolver}))
		defer outside.Stop()
		outside.Listening(10116)
		for _, p := range sandboxProbes {
			target := strings.ReplaceAll(p.target, "DEVICE", network.Interface())
			query := "/probe?module=" + p.module + "&target=" + url.QueryEscape(target)
			var inside, outside string
			for range 5 { // a hop of a path that is late is silent
				inside, outside = verdict(10115, query), verdict(10116, query)
				if inside == outside && strings.Contains(outside, p.want) {
					break
				}
			}
			if inside != outside || !strings.Contains(outside, p.want) {
				wrong = append(wrong, fmt.Sprintf("%s by %s: %s\nand outside %s, want %s", p.target, p.module, inside, outside, p.want))
			}
		}
		if inside, outside := metricsOf(10115), metricsOf(10116); inside != outside {
			wrong = append(wrong, fmt.Sprintf("/metrics has\n%s\nand outside\n%s", inside, outside))
		}
		return wrong
	}
	restart := func(settings string) error {
		t.Helper()
		s.dropIn(settings)
		s.must("reset-failed") // how often it was started of late is no reason to refuse
		out, err := s.run("restart", "shaker_exporter")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		lab.Eventually(t, "the exporter listens", s.serves)
		return nil
	}

	for _, settings := range []string{
		"",                           // as it is
		"SystemCallErrorNumber=kill", // what is forbidden would be the exporter's end
	} {
		if err := restart(settings); err != nil {
			t.Fatal(err)
		}
		if wrong := probe(); wrong != nil {
			t.Errorf("with %q:\n%s", settings, strings.Join(wrong, "\n\n"))
		}
	}
	for settings, want := range map[string]string{
		"RestrictAddressFamilies=~AF_NETLINK":                   "[fe80::1%DEVICE]:80 by",
		"RestrictAddressFamilies=~AF_INET6":                     "[2001:db8::1]:80 by",
		"SystemCallFilter=~recvmsg\nSystemCallErrorNumber=kill": "192.0.2.3:80 by",
	} {
		if err := restart(settings); err != nil {
			t.Fatal(err)
		}
		if wrong := probe(); !slices.ContainsFunc(wrong, func(w string) bool { return strings.HasPrefix(w, want) }) {
			t.Errorf("with %q nothing is wrong with %s", settings, want)
		}
	}
	if restart("ProcSubset=pid") == nil {
		t.Error("without /proc/sys ports to send from can be had")
	} else {
		s.logs("module marked: tcp.source_ports cannot be used")
	}
	s.configure("modules: {tcp_connect: {prober: tcp}}")
	if err := restart("ProcSubset=pid"); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(metricsOf(10115), "process_start_time_seconds") {
		t.Error("without /proc/stat it is known when the process has started")
	}

	if err := restart(""); err != nil {
		t.Fatal(err)
	}
	pid := pidOf(t, "shaker_exporter")
	for field, want := range map[string]string{
		"CapPrm": noCapabilities, "CapEff": noCapabilities, "CapInh": noCapabilities, "CapAmb": noCapabilities, "CapBnd": noCapabilities,
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if got := statusOf(t, pid, field); got != want {
			t.Errorf("%s is %q, want %q", field, got, want)
		}
	}
	if ids := statusOf(t, pid, "Uid"); strings.HasPrefix(ids, "0\t") {
		t.Errorf("Uid is %q", ids)
	}
	var own syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &own); err != nil {
		t.Fatal(err)
	}
	limits := lab.Read(t, fmt.Sprintf("/proc/%d/limits", pid))
	files := regexp.MustCompile(`(?m)^Max open files +(\d+)`).FindStringSubmatch(limits)[1]
	if files != "65536" && (own.Max > 65536 || files != fmt.Sprint(own.Max)) { // which root may be kept from raising
		t.Errorf("it may open %s files", files)
	}

	// What the unit says about fwmark is enough, and all of it is needed.
	s.configure("modules: {tcp_connect: {prober: tcp, tcp: {fwmark: 7}}}")
	var advice []string
	for _, line := range regexp.MustCompile(`(?m)^#   (\w+=.*)$`).FindAllStringSubmatch(lab.Read(t, unitFile), -1) {
		advice = append(advice, line[1])
	}
	if err := restart(strings.Join(advice, "\n")); err != nil {
		t.Errorf("with %q: %v", advice, err)
	} else if got := verdict(10115, "/probe?target=192.0.2.1:80"); !strings.Contains(got, `result="open"`) {
		t.Errorf("with a firewall mark: %s", got)
	}
	for i := range advice {
		s.configure(fmt.Sprintf("modules: {without_%d: {prober: tcp, tcp: {fwmark: 7}}}", i))
		if less := slices.Delete(slices.Clone(advice), i, i+1); restart(strings.Join(less, "\n")) == nil {
			t.Errorf("%q is enough for a firewall mark", less)
		} else {
			s.logs(fmt.Sprintf("module without_%d: tcp.fwmark needs CAP_", i))
		}
	}
}

// systemd starts the exporter, reloads its configuration, starts it again when it crashes, and
// lets the running probes end. What is wrong with a configuration is an error of the command.
func TestSystemdServes(t *testing.T) {
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	s := bootSystemd(t)
	const valid, mistaken = "modules: {%s: {prober: tcp}}", "modules: {web: {prober: http}}"
	inForce := func() string {
		return lab.Get(t, "http://127.0.0.1:10115/config")
	}

	s.configure(mistaken)
	if out, err := s.run("start", "shaker_exporter"); err == nil {
		t.Errorf("it starts with a mistaken configuration: %s", out)
	}
	s.logs("shaker.yml:1: module web: prober is http")
	s.configure(fmt.Sprintf(valid, "first"))
	// It is started again and again until the configuration is mended.
	lab.Eventually(t, "the exporter listens", s.serves)

	s.configure(fmt.Sprintf(valid, "second"))
	s.must("reload", "shaker_exporter")
	lab.Eventually(t, "the second configuration is in force", func() bool { return strings.Contains(inForce(), "second:") })
	s.configure(mistaken)
	if out, err := s.run("reload", "shaker_exporter"); err == nil {
		t.Errorf("it reloads a mistaken configuration: %s", out)
	}
	if !strings.Contains(inForce(), "second:") {
		t.Errorf("in force is\n%s", inForce())
	}
	s.configure(fmt.Sprintf(valid, "third"))

	before := pidOf(t, "shaker_exporter")
	syscall.Kill(before, syscall.SIGSEGV)
	lab.Eventually(t, "it is started again", func() bool {
		pids := pidsOf(t, "shaker_exporter")
		return len(pids) == 1 && pids[0] != before && s.serves()
	})
	if !strings.Contains(inForce(), "third:") {
		t.Errorf("in force is\n%s", inForce())
	}

	answer := make(chan string)
	go func() { answer <- verdict(10115, "/probe?module=third&target=192.0.2.1:443") }() // it takes 5 s
	wire.Await(1)
	s.must("stop", "shaker_exporter")
	if got := <-answer; !strings.Contains(got, `result="timeout"`) {
		t.Errorf("the running probe was answered: %s", got)
	}
	if got := s.must("show", "--property=ActiveState,Result", "shaker_exporter"); got != "Result=success\nActiveState=inactive" {
		t.Errorf("stopped, it is %s", got)
	}
}

// answer returns the status and the body of what an exporter answers, or why there is none.
func answer(port int, query string) string {
	response, err := lab.Client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, query))
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err.Error()
	}
	return response.Status + "\n" + string(body)
}

// verdict returns what an exporter answers, but for what differs from one time to the next:
// times, and which of all addresses of a name is the slowest, and is described.
func verdict(port int, query string) (text string) {
	for line := range strings.Lines(answer(port, query)) {
		if !strings.HasPrefix(line, "#") && !strings.Contains(line, "_seconds") && !strings.HasPrefix(line, "probe_ip_") {
			text += line
		}
	}
	return text
}

// metricsOf returns the names of the metrics that an exporter has of itself.
func metricsOf(port int) string {
	var names []string
	for _, line := range regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(answer(port, "/metrics"), -1) {
		names = append(names, line[1])
	}
	return strings.Join(names, "\n")
}

// A systemd is a real one, in namespaces of its own, but for the network. It has the unit, the
// exporter and the journal, and nothing else.
type systemd struct {
	t        *testing.T
	dir      string // what it shares with the test
	program  string
	config   string
	resolver string
	pid      int
}

// bootSystemd starts it for the rest of the test, and has the unit installed in it.
func bootSystemd(t *testing.T) *systemd {
	t.Helper()
	lab.NeedRoot(t)
	dir := t.TempDir()
	s := &systemd{t: t, dir: dir, program: exporter.Command(t).Path,
		config:   lab.Write(t, dir, "config/shaker.yml", ""),
		resolver: lab.Write(t, dir, "resolv.conf", "nameserver 127.0.0.1\n")}
	lab.Write(t, dir, "units/shaker_exporter.service", lab.Read(t, unitFile))
	for _, target := range []string{"default", "sysinit", "basic", "network", "shutdown", "umount"} {
		lab.Write(t, dir, "units/"+target+".target", "[Unit]\nWants=systemd-journald.service\n")
	}
	for _, unit := range []string{"systemd-journald.service", "systemd-journald.socket"} {
		lab.Write(t, dir, "units/"+unit, lab.Read(t, "/lib/systemd/system/"+unit))
	}
	const script = `
dir=$1 program=$2
# Nothing of the machine can be changed.
mount -t tmpfs tmpfs /run
mkdir /run/lab /run/dev /run/etc /run/etc.work
mount --bind "$dir" /run/lab
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /run/dev
mount --rbind /run/dev /dev
mkdir /dev/shm /dev/pts
ln -s pts/ptmx /dev/ptmx
mount -t proc proc /proc
umount --recursive /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc.work overlay /etc
mount -t tmpfs tmpfs /usr/local/bin
install "$program" /usr/local/bin/shaker_exporter
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /var/tmp
mount -o remount,bind,ro /
# What the unit wants.
mkdir /etc/shaker_exporter
mount --bind /run/lab/config /etc/shaker_exporter
rm -f /etc/resolv.conf /etc/machine-id
cp /run/lab/resolv.conf /etc/resolv.conf
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
exec env -i PATH="$PATH" container=lab SYSTEMD_UNIT_PATH=/run/lab/units /lib/systemd/systemd --log-target=journal
`
	unshare := lab.Program(t, "unshare", "util-linux")
	lab.Program(t, "nsenter", "util-linux")
	lab.Program(t, "journalctl", "systemd")
	group := newCgroup(t)
	process.Start(t, exec.Command("sh", "-e", "-c", `echo $$ >"$1"/cgroup.procs; shift; exec "$@"`, "sh", group,
		unshare, "--mount", "--pid", "--fork", "--kill-child", "--cgroup", "--uts", "--ipc", "sh", "-e", "-c", script, "sh", dir, s.program))
	lab.Eventually(t, "systemd runs", func() bool { // later its children have its name, too, until they run something
		pids := pidsOf(t, "systemd")
		if len(pids) == 1 {
			s.pid = pids[0]
		}
		return s.pid != 0
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the journal:\n%s", s.journal())
		}
		syscall.Kill(s.pid, syscall.SIGKILL) // and so all of the namespace
	})
	lab.Eventually(t, "systemd has started", func() bool { _, err := s.run("is-active", "default.target"); return err == nil })
	return s
}

// newCgroup returns the directory of a new control group below this process' own.
func newCgroup(t *testing.T) string {
	t.Helper()
	_, own, ok := strings.Cut("\n"+lab.Read(t, "/proc/self/cgroup"), "\n0::")
	if !ok {
		lab.Skip(t, "needs control groups of version 2")
	}
	own, _, _ = strings.Cut(own, "\n")
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(mount, "cgroup.procs")); err != nil {
			continue
		}
		dir, err := os.MkdirTemp(filepath.Join(mount, own), "shaker-lab-")
		if err != nil {
			lab.Skip(t, "needs a control group: %v", err)
		}
		t.Cleanup(func() {
			lab.Eventually(t, "the control group is empty", func() bool { return removeTree(dir) == nil })
		})
		return dir
	}
	lab.Skip(t, "needs control groups of version 2 at /sys/fs/cgroup")
	return ""
}

// removeTree removes a directory and those below, which have only files that vanish with them.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		if err := removeTree(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return syscall.Rmdir(dir)
}

// run runs systemctl in it.
func (s *systemd) run(args ...string) (output string, err error) {
	out, err := s.inside("systemctl", args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (s *systemd) inside(program string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--mount", "--pid", fmt.Sprintf("--target=%d", s.pid), program}, args...)...)
}

// must runs systemctl, which has to succeed.
func (s *systemd) must(args ...string) string {
	s.t.Helper()
	out, err := s.run(args...)
	if err != nil {
		s.t.Fatalf("systemctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// journal returns what the journal has of the exporter.
func (s *systemd) journal() string {
	out, _ := s.inside("journalctl", "--unit=shaker_exporter", "--output=cat", "--no-pager").CombinedOutput()
	return string(out)
}

// logs waits until the journal has a text of the exporter. The journal takes it by itself, and
// may be later than the end of who wrote it.
func (s *systemd) logs(text string) {
	s.t.Helper()
	lab.Eventually(s.t, "the journal has: "+text, func() bool { return strings.Contains(s.journal(), text) })
}

// configure writes the exporter's configuration file.
func (s *systemd) configure(conf string) { lab.Write(s.t, s.dir, "config/shaker.yml", conf) }

// dropIn adds settings to the unit's, in place of those that the last call added.
func (s *systemd) dropIn(settings string) {
	s.t.Helper()
	lab.Write(s.t, s.dir, "units/shaker_exporter.service.d/test.conf", "[Service]\n"+settings+"\n")
	s.must("daemon-reload")
}

// serves tells whether the exporter listens, and systemd knows that it has started.
func (s *systemd) serves() bool {
	conn, err := net.Dial("tcp", "127.0.0.1:10115")
	if err != nil {
		return false
	}
	conn.Close()
	_, err = s.run("is-active", "shaker_exporter")
	return err == nil
}
