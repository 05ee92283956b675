package endtoend

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// The probe command fails if it cannot write its output.
func TestProbeCommandOutputToFullDevice(t *testing.T) {
	for _, output := range []string{"text", "json", "openmetrics"} {
		cmd := exporter.Command(t, "probe", "--output="+output, "127.0.0.1:1")
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			lab.Skip(t, "needs /dev/full: %v", err)
		}
		var stderr strings.Builder
		cmd.Stdout, cmd.Stderr = full, &stderr
		err = cmd.Run()
		full.Close()
		if cmd.ProcessState == nil {
			t.Fatalf("%v: %v, want it to run", cmd.Args, err)
		}
		const want = "shaker_exporter: write /dev/stdout: no space left on device\n"
		if code := cmd.ProcessState.ExitCode(); code != 1 || stderr.String() != want {
			t.Errorf("probe --output=%s >/dev/full: exit status %d, stderr %q, want 1 and %q",
				output, code, &stderr, want)
		}
	}
}

// An interrupted probe command prints a summary of the probes that have ended, with the SYNs that are not answered yet,
// and exits with 1 if a target has no result yet. A name that is still looked up has sent no SYN.
func TestInterruptedProbeCommand(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK())
	// Before SIGINT, SIGQUIT prints the statistics so far, and the command continues.
	p := process.Start(t, exporter.Command(t, "probe", "--count=0", "--interval=1ms", "--timeout=2m",
		"192.0.2.1:80", "192.0.2.9:443"))
	lab.Eventually(t, "the command prints the third handshake", func() bool {
		return strings.Contains(p.Output(), "seq=3 open")
	})
	lab.Eventually(t, "the SYN to the silent target is out", func() bool { return exporter.SilentHandshakes(t) == 1 })
	p.Signal(syscall.SIGQUIT)
	statistics := regexp.MustCompile(`(?m)^192\.0\.2\.1:80: ` +
		`\d+ sent, \d+ open, 0 lost(, 1 not answered yet)?; min/avg/p95/max = .* ms\n` +
		`192\.0\.2\.9:443: 1 sent, 0 open, 0 lost, 1 not answered yet\n`)
	lab.Eventually(t, "SIGQUIT prints the statistics", func() bool { return statistics.MatchString(p.Output()) })
	before := strings.Count(p.Output(), " open time=")
	lab.Eventually(t, "the command continues", func() bool { return strings.Count(p.Output(), " open time=") > before })

	p.Signal(os.Interrupt)
	if code := p.Wait(); code != 1 {
		t.Errorf("after SIGINT the command exits with %d, want 1", code)
	}
	summary := regexp.MustCompile(`\n--- 192\.0\.2\.1:80 ---\n` +
		`(\d+) sent, (\d+) open, 0 lost(, 1 not answered yet)?; min/avg/p95/max = .* ms\n` +
		`\n--- 192\.0\.2\.9:443 ---\n1 sent, 0 open, 0 lost, 1 not answered yet\n$`)
	counts := summary.FindStringSubmatch(p.Output())
	if counts == nil || counts[3] == "" && counts[1] != counts[2] {
		t.Errorf("after SIGINT the output is\n%s\nwant %v at its end, and as many open as sent", p.Output(), summary)
	}
}

// A command whose output nobody takes cannot print a summary after the first SIGINT. The next one ends it.
func TestInterruptedCommandWithoutReader(t *testing.T) {
	talkative := servePeer(t, func(_ int, c *net.TCPConn) {
		for err := error(nil); err == nil; {
			_, err = fmt.Fprintln(c, "hello")
		}
	})
	for _, args := range [][]string{
		{"probe", "--count=0", "--interval=0s", "127.0.0.1:1"},
		{"hold", "--delimiter=\\n", talkative.address},
	} {
		cmd := exporter.Command(t, args...)
		reader, writer, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		size, err := unix.FcntlInt(writer.Fd(), unix.F_SETPIPE_SZ, 4096)
		if err != nil {
			t.Fatalf("set the size of a pipe: %v", err)
		}
		cmd.Stdout = writer
		err = cmd.Start()
		writer.Close()
		if err != nil {
			t.Fatalf("start %v: %v", cmd.Args, err)
		}
		ended := make(chan struct{})
		go func() { cmd.Wait(); close(ended) }()
		t.Cleanup(func() { cmd.Process.Kill(); <-ended })
		lab.Eventually(t, "the pipe is full", func() bool {
			n, err := unix.IoctlGetInt(int(reader.Fd()), unix.TIOCINQ)
			return err == nil && n > size-200
		})
		lab.Eventually(t, fmt.Sprintf("repeated SIGINTs end %s, whose output nobody takes", args[0]), func() bool {
			cmd.Process.Signal(os.Interrupt)
			select {
			case <-ended:
				return true
			default:
				return false
			}
		})
		if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGINT {
			t.Errorf("%v ended with %v, want signal: interrupt", cmd.Args, cmd.ProcessState)
		}
	}
}

// On a terminal the command prints results in colour: red if the result is not valid for the module, green if
// it is. NO_COLOR and TERM=dumb disable colours.
func TestColours(t *testing.T) {
	for env, coloured := range map[string]bool{"TERM=xterm": true, "NO_COLOR=1": false, "TERM=dumb": false} {
		out := onTerminal(t, env, "probe", "127.0.0.1:1")
		if got := strings.Contains(out, "seq=1 \x1b[31mrefused\x1b[0m "); got != coloured {
			t.Errorf("with %s the output is %q: refused in red: %t, want %t", env, out, got, coloured)
		}
		if !coloured && strings.Contains(out, "\x1b[3") {
			t.Errorf("with %s the output is %q, want no colour", env, out)
		}
	}
	simnet.NewNetwork(t).At("192.0.2.1", simnet.SYNACK())
	const want = "seq=1 \x1b[32mopen\x1b[0m time="
	if out := onTerminal(t, "TERM=xterm", "probe", "192.0.2.1:80"); !strings.Contains(out, want) {
		t.Errorf("the output for an open port is %q, want %q in it", out, want)
	}
}

// On a terminal the last line shows which target the command waits for. The command erases this line at the
// end. A dumb terminal has no such line.
func TestProgress(t *testing.T) {
	simnet.NewNetwork(t)
	out := onTerminal(t, "TERM=xterm", "probe", "--timeout=2s", "192.0.2.1:80")
	progress := regexp.MustCompile(`192\.0\.2\.1:80: waiting, \d\.\d s\r\x1b\[K`)
	if !progress.MatchString(out) {
		t.Errorf("the output is %q, want %v in it", out, progress)
	}
	if rest := out[strings.LastIndex(out, "\x1b[K")+1:]; strings.Contains(rest, "waiting") {
		t.Errorf("the output is %q, want the line with \"waiting\" erased at the end", out)
	}
	out = onTerminal(t, "TERM=dumb", "probe", "--timeout=500ms", "192.0.2.1:80")
	if strings.Contains(out, "waiting") {
		t.Errorf("on a dumb terminal the output is %q, want no line with \"waiting\"", out)
	}
}

// onTerminal runs the exporter on a terminal and returns what it printed there.
func onTerminal(t *testing.T, env string, args ...string) string {
	t.Helper()
	master, slave := process.OpenTerminal(t)
	defer master.Close()
	cmd := exporter.Command(t, args...)
	cmd.Env = append(os.Environ(), "TERM=xterm", "NO_COLOR=", env)
	cmd.Stdout, cmd.Stderr = slave, slave
	err := cmd.Start()
	slave.Close()
	if err != nil {
		t.Fatalf("start %v: %v", cmd.Args, err)
	}
	out := process.ReadTerminal(master)
	cmd.Wait()
	return out
}
