package endtoend

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// One of four routers drops what it should forward. An exporter and a command without any capability show which flows
// fail, and that only these pass that router, wherever people look: in the log of the probe, in the exporter's log, on
// the status page, in /logs, and in the terminal.
func TestBrokenMember(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	fan := kernel.NewFan(t, 4)
	fan.Listen(80)
	const member = 1
	fan.Run(member, lab.Program(t, "nft", "nftables"),
		"table inet broken {\nchain forward {\ntype filter hook forward priority 0\ndrop\n}\n}")
	unprivileged := []string{
		lab.Program(t, "setpriv", "util-linux"), "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs",
	}
	config := "--config.file=" + lab.Write(t, t.TempDir(), "shaker.yml",
		"modules: {tcp_connect: {prober: tcp, timeout: 2s, "+
			"tcp: {flows: 16, source_ports: 20000-20015, path: on_failure}}}")
	command := func(args ...string) *exec.Cmd {
		args = append(unprivileged, exporter.Command(t, args...).Args...)
		return exec.Command(args[0], args[1:]...)
	}
	running := exporter.Run(t, command(config, "--log.level=debug"))
	for _, v6 := range []bool{false, true} {
		target := netip.AddrPortFrom(fan.Host(v6), 80).String()
		query := "target=" + url.QueryEscape(target)
		var debug string
		var found []string
		// If the answer of a router arrives while connect(2) runs, the kernel does not report it.
		lab.Eventually(t, "routers answer all flows", func() bool {
			_, debug = exporter.Get(t, "/probe?debug=true&"+query)
			found = regexp.MustCompile(`  (\d+ of 16 flows failed): (ports? .*)\n`).FindStringSubmatch(debug)
			if found == nil {
				t.Fatalf("the log of a probe of %s does not say that some of 16 flows failed:\n%s", target, debug)
			}
			return !strings.Contains(debug, "no hop has answered")
		})
		failed, ports := found[1], found[2]
		parting := fmt.Sprintf("paths part after %v (hop 1): flows fail at or behind %v (hop 2)",
			fan.Entry(v6), fan.Member(v6, member))
		_, logs := exporter.Get(t, "/logs?"+query)
		_, page := exporter.Get(t, "/?filter="+url.QueryEscape(target))
		for _, c := range []struct{ what, text, want string }{
			{what: "the log of the probe", text: debug, want: "  " + ports + ": " + parting + "\n"},
			{what: "/logs", text: logs, want: failed + ": " + ports + "; " + parting + "\n"},
			{what: "the status page", text: page, want: failed + "</div>"},
			{what: "the status page", text: page, want: parting},
			{
				what: "the exporter's log", text: running.Output(),
				want: fmt.Sprintf(" flows=16 flows_failed=%s flow_path_shared_hop=%v flow_path_failed_hop=%v "+
					"failed_source_ports=",
					strings.Fields(failed)[0], fan.Entry(v6), fan.Member(v6, member)),
			},
		} {
			if !strings.Contains(c.text, c.want) {
				t.Errorf("%s about %s does not contain %q:\n%s", c.what, target, c.want, c.text)
			}
		}

		// The ports of the command are those of the exporter: the same flows fail.
		for _, c := range []struct {
			name     string
			terminal bool
			env      string
			colour   bool
		}{
			{name: "in a terminal", terminal: true, env: "TERM=xterm", colour: true},
			{name: "in a terminal with NO_COLOR", terminal: true, env: "NO_COLOR=1"},
			{name: "in a pipe", env: "TERM=xterm"},
		} {
			cmd := command(config, "probe", "--path", target)
			cmd.Env = append(cmd.Environ(), "TERM=xterm", c.env)
			text := run(t, cmd, c.terminal)
			if got := cmd.ProcessState.ExitCode(); got != 1 {
				t.Errorf("probe --path %s, %s, exits with %d, want 1", target, c.name, got)
			}
			coloured := "\x1b[31m 2  " + fan.Member(v6, member).String() + "\x1b[0m"
			if got := strings.Contains(text, coloured); got != c.colour {
				t.Errorf("probe --path %s, %s: the hop that only failing flows pass is red: %t, want %t:\n%q",
					target, c.name, got, c.colour, text)
			}
			if got := strings.Contains(text, "\x1b[3"); got != c.colour {
				t.Errorf("probe --path %s, %s: the output has colours: %t, want %t:\n%q",
					target, c.name, got, c.colour, text)
			}
			plain := regexp.MustCompile(`\x1b\[\d*[mK]`).ReplaceAllString(text, "")
			for _, want := range []string{
				failed + "\n", "A  timeout ETIMEDOUT  " + ports + "\n", ": " + parting + "\n",
			} {
				if !strings.Contains(plain, want) {
					t.Errorf("probe --path %s, %s, does not print %q:\n%s", target, c.name, want, plain)
				}
			}
		}
	}
}

// The command line can probe from the ports that a running exporter has reserved for its flows, as the exporter's user.
// As another user it says what is wrong.
func TestSourcePortsOfTheExporter(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml",
		"modules: {tcp_connect: {prober: tcp, tcp: {flows: 4}}}"))
	_, scrape := exporter.Get(t, "/probe?target="+l.Addr().String())
	var ports []string
	for _, found := range regexp.MustCompile(`source_port="(\d+)",result="open"`).FindAllStringSubmatch(scrape, -1) {
		ports = append(ports, found[1])
	}
	if len(ports) != 4 {
		t.Fatalf("the scrape has the open ports %v, want 4:\n%s", ports, scrape)
	}
	probe := exporter.Command(t, "probe", "--flows=4", "--source-ports="+ports[0]+"-"+ports[3], "--output=json",
		l.Addr().String())
	for _, c := range []struct {
		user string
		want string
	}{
		{user: "0", want: `"source_port":` + ports[0] + `,"success":true`},
		{user: "65534", want: "all ports of the flows, " + ports[0] + "-" + ports[3] +
			", are in use by other programs, or reserved by an exporter of another user"},
	} {
		setpriv := lab.Program(t, "setpriv", "util-linux")
		cmd := exec.Command(setpriv, append([]string{"--reuid=" + c.user, "--clear-groups"}, probe.Args...)...)
		if text := run(t, cmd, false); !strings.Contains(text, c.want) {
			t.Errorf("probe as the user %s prints\n%s\nwant %q", c.user, text, c.want)
		}
	}
}

// run runs a command, which may fail, and returns its output: what it writes to a terminal of 100 columns or to a pipe.
func run(t *testing.T, cmd *exec.Cmd, terminal bool) string {
	t.Helper()
	if !terminal {
		out, _ := cmd.Output()
		return string(out)
	}
	master, slave := process.OpenTerminal(t)
	defer master.Close()
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100}); err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = slave
	err := cmd.Start()
	slave.Close()
	if err != nil {
		t.Fatal(err)
	}
	text := process.ReadTerminal(master)
	cmd.Wait()
	return strings.ReplaceAll(text, "\r\n", "\n")
}
