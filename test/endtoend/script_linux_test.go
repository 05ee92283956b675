package endtoend

import (
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// scripts are sessions with the exporter's command line. Those whose names begin with probe_ or hold_ are about the
// network of TestCommands.
const scripts = "test/endtoend/testdata/script/*.txtar"

var updateScripts = flag.Bool("update-scripts", false, "write what the exporter prints into testdata/script")

// The command line does what the scripts show, without any network.
func TestCommandLine(t *testing.T) {
	runScripts(t, func(name string) bool { return !needsNetwork(name) })
}

func needsNetwork(script string) bool {
	return strings.HasPrefix(script, "probe_") || strings.HasPrefix(script, "hold_")
}

// The commands print the results that the scripts show, and exit with the status that they show.
func TestCommands(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.1", simnet.SYNACK())
	network.At("192.0.2.2", simnet.RST())
	network.At("192.0.2.3", simnet.ICMP("198.51.100.7", 3, 13))
	network.At("192.0.2.4").Then(simnet.SYNACK()) // the first SYN is lost
	network.At("192.0.2.5", simnet.SYNACK()).Behind("198.51.100.1", "", "198.51.100.3")
	network.At("2001:db8::1", simnet.SYNACK())
	// The network has no DNS server that replies. A DNS server on this host does not reply either.
	server, err := net.ListenPacket("udp", ":53")
	if err != nil {
		t.Fatalf("listen on the DNS port: %v", err)
	}
	t.Cleanup(func() { server.Close() })
	runScripts(t, needsNetwork)
}

// runScripts runs the scripts whose names match. In addition to the commands of testscript they use these:
//
//	exits STATUS PROGRAM ARGS...  runs the program like exec, and fails unless it exits with the status
//	steady stdout                 replaces times and local ports, which differ from run to run, with T
//	json stdout                   fails unless every line of the output is valid JSON
//	needs PROGRAM PACKAGE         skips the script unless the program, of a Debian package, is installed
//
// needs comes first in a script: a script that is skipped does not report its failures.
func runScripts(t *testing.T, match func(name string) bool) {
	t.Helper()
	program := exporter.Command(t).Path
	files := slices.DeleteFunc(lab.Files(t, scripts), func(file string) bool { return !match(filepath.Base(file)) })
	testscript.Run(t, testscript.Params{
		Files: files,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", filepath.Dir(program)+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Values[testKey{}] = env.T()
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "steady": steady, "json": validJSON, "needs": needs,
		},
		RequireUniqueNames: true,
		ContinueOnError:    true,
		UpdateScripts:      *updateScripts,
	})
}

// testKey is the key of a script's test among its values.
type testKey struct{}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits status program [argument...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var failure *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &failure) {
		got = failure.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s: exit status %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

func steady(ts *testscript.TestScript, neg bool, args []string) {
	if neg || !slices.Equal(args, []string{"stdout"}) {
		ts.Fatalf("usage: steady stdout")
	}
	stdout, stderr := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	io.WriteString(ts.Stdout(), exporter.Steady(stdout))
	io.WriteString(ts.Stderr(), stderr)
}

func validJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || !slices.Equal(args, []string{"stdout"}) {
		ts.Fatalf("usage: json stdout")
	}
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		if !json.Valid([]byte(line)) {
			ts.Fatalf("stdout has the line %q, want valid JSON", line)
		}
	}
}

func needs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: needs program package")
	}
	lab.Program(ts.Value(testKey{}).(testing.TB), args[0], args[1])
}
