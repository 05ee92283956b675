package endtoend

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// shook is what the probe command printed, and its exit code.
func shook(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs strings.Builder
	cmd := exporter.Command(t, append([]string{"probe"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// What the command prints and how it exits.
func TestShakeFromTheTerminal(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK())
	network.At("192.0.2.2", simnet.RST())
	network.At("192.0.2.3", simnet.ICMP("198.51.100.7", 3, 13))
	network.At("192.0.2.4").Then(simnet.SYNACK()) // the first SYN is lost
	network.At("192.0.2.5", simnet.SYNACK()).Behind("198.51.100.1", "", "198.51.100.3")
	network.At("2001:db8::1", simnet.SYNACK())
	config := lab.Write(t, t.TempDir(), "shaker.yml", `
targets: {deny: ["192.0.2.66:*"]}
modules:
  tcp_connect: {prober: tcp}
  quick: {prober: tcp, timeout: 100ms}
  closed: {prober: tcp, tcp: {valid_results: [refused]}}
`)
	for _, c := range []struct {
		name           string
		args           []string
		stdout, stderr string
		code           int
	}{
		{"open", []string{"192.0.2.1:80"},
			"192.0.2.1:80: seq=1 open time=T ms\n\n--- 192.0.2.1:80 ---\n1 sent, 1 open, 0 lost; min/avg/p95/max = T/T/T/T ms\n", "", 0},
		{"IPv6, three times", []string{"--count=3", "--interval=1ms", "[2001:db8::1]:80"},
			"[2001:db8::1]:80: seq=1 open time=T ms\n[2001:db8::1]:80: seq=2 open time=T ms\n[2001:db8::1]:80: seq=3 open time=T ms\n" +
				"\n--- [2001:db8::1]:80 ---\n3 sent, 3 open, 0 lost; min/avg/p95/max = T/T/T/T ms\n", "", 0},
		{"refused", []string{"192.0.2.2:80"},
			"192.0.2.2:80: seq=1 refused ECONNREFUSED after T ms\n\n--- 192.0.2.2:80 ---\n1 sent, 0 open, 0 lost, 1 refused\n", "", 1},
		{"refused, as wanted", []string{"--config.file=" + config, "--module=closed", "192.0.2.2:80"},
			"192.0.2.2:80: seq=1 refused ECONNREFUSED after T ms\n\n--- 192.0.2.2:80 ---\n1 sent, 0 open, 0 lost, 1 refused\n", "", 0},
		{"prohibited", []string{"192.0.2.3:80"},
			"192.0.2.3:80: seq=1 prohibited EHOSTUNREACH after T ms, ICMP admin_prohibited from 198.51.100.7\n" +
				"\n--- 192.0.2.3:80 ---\n1 sent, 0 open, 0 lost, 1 prohibited\n", "", 1},
		{"lost", []string{"--config.file=" + config, "--module=quick", "192.0.2.9:80"},
			"192.0.2.9:80: seq=1 timeout ETIMEDOUT after T ms\n\n--- 192.0.2.9:80 ---\n1 sent, 0 open, 1 lost\n", "", 1},
		{"the first SYN lost", []string{"192.0.2.4:80"},
			"192.0.2.4:80: seq=1 open time=T ms, 1 SYN retransmission\n\n--- 192.0.2.4:80 ---\n1 sent, 1 open, 0 lost; min/avg/p95/max = T/T/T/T ms\n", "", 0},
		{"a name, and no DNS server", []string{"--config.file=" + config, "--module=quick", "silent.example:80"},
			"silent.example:80: seq=1 dns_timeout\n\n--- silent.example:80 ---\n0 sent, 0 open, 0 lost, 1 dns_timeout\n", "", 1},
		{"a name", []string{"localhost:1"},
			"localhost:1 (127.0.0.1): seq=1 refused ECONNREFUSED after T ms\n\n--- localhost:1 ---\n1 sent, 0 open, 0 lost, 1 refused\n", "", 1},
		{"JSON", []string{"--output=json", "192.0.2.1:80"},
			`{"time":T,"target":"192.0.2.1:80","module":"tcp_connect","seq":1,"address":"192.0.2.1","success":true,"result":"open","duration_seconds":T,"handshake_seconds":T,"rtt_seconds":T,"syn_retransmits":0}` + "\n", "", 0},
		{"JSON with ICMP", []string{"--output=json", "192.0.2.3:80"},
			`{"time":T,"target":"192.0.2.3:80","module":"tcp_connect","seq":1,"address":"192.0.2.3","success":false,"result":"prohibited","errno":"EHOSTUNREACH","duration_seconds":T,"syn_retransmits":0,"icmp":{"from":"198.51.100.7","type":3,"code":13,"name":"admin_prohibited"}}` + "\n", "", 1},
		{"a path", []string{"--path", "192.0.2.5:80"},
			"192.0.2.5:80:  1  198.51.100.1  T ms\n192.0.2.5:80:  2  *\n192.0.2.5:80:  3  198.51.100.3  T ms\n192.0.2.5:80:  4  192.0.2.5  T ms  open\n" +
				"192.0.2.5:80: seq=1 open time=T ms\n\n--- 192.0.2.5:80 ---\n1 sent, 1 open, 0 lost; min/avg/p95/max = T/T/T/T ms\n", "", 0},
		{"a path as JSON", []string{"--path", "--output=json", "192.0.2.5:80"},
			`{"time":T,"target":"192.0.2.5:80","module":"tcp_connect","seq":1,"address":"192.0.2.5","success":true,"result":"open","duration_seconds":T,"handshake_seconds":T,"rtt_seconds":T,"syn_retransmits":0,` +
				`"path":[{"hop":1,"address":"198.51.100.1","icmp":"ttl_exceeded","rtt_seconds":T},{"hop":2},{"hop":3,"address":"198.51.100.3","icmp":"ttl_exceeded","rtt_seconds":T},{"hop":4,"address":"192.0.2.5","rtt_seconds":T}]}` + "\n", "", 0},
		{"denied", []string{"--config.file=" + config, "192.0.2.66:80"},
			"192.0.2.66:80: seq=1 not probed: target 192.0.2.66:80 may not be probed: targets.deny 192.0.2.66/32:* forbids it\n" +
				"\n--- 192.0.2.66:80 ---\n0 sent, 0 open, 0 lost, 1 not probed\n", "", 1},
		{"no target", nil, "", "shaker_exporter: required argument 'target' not provided\n", 2},
		{"no port", []string{"192.0.2.1"}, "", `shaker_exporter: target "192.0.2.1": want host:port, as in example.com:443, 192.0.2.1:443 or [2001:db8::1]:443` + "\n", 2},
		{"one is nonsense", []string{"192.0.2.1:80", "b"}, "", `shaker_exporter: target "b": want host:port, as in example.com:443, 192.0.2.1:443 or [2001:db8::1]:443` + "\n", 2},
		{"twice the same", []string{"192.0.2.1:80", "192.0.2.1:80"}, "", "shaker_exporter: target \"192.0.2.1:80\" given twice\n", 2},
		{"no such module", []string{"--module=x", "192.0.2.1:80"}, "", "shaker_exporter: unknown module \"x\", the modules are tcp_connect, tcp_connect_ip4, tcp_connect_ip6\n", 2},
		{"no such output", []string{"--output=xml", "192.0.2.1:80"}, "", "shaker_exporter: --output is \"xml\": enum value must be one of text,json,openmetrics, got 'xml'\n", 2},
		{"negative count", []string{"--count=-1", "192.0.2.1:80"}, "", "shaker_exporter: --count is -1, want 0 or more\n", 2},
		{"no number", []string{"--count=x", "192.0.2.1:80"}, "", "shaker_exporter: --count is \"x\": strconv.ParseFloat: parsing \"x\": invalid syntax\n", 2},
		{"too long a timeout", []string{"--timeout=1h", "192.0.2.1:80"}, "", "shaker_exporter: --timeout is 1h0m0s, want at most 2m0s\n", 2},
		{"a timeout of its own", []string{"--timeout=150ms", "192.0.2.9:80"},
			"192.0.2.9:80: seq=1 timeout ETIMEDOUT after T ms\n\n--- 192.0.2.9:80 ---\n1 sent, 0 open, 1 lost\n", "", 1},
		{"no route", []string{"224.0.0.1:80"},
			"224.0.0.1:80: seq=1 unreachable ENETUNREACH after T ms\n\n--- 224.0.0.1:80 ---\n0 sent, 0 open, 0 lost, 1 unreachable\n", "", 1},
		{"negative interval", []string{"--interval=-1s", "192.0.2.1:80"}, "", "shaker_exporter: --interval is -1s, want 0 or more\n", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, stderr, code := shook(t, c.args...)
			if got := exporter.Steady(stdout); got != c.stdout || stderr != c.stderr || code != c.code {
				t.Errorf("exit code %d, want %d\n--- got\n%s%s--- want\n%s%s", code, c.code, got, stderr, c.stdout, c.stderr)
			}
			for line := range strings.Lines(stdout) {
				if strings.HasPrefix(c.stdout, "{") && !json.Valid([]byte(line)) {
					t.Errorf("no JSON: %s", line)
				}
			}
		})
	}
}

// Output that cannot be written is a failure.
func TestShakeIntoAFullDevice(t *testing.T) {
	for _, output := range []string{"text", "json", "openmetrics"} {
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			lab.Skip(t, "needs /dev/full: %v", err)
		}
		var errs strings.Builder
		cmd := exporter.Command(t, "probe", "--output="+output, "127.0.0.1:1")
		cmd.Stdout, cmd.Stderr = full, &errs
		cmd.Run()
		full.Close()
		if code := cmd.ProcessState.ExitCode(); code != 1 || errs.String() != "shaker_exporter: write /dev/stdout: no space left on device\n" {
			t.Errorf("%s: exit code %d, %s", output, code, &errs)
		}
	}
}

// The metrics of several targets are one exposition that promtool accepts.
func TestShakeForOpenMetrics(t *testing.T) {
	promtool := lab.Program(t, "promtool", "prometheus")
	stdout, stderr, code := shook(t, "--output=openmetrics", "127.0.0.1:1", "localhost:1")
	if code != 1 || stderr != "" {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	for _, want := range []string{
		`probe_success{target="127.0.0.1:1",module="tcp_connect"} 0.0` + "\n" + `probe_success{target="localhost:1",module="tcp_connect"} 0.0`,
		`probe_result_info{target="127.0.0.1:1",module="tcp_connect",result="refused",errno="ECONNREFUSED"} 1.0`,
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %s in\n%s", want, stdout)
		}
	}
	if strings.Count(stdout, "# TYPE probe_success ") != 1 || !strings.HasSuffix(stdout, "\n# EOF\n") {
		t.Errorf("%s", stdout)
	}
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(strings.TrimSuffix(stdout, "# EOF\n"))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// An interrupted command says what it has found out so far.
func TestShakeInterrupted(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK())
	p := process.Start(t, exporter.Command(t, "probe", "--count=0", "--interval=1ms", "--timeout=2m", "192.0.2.1:80", "192.0.2.9:80"))
	lab.Eventually(t, "there were three handshakes", func() bool { return strings.Contains(p.Output(), "seq=3 open") })
	p.Signal(os.Interrupt)
	if code := p.Wait(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	want := regexp.MustCompile(`\n--- 192\.0\.2\.1:80 ---\n(\d+) sent, (\d+) open, 0 lost; min/avg/p95/max = .* ms\n\n--- 192\.0\.2\.9:80 ---\n0 sent, 0 open, 0 lost\n$`)
	if found := want.FindStringSubmatch(p.Output()); found == nil || found[1] != found[2] {
		t.Errorf("printed %s", p.Output())
	}
}

// On a terminal verdicts have colours, unless they are not wanted.
func TestColours(t *testing.T) {
	for env, coloured := range map[string]bool{"TERM=xterm": true, "NO_COLOR=1": false, "TERM=dumb": false} {
		out := onTerminal(t, env, "probe", "127.0.0.1:1")
		if got := strings.Contains(out, "seq=1 \x1b[31mrefused\x1b[0m "); got != coloured || !coloured && strings.Contains(out, "\x1b[3") {
			t.Errorf("%s: colours: %t, want %t, in %q", env, got, coloured, out)
		}
	}
	simnet.NewNetwork(t).At("192.0.2.1", simnet.SYNACK())
	if out := onTerminal(t, "TERM=xterm", "probe", "192.0.2.1:80"); !strings.Contains(out, "seq=1 \x1b[32mopen\x1b[0m time=") {
		t.Errorf("an open port has no colour in %q", out)
	}
}

// What is waited for is shown on the last line, and is gone in the end.
func TestProgress(t *testing.T) {
	simnet.NewNetwork(t)
	out := onTerminal(t, "TERM=xterm", "probe", "--timeout=2s", "192.0.2.1:80")
	if !regexp.MustCompile(`192\.0\.2\.1:80: waiting, \d\.\d s\r\x1b\[K`).MatchString(out) {
		t.Errorf("no progress in %q", out)
	}
	if rest := out[strings.LastIndex(out, "\x1b[K")+1:]; strings.Contains(rest, "waiting") {
		t.Errorf("what was waited for stays: %q", out)
	}
	if out := onTerminal(t, "TERM=dumb", "probe", "--timeout=500ms", "192.0.2.1:80"); strings.Contains(out, "waiting") {
		t.Errorf("progress on a dumb terminal: %q", out)
	}
}

// onTerminal runs the exporter on a terminal and returns what it printed there.
func onTerminal(t *testing.T, env string, args ...string) string {
	t.Helper()
	master, slave := process.OpenTerminal(t)
	defer master.Close()
	cmd := exporter.Command(t, args...)
	cmd.Env = append(cmd.Env, "TERM=xterm", "NO_COLOR=", env)
	cmd.Stdout, cmd.Stderr = slave, slave
	err := cmd.Start()
	slave.Close()
	if err != nil {
		t.Fatal(err)
	}
	out := process.ReadTerminal(master)
	cmd.Wait()
	return out
}
