package probe

import (
	"context"
	"net"
	"os"
	"os/exec"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

func TestMain(m *testing.M) { lab.Main(m) }

// again runs the test again in a process with files of its own, such as /etc/resolv.conf: package net has no other way
// to change them. It returns false in that process, which then performs the test.
func again(t *testing.T, files map[string]string) bool {
	t.Helper()
	const inside = "SHAKER_TEST_FILES"
	if os.Getenv(inside) != "" {
		return false
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, own := t.TempDir(), make(map[string]string)
	for path, content := range files {
		own[path] = lab.Write(t, dir, path, content)
	}
	cmd := process.WithFiles(t, exec.Command(program, "-test.run=^"+t.Name()+"$"), own)
	cmd.Env = append(os.Environ(), inside+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the test in a process with files of its own: %v\n%s", err, out)
	}
	return true
}

// newProber returns a Prober with a Shaker of its own. Without a configuration, it has the built-in one.
func newProber(t testing.TB, options Options) *Prober {
	t.Helper()
	return newEngineProber(t, nil, options)
}

// newEngineProber is newProber with another engine.
func newEngineProber(t testing.TB, of *shaker.Config, options Options) *Prober {
	t.Helper()
	lab.Need(t)
	engine, err := shaker.New(of)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	options.Shaker = engine
	if options.Config == nil {
		options.Config = config.Default()
	}
	return New(options)
}

// onEngines runs a test with sockets and with raw SYNs, each apart.
func onEngines(t *testing.T, test func(t *testing.T, engine *shaker.Config)) {
	t.Helper()
	t.Parallel()
	for name, engine := range map[string]*shaker.Config{"sockets": nil, "raw": {Raw: &shaker.Raw{}}} {
		t.Run(name, func(t *testing.T) {
			if !lab.Apart(t) {
				test(t, engine)
			}
		})
	}
}

// parse parses a configuration.
func parse(t testing.TB, text string) *config.Config {
	t.Helper()
	conf, _, err := config.Parse("test.yml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

// request returns a request for a probe with a module of the Prober's configuration.
func request(t testing.TB, p *Prober, target, module string) *Request {
	t.Helper()
	req, err := NewRequest(p.Config(), target, module)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// probeInBackground probes a silent target and returns a function that ends the probe.
func probeInBackground(t testing.TB, p *Prober, target, module string) (end func()) {
	t.Helper()
	req := request(t, p, target, module)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Probe(ctx, req)
	}()
	return func() {
		cancel()
		<-done
	}
}

// listen listens on an address until the test ends.
func listen(t testing.TB, address string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}
