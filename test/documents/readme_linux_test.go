package documents

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// The commands of README's quick start print what README shows: the same lines and the same series in the same
// order. Latencies and the MSS, which depend on the machine, may have other values.
func TestREADMEQuickStart(t *testing.T) {
	for program, debianPackage := range map[string]string{"sh": "dash", "curl": "curl", "grep": "grep"} {
		lab.Program(t, program, debianPackage)
	}
	hosts := lab.Write(t, t.TempDir(), "hosts", "127.0.0.1 localhost\n") // some machines also have ::1
	exporter.Run(t, process.WithFiles(t, exporter.Command(t), map[string]string{"/etc/hosts": hosts}))
	tried := 0
	for _, s := range snippets(t, "console", readme) {
		for _, c := range commands(s.text) {
			if c.tried() {
				tried++
			}
		}
		tryTranscript(t, s, steadyMetrics)
	}
	if tried < 3 {
		t.Errorf("%s has %d commands to try, want at least 3", readme, tried)
	}
}

// The control case of TestREADMEQuickStart: steadyMetrics replaces no name, label or other value.
func TestSteadyMetrics(t *testing.T) {
	const metrics = `probe_success 1
probe_result_info{result="open",errno=""} 1
probe_duration_seconds 0.000170264
probe_timeout_seconds 5
probe_dns_lookup_time_seconds 5.0946e-05
probe_tcp_mss_bytes 32741
`
	const want = `probe_success 1
probe_result_info{result="open",errno=""} 1
probe_duration_seconds V
probe_timeout_seconds 5
probe_dns_lookup_time_seconds V
probe_tcp_mss_bytes V
`
	if got := steadyMetrics(metrics); got != want {
		t.Errorf("steadyMetrics(%q) = %q, want %q", metrics, got, want)
	}
}

var machineValue = regexp.MustCompile(
	`(?m)^(probe_(?:duration|dns_lookup_time|tcp_handshake|tcp_rtt)_seconds|probe_tcp_mss_bytes) [0-9.e+-]+$`)

// steadyMetrics replaces the values of a probe's metrics that depend on the machine.
func steadyMetrics(text string) string { return machineValue.ReplaceAllString(text, "$1 V") }

// The transcript of an invalid configuration is what the exporter prints.
func TestConfigurationCheck(t *testing.T) {
	transcript := snippetWith(t, configurationPage, "console", "$ cat wrong.yml")
	const line = "$ shaker_exporter --config.check --config.file=wrong.yml\n"
	wrong, want, found := strings.Cut(strings.TrimPrefix(transcript, "$ cat wrong.yml\n"), line)
	if !found {
		t.Fatalf("%s: the transcript lacks %q:\n%s", configurationPage, line, transcript)
	}
	cmd := exporter.Command(t, "--config.check", "--config.file=wrong.yml")
	cmd.Dir = t.TempDir()
	lab.Write(t, cmd.Dir, "wrong.yml", wrong)
	if got, _ := cmd.CombinedOutput(); string(got) != want {
		t.Errorf("%s: %sprints\n%s\nthe page has\n%s", configurationPage, line, got, want)
	}
}

// The page's example of a configuration is valid, and the transcript of a denied target is what curl prints.
func TestConfigurationPolicy(t *testing.T) {
	shell := lab.Program(t, "sh", "dash")
	lab.Program(t, "curl", "curl")
	file := lab.Write(t, t.TempDir(), "shaker.yml", snippetWith(t, configurationPage, "yaml", "firewall_holds"))
	exporter.Start(t, "--config.file="+file)
	transcript := snippetWith(t, configurationPage, "console", "169.254.169.254")
	line, want, _ := strings.Cut(strings.TrimPrefix(transcript, "$ "), "\n")
	if got, _ := exec.Command(shell, "-c", line).CombinedOutput(); string(got) != want {
		t.Errorf("%s: $ %s\nprints\n%s\nthe page has\n%s", configurationPage, line, got, want)
	}
}

// The transcript of the probe command is what the command prints, except for the times.
func TestOperationProbe(t *testing.T) {
	exporter.Start(t)
	tryProbe(t, operationPage, "$ shaker_exporter probe --count")
}

// The transcript of a path is what the command prints, except for the times, if the second router drops SYNs.
func TestPathTranscript(t *testing.T) {
	lab.Program(t, "nft", "nftables")
	node{kernel.NewChain(t), 2}.rules(t, filterForward("tcp flags syn / syn,ack drop;"))
	tryProbe(t, pathPage, "$ shaker_exporter probe --path")
}

// tryProbe runs the probe command of a page's transcript that contains a text, and compares the output with the
// page.
func tryProbe(t *testing.T, page, with string) {
	t.Helper()
	transcript := snippetWith(t, page, "console", with)
	line, want, _ := strings.Cut(strings.TrimPrefix(transcript, "$ shaker_exporter "), "\n")
	got, _ := exporter.Command(t, strings.Fields(line)...).Output()
	if exporter.Steady(string(got)) != exporter.Steady(want) {
		t.Errorf("%s: $ shaker_exporter %s\nprints\n%s\nthe page has\n%s", page, line, got, want)
	}
}

// The transcript of the hold command is what the command prints, except for the times, if Redis is stopped and
// continued.
func TestOperationHold(t *testing.T) {
	redis := process.Start(t, exec.Command(lab.Program(t, "redis-server", "redis-server"), "--port", "6379",
		"--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir()))
	redis.Listening(6379)
	transcript := snippetWith(t, operationPage, "console", "$ shaker_exporter hold")
	line, want, _ := strings.Cut(strings.TrimPrefix(transcript, "$ shaker_exporter "), "\n")
	hold := process.Start(t, exporter.Command(t, strings.Fields(strings.ReplaceAll(line, "'", ""))...))
	shows := func(text string) {
		t.Helper()
		lab.Eventually(t, "the command prints "+text, func() bool { return strings.Contains(hold.Output(), text) })
	}
	shows("answered")
	redis.Signal(syscall.SIGSTOP)
	t.Cleanup(func() { redis.Signal(syscall.SIGCONT) })
	shows("silent")
	redis.Signal(syscall.SIGCONT)
	shows("late")
	lab.Eventually(t, "the command prints an answer in time, after the late one", func() bool {
		_, after, _ := strings.Cut(hold.Output(), "late")
		return strings.Contains(after, "answered")
	})
	hold.Signal(os.Interrupt)
	if code := hold.Wait(); code != 0 {
		t.Errorf("$ shaker_exporter %s\nexits with %d, want 0", line, code)
	}
	want = strings.Replace(want, "^C\n", "\n", 1) // the terminal echoes it
	if got := exporter.Steady(hold.Output()); got != exporter.Steady(want) {
		t.Errorf("%s: $ shaker_exporter %s\nprints\n%s\nthe page has\n%s", operationPage, line, got, want)
	}
}
