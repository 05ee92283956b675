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
	rawUnitFile  = "systemd/raw.conf" // a drop-in
	unitProgram  = "/usr/local/bin/shaker_exporter"
	exposureGoal = "11" // 1.1 of 10, mostly because the exporter uses the network

	// rawExposureGoal is for the unit with the drop-in, because of the capability and the host's user namespace.
	rawExposureGoal = "15"
)

// systemd-analyze accepts the unit and calculates a low exposure level. The controls are a misspelled setting, and the
// unit without one of its restrictions.
func TestUnit(t *testing.T) {
	analyze := lab.Program(t, "systemd-analyze", "systemd")
	unit := strings.ReplaceAll(lab.Read(t, unitFile), unitProgram, exporter.Command(t).Path)
	verify := func(unit string) string {
		file := lab.Write(t, t.TempDir(), "shaker_exporter.service", unit)
		out, err := exec.Command(analyze, "verify", "--man=no", file).CombinedOutput()
		if err != nil && len(out) == 0 {
			t.Fatalf("systemd-analyze verify: %v", err)
		}
		return string(out)
	}
	security := func(unit, threshold string) error {
		file := lab.Write(t, t.TempDir(), "shaker_exporter.service", unit)
		cmd := exec.Command(analyze, "security", "--offline=yes", "--threshold="+threshold, file)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	}
	if out := verify(unit); out != "" {
		t.Errorf("systemd-analyze verify prints the following, want no output:\n%s", out)
	}
	if err := security(unit, exposureGoal); err != nil {
		t.Errorf("systemd-analyze security --threshold=%s: %v, want no error", exposureGoal, err)
	}
	// The settings of a drop-in have the same effect as at the end of the unit.
	withRaw := unit + lab.Read(t, rawUnitFile)
	if out := verify(withRaw); out != "" {
		t.Errorf("systemd-analyze verify, with %s, prints the following, want no output:\n%s", rawUnitFile, out)
	}
	if err := security(withRaw, rawExposureGoal); err != nil {
		t.Errorf("systemd-analyze security --threshold=%s, with %s: %v, want no error",
			rawExposureGoal, rawUnitFile, err)
	}
	misspelled := strings.Replace(unit, "ProtectClock=", "ProtectClocks=", 1)
	if out, want := verify(misspelled), "Unknown key 'ProtectClocks'"; !strings.Contains(out, want) {
		t.Errorf("systemd-analyze verify, with a misspelled setting, prints %q, want %q in it", out, want)
	}
	for _, setting := range []string{"DynamicUser", "CapabilityBoundingSet", "PrivateUsers",
		"RestrictAddressFamilies", "SystemCallFilter"} {
		if security(regexp.MustCompile("(?m)^"+setting+"=.*").ReplaceAllString(unit, ""), exposureGoal) == nil {
			t.Errorf("systemd-analyze security --threshold=%s accepts the unit without %s, want an error",
				exposureGoal, setting)
		}
	}
}

// systemd waits longer for the exporter to stop than the longest probe takes.
func TestUnitWaitsForRunningProbes(t *testing.T) {
	limit := regexp.MustCompile(`(?m)^TimeoutStopSec=(\S+)$`).FindStringSubmatch(lab.Read(t, unitFile))
	if limit == nil {
		t.Fatalf("%s has no TimeoutStopSec", unitFile)
	}
	const longest = config.MaxTimeout + collector.AnswerTime
	if d, err := time.ParseDuration(limit[1]); err != nil || d <= longest {
		t.Errorf("TimeoutStopSec = %s, want more than %v, which a probe may take", limit[1], longest)
	}
}

// sandboxProbes are the probes in the sandbox. Together they use everything that the configuration can make the
// exporter do. Each has a text in the response.
var sandboxProbes = []struct{ target, module, want string }{
	{target: "192.0.2.1:80", module: "tcp_connect", want: `result="open"`},
	{target: "[2001:db8::1]:80", module: "tcp_connect", want: `result="open"`},
	{target: "web.test:80", module: "tcp_connect", want: `result="open"`},
	{target: "truncated.web.test:80", module: "tcp_connect", want: `result="open"`},
	{target: "web.test:80", module: "every_address", want: "probe_addresses_open 2"},
	{target: "absent.test:80", module: "tcp_connect", want: `result="dns_not_found"`},
	{target: "192.0.2.2:80", module: "tcp_connect", want: `result="refused"`},
	{target: "192.0.2.3:80", module: "tcp_connect", want: `icmp="admin_prohibited"`},
	{target: "[2001:db8::3]:80", module: "tcp_connect", want: `icmp="admin_prohibited"`},
	{target: "192.0.2.4:80", module: "short", want: `result="timeout"`},
	{
		target: "192.0.2.5:80", module: "path",
		want: `probe_path_hop_info{hop="2",address="198.51.100.2",icmp="ttl_exceeded"}`,
	},
	{
		target: "[2001:db8::5]:80", module: "path",
		want: `probe_path_hop_info{hop="2",address="2001:db8:1::2",icmp="ttl_exceeded"}`,
	},
	{target: "192.0.2.1:80", module: "marked", want: `result="open"`},
	{target: "192.0.2.1:80", module: "fin", want: "probe_tcp_ack_sent 1"},
	{target: "[fe80::1%DEVICE]:80", module: "tcp_connect", want: `result="open"`},
	{target: "169.254.169.254:80", module: "tcp_connect", want: "targets.deny 169.254.169.254/32:* forbids it"},
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

// A real systemd runs the unit. In the sandbox of the unit, the exporter can do the same as outside, without
// privileges. The controls are narrower sandboxes.
func TestSystemd(t *testing.T) {
	needSystemd(t)
	network := simnet.NewNetwork(t)
	for host, answer := range map[string]simnet.Answer{
		"192.0.2.1": simnet.SYNACK(), "2001:db8::1": simnet.SYNACK(), "fe80::1": simnet.SYNACK(),
		"192.0.2.2": simnet.RST(),
		"192.0.2.3": simnet.ICMP("198.51.100.9", 3, 13), "2001:db8::3": simnet.ICMP("2001:db8:1::9", 1, 1),
	} {
		network.At(host, answer)
	}
	network.At("192.0.2.5", simnet.SYNACK()).Behind("198.51.100.1", "198.51.100.2")
	network.At("2001:db8::5", simnet.SYNACK()).Behind("2001:db8:1::1", "2001:db8:1::2")
	web := []string{"192.0.2.1", "2001:db8::1"}
	simnet.ServeDNS(t, "127.0.0.1:53", simnet.Names{"web.test": web, "truncated.web.test": web})
	conf := strings.ReplaceAll(sandboxConfig, "DEVICE", network.Interface())

	s := bootSystemd(t)
	s.configure(conf)
	// probe makes the probes inside and outside the sandbox, and returns the differences.
	probe := func() (problems []string) {
		complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
		cmd := exec.Command(s.program, "--web.listen-address=:10116", "--config.file="+s.config)
		unconfined := process.Start(t, process.WithFiles(t, cmd, map[string]string{"/etc/resolv.conf": s.resolver}))
		defer unconfined.Stop()
		unconfined.Listening(10116)
		for _, p := range sandboxProbes {
			target := strings.ReplaceAll(p.target, "DEVICE", network.Interface())
			path := "/probe?module=" + p.module + "&target=" + url.QueryEscape(target)
			var inside, outside string
			for range 5 { // the response of a hop may be too late for the trace
				inside, outside = steadyResponse(exporter.Port, path), steadyResponse(10116, path)
				if inside == outside && strings.Contains(outside, p.want) {
					break
				}
			}
			if inside != outside || !strings.Contains(outside, p.want) {
				complain("%s with module %s: inside\n%s\noutside\n%s\nwant the same, with %s",
					p.target, p.module, inside, outside, p.want)
			}
		}
		if inside, outside := metricNames(exporter.Port), metricNames(10116); inside != outside {
			complain("metrics: inside\n%s\noutside\n%s\nwant the same", inside, outside)
		}
		return problems
	}
	restart := func(settings string) error {
		t.Helper()
		s.dropIn(settings)
		s.must("reset-failed") // or else systemd would refuse to start the unit so often
		out, err := s.run("restart", "shaker_exporter")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		lab.Eventually(t, "the exporter listens", s.serves)
		return nil
	}

	for _, settings := range []string{
		"",                           // the unit itself
		"SystemCallErrorNumber=kill", // a forbidden system call would kill the exporter
	} {
		if err := restart(settings); err != nil {
			t.Fatalf("restart with %q: %v", settings, err)
		}
		for _, problem := range probe() {
			t.Errorf("with %q: %s", settings, problem)
		}
	}
	for settings, want := range map[string]string{
		"RestrictAddressFamilies=~AF_NETLINK":                   "[fe80::1%DEVICE]:80 with",
		"RestrictAddressFamilies=~AF_INET6":                     "[2001:db8::1]:80 with",
		"SystemCallFilter=~recvmsg\nSystemCallErrorNumber=kill": "192.0.2.3:80 with",
	} {
		if err := restart(settings); err != nil {
			t.Fatalf("restart with %q: %v", settings, err)
		}
		problems := probe()
		if !slices.ContainsFunc(problems, func(problem string) bool { return strings.HasPrefix(problem, want) }) {
			t.Errorf("with %q, the problems are %q, want one that begins with %q", settings, problems, want)
		}
	}
	if restart("ProcSubset=pid") == nil {
		t.Error("the exporter starts with source_ports and without /proc/sys, want an error")
	} else {
		s.logs("module marked: tcp.source_ports cannot be used")
	}
	s.configure("modules: {tcp_connect: {prober: tcp}}")
	if err := restart("ProcSubset=pid"); err != nil {
		t.Fatalf("restart without /proc/sys: %v", err)
	}
	if strings.Contains(metricNames(exporter.Port), "process_start_time_seconds") {
		t.Error("without /proc/stat, there is a metric process_start_time_seconds, want none")
	}

	if err := restart(""); err != nil {
		t.Fatalf("restart of the unit without changes: %v", err)
	}
	pid := pidOf(t, "shaker_exporter")
	for field, want := range map[string]string{
		"CapPrm": noCapabilities, "CapEff": noCapabilities, "CapInh": noCapabilities, "CapAmb": noCapabilities,
		"CapBnd": noCapabilities, "NoNewPrivs": "1", "Seccomp": "2",
	} {
		if got := statusOf(t, pid, field); got != want {
			t.Errorf("%s of the exporter in the sandbox = %q, want %q", field, got, want)
		}
	}
	if ids := statusOf(t, pid, "Uid"); strings.HasPrefix(ids, "0\t") {
		t.Errorf("Uid of the exporter in the sandbox = %q, want another user than root", ids)
	}
	var own syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &own); err != nil {
		t.Fatal(err)
	}
	limits := lab.Read(t, fmt.Sprintf("/proc/%d/limits", pid))
	files := regexp.MustCompile(`(?m)^Max open files +(\d+)`).FindStringSubmatch(limits)
	if files == nil {
		t.Fatalf("/proc/%d/limits has no limit of open files:\n%s", pid, limits)
	}
	// Even root may be unable to raise a lower limit.
	if want := fmt.Sprint(min(65536, own.Max)); files[1] != "65536" && files[1] != want {
		t.Errorf("limit of open files in the sandbox = %s, want %s", files[1], want)
	}

	// The settings that the unit recommends for fwmark are sufficient, and each of them is necessary.
	s.configure("modules: {tcp_connect: {prober: tcp, tcp: {fwmark: 7}}}")
	var advice []string
	for _, line := range regexp.MustCompile(`(?m)^#   (\w+=.*)$`).FindAllStringSubmatch(lab.Read(t, unitFile), -1) {
		advice = append(advice, line[1])
	}
	if err := restart(strings.Join(advice, "\n")); err != nil {
		t.Errorf("restart with fwmark and %q: %v", advice, err)
	} else {
		got := steadyResponse(exporter.Port, "/probe?target=192.0.2.1:80")
		if !strings.Contains(got, `result="open"`) {
			t.Errorf("probe with fwmark and %q = %s, want open", advice, got)
		}
	}
	for i := range advice {
		s.configure(fmt.Sprintf("modules: {without_%d: {prober: tcp, tcp: {fwmark: 7}}}", i))
		fewer := slices.Delete(slices.Clone(advice), i, i+1)
		if restart(strings.Join(fewer, "\n")) == nil {
			t.Errorf("restart with fwmark and only %q succeeds, want an error", fewer)
		} else {
			s.logs(fmt.Sprintf("module without_%d: tcp.fwmark needs CAP_", i))
		}
	}
}

// systemd starts the exporter, reloads its configuration, restarts it after a crash, and lets running probes finish
// when it stops the exporter. The commands start and reload fail if the configuration is invalid.
func TestSystemdServes(t *testing.T) {
	needSystemd(t)
	wire := simnet.NewWire(t, nil, "192.0.2.0/24")
	s := bootSystemd(t)
	const valid, invalid = "modules: {%s: {prober: tcp}}", "modules: {web: {prober: udp}}"
	active := func() string { return lab.Get(t, "http://127.0.0.1:10115/config") }

	s.configure(invalid)
	if out, err := s.run("start", "shaker_exporter"); err == nil {
		t.Errorf("systemctl start with an invalid configuration succeeds, want an error: %s", out)
	}
	s.logs("shaker.yml:1: module web: prober is udp")
	s.configure(fmt.Sprintf(valid, "first"))
	// systemd restarts the exporter until the configuration is valid.
	lab.Eventually(t, "the exporter listens", s.serves)

	s.configure(fmt.Sprintf(valid, "second"))
	s.must("reload", "shaker_exporter")
	lab.Eventually(t, "the second configuration is active", func() bool {
		return strings.Contains(active(), "second:")
	})
	s.configure(invalid)
	if out, err := s.run("reload", "shaker_exporter"); err == nil {
		t.Errorf("systemctl reload with an invalid configuration succeeds, want an error: %s", out)
	}
	if got := active(); !strings.Contains(got, "second:") {
		t.Errorf("after the reload of an invalid configuration, the active one is\n%s\nwant the second one", got)
	}
	s.configure(fmt.Sprintf(valid, "third"))

	before := pidOf(t, "shaker_exporter")
	syscall.Kill(before, syscall.SIGSEGV)
	lab.Eventually(t, "systemd has restarted the exporter", func() bool {
		pids := pidsOf(t, "shaker_exporter")
		return len(pids) == 1 && pids[0] != before && s.serves()
	})
	if got := active(); !strings.Contains(got, "third:") {
		t.Errorf("after a restart, the active configuration is\n%s\nwant the third one", got)
	}

	got := make(chan string)
	// This probe takes 5 s.
	go func() { got <- steadyResponse(exporter.Port, "/probe?module=third&target=192.0.2.1:443") }()
	lab.Eventually(t, "the probe has sent a SYN", func() bool { // other programs of systemd may send packets, too
		return slices.ContainsFunc(slices.Collect(wire.Sent()), func(s simnet.Segment) bool { return s.SYN })
	})
	s.must("stop", "shaker_exporter")
	if got := <-got; !strings.Contains(got, `result="timeout"`) {
		t.Errorf("systemctl stop during a probe: the response is %s, want a timeout", got)
	}
	const want = "Result=success\nActiveState=inactive"
	if got := s.must("show", "--property=ActiveState,Result", "shaker_exporter"); got != want {
		t.Errorf("systemctl show after stop = %q, want %q", got, want)
	}
}

// response returns the status and the body of an exporter's response, or the error if there is no response.
func response(port int, path string) string {
	response, err := lab.Client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
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

// steadyResponse returns an exporter's response without what differs from probe to probe: the times, and the address
// that is the slowest one of a name and so determines probe_ip_protocol and probe_ip_addr_hash.
func steadyResponse(port int, path string) (text string) {
	for line := range strings.Lines(response(port, path)) {
		if strings.HasPrefix(line, "#") || strings.Contains(line, "_seconds") || strings.HasPrefix(line, "probe_ip_") {
			continue
		}
		text += line
	}
	return text
}

// metricNames returns the names of an exporter's own metrics.
func metricNames(port int) string {
	var names []string
	for _, line := range regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(response(port, "/metrics"), -1) {
		names = append(names, line[1])
	}
	return strings.Join(names, "\n")
}

// A systemd is a running systemd in its own mount, PID, UTS, IPC and cgroup namespaces, and in the network namespace of
// the test. It has the unit, the exporter and the journal, and no other services.
type systemd struct {
	t        *testing.T
	dir      string // shared with the test
	program  string // the exporter
	config   string // a file
	resolver string // a file
	pid      int
}

// needSystemd skips a test on a machine on which bootSystemd cannot work.
func needSystemd(t *testing.T) {
	t.Helper()
	lab.NeedRoot(t)
	lab.Program(t, "journalctl", "systemd")
	lab.Program(t, "systemctl", "systemd")
	if _, err := os.Stat("/lib/systemd/systemd"); err != nil {
		lab.Skip(t, "needs systemd (Debian package systemd): %v", err)
	}
	lab.Program(t, "sh", "dash")
	lab.Program(t, "unshare", "util-linux")
	lab.Program(t, "nsenter", "util-linux")
	lab.Program(t, "mount", "mount")
}

// bootSystemd starts a systemd for the rest of the test, and installs the unit in it.
func bootSystemd(t *testing.T) *systemd {
	t.Helper()
	needSystemd(t)
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
# The file systems of the machine are read-only.
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
# The unit needs these.
mkdir /etc/shaker_exporter
mount --bind /run/lab/config /etc/shaker_exporter
rm -f /etc/resolv.conf /etc/machine-id
cp /run/lab/resolv.conf /etc/resolv.conf
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
exec env -i PATH="$PATH" container=lab SYSTEMD_UNIT_PATH=/run/lab/units /lib/systemd/systemd --log-target=journal
`
	const join = `echo $$ >"$1"/cgroup.procs; shift; exec "$@"`
	process.Start(t, exec.Command("sh", "-e", "-c", join, "sh", newCgroup(t), lab.Program(t, "unshare", "util-linux"),
		"--mount", "--pid", "--fork", "--kill-child", "--cgroup", "--uts", "--ipc",
		"sh", "-e", "-c", script, "sh", dir, s.program))
	// Later, children of systemd are also called systemd until they execute their programs.
	lab.Eventually(t, "systemd runs", func() bool {
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
		syscall.Kill(s.pid, syscall.SIGKILL) // this kills all processes of the PID namespace
	})
	lab.Eventually(t, "systemd has started", func() bool {
		_, err := s.run("is-active", "default.target")
		return err == nil
	})
	return s
}

// newCgroup returns the directory of a new control group below the control group of this process.
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

// removeTree removes a tree of control groups. Their files disappear with their directories.
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

// run runs systemctl in the namespaces of systemd.
func (s *systemd) run(args ...string) (output string, err error) {
	out, err := s.inside("systemctl", args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// inside returns a command that runs a program in the namespaces of systemd.
func (s *systemd) inside(program string, args ...string) *exec.Cmd {
	enter := []string{"--mount", "--pid", fmt.Sprintf("--target=%d", s.pid), program}
	return exec.Command("nsenter", append(enter, args...)...)
}

// must runs systemctl and returns its output. It fails the test if systemctl fails.
func (s *systemd) must(args ...string) string {
	s.t.Helper()
	out, err := s.run(args...)
	if err != nil {
		s.t.Fatalf("systemctl %s: %v, want no error\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// journal returns the exporter's messages in the journal.
func (s *systemd) journal() string {
	cmd := s.inside("journalctl", "--unit=shaker_exporter", "--output=cat", "--no-pager")
	out, _ := cmd.CombinedOutput() // without an error, because a cleanup calls this, too
	return string(out)
}

// logs waits until the journal contains a message of the exporter. The journal may receive it after the exporter has
// ended.
func (s *systemd) logs(text string) {
	s.t.Helper()
	lab.Eventually(s.t, "the journal contains: "+text, func() bool { return strings.Contains(s.journal(), text) })
}

// configure writes the exporter's configuration file.
func (s *systemd) configure(conf string) { lab.Write(s.t, s.dir, "config/shaker.yml", conf) }

// dropIn replaces the settings in the drop-in of the unit.
func (s *systemd) dropIn(settings string) {
	s.t.Helper()
	lab.Write(s.t, s.dir, "units/shaker_exporter.service.d/test.conf", "[Service]\n"+settings+"\n")
	s.must("daemon-reload")
}

// serves reports whether the exporter listens and its unit is active.
func (s *systemd) serves() bool {
	conn, err := net.Dial("tcp", "127.0.0.1:10115")
	if err != nil {
		return false
	}
	conn.Close()
	_, err = s.run("is-active", "shaker_exporter")
	return err == nil
}

// A real systemd runs the unit with the drop-in for SYNs without sockets. The exporter has CAP_NET_RAW and no other
// capability, and the same sandbox otherwise. The controls are the drop-in without each of its settings.
func TestSystemdRaw(t *testing.T) {
	needSystemd(t)
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK())
	network.At("2001:db8::1", simnet.SYNACK())
	network.At("192.0.2.2", simnet.RST())
	network.At("192.0.2.3", simnet.ICMP("198.51.100.9", 3, 13))
	s := bootSystemd(t)
	s.configure("modules: {tcp_connect: {prober: tcp}, marked: {prober: tcp, tcp: {fwmark: 7, dscp: 46}}}")
	raw := lab.Read(t, rawUnitFile)
	start := func(dropIn string) error {
		t.Helper()
		lab.Write(t, s.dir, "units/shaker_exporter.service.d/raw.conf", dropIn)
		s.must("daemon-reload")
		s.must("reset-failed")
		_, err := s.run("restart", "shaker_exporter")
		return err
	}
	// The module marked needs the capability, too, so this shows that --config.check has it.
	if err := start(raw); err != nil {
		t.Fatalf("restart with %s: %v", rawUnitFile, err)
	}
	lab.Eventually(t, "the exporter listens", s.serves)
	s.logs("engine=raw")
	for _, p := range []struct{ target, module, want string }{
		{target: "192.0.2.1:80", module: "tcp_connect", want: `result="open"`},
		{target: "[2001:db8::1]:80", module: "tcp_connect", want: `result="open"`},
		{target: "192.0.2.2:80", module: "tcp_connect", want: `result="refused"`},
		{target: "192.0.2.3:80", module: "tcp_connect", want: `icmp="admin_prohibited"`},
		{target: "192.0.2.1:80", module: "marked", want: `result="open"`},
	} {
		got := steadyResponse(exporter.Port, "/probe?module="+p.module+"&target="+url.QueryEscape(p.target))
		if !strings.Contains(got, p.want) {
			t.Errorf("probe of %s with module %s = %s, want %s", p.target, p.module, got, p.want)
		}
	}
	pid := pidOf(t, "shaker_exporter")
	const netRaw = "0000000000002000"
	for field, want := range map[string]string{
		"CapPrm": netRaw, "CapEff": netRaw, "CapInh": netRaw, "CapAmb": netRaw, "CapBnd": netRaw,
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if got := statusOf(t, pid, field); got != want {
			t.Errorf("%s of the exporter with %s = %q, want %q", field, rawUnitFile, got, want)
		}
	}
	if ids := statusOf(t, pid, "Uid"); strings.HasPrefix(ids, "0\t") {
		t.Errorf("Uid of the exporter with %s = %q, want another user than root", rawUnitFile, ids)
	}
	s.must("reload", "shaker_exporter")

	// The drop-in does not contain the path of the program, which is another one in a package, and ARGS may have
	// the flag, too.
	if strings.Contains(raw, "Exec") {
		t.Errorf("%s replaces a command of the unit, want only settings that do not depend on the path", rawUnitFile)
	}
	if err := start(raw + "Environment=ARGS=--probe.engine=raw\n"); err != nil {
		t.Errorf("restart with %s and --probe.engine=raw in ARGS: %v", rawUnitFile, err)
	}

	s.configure("modules: {tcp_connect: {prober: tcp}}")
	for _, setting := range []string{"CapabilityBoundingSet", "AmbientCapabilities", "PrivateUsers"} {
		const hint = "hint: systemd: add AmbientCapabilities=CAP_NET_RAW"
		before := strings.Count(s.journal(), hint)
		// It may succeed, because the exporter ends later.
		start(regexp.MustCompile("(?m)^"+setting+"=.*").ReplaceAllString(raw, ""))
		lab.Eventually(t, "without "+setting+", the journal has a hint", func() bool {
			return strings.Count(s.journal(), hint) > before
		})
	}
}
