package endtoend

import (
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

const idleConfig = `
modules:
  path_idle:
    prober: idle
    idle: {steps: [3s, 4s], probe: {interval: 1s, count: 1}, control: 1s}
`

// The exporter is stopped while connections are idle, for so long that the router forgets them although their steps are
// shorter than its timeout. They are skipped: neither lost nor survived.
func TestIdleStopped(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	nft := lab.Program(t, "nft", "nftables")
	m := kernel.NewMiddlebox(t)
	m.Run(nft, "table ip lab { chain forward { type filter hook forward priority 0; ct state invalid drop; }; }")
	m.Sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", "6")
	m.Sysctl("net.netfilter.nf_conntrack_tcp_loose", "0")
	kernel.ServeUntilEOF(t, m.Listen(80))
	p := exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", idleConfig))
	path := "/probe?module=path_idle&target=" + m.Host.String() + ":80"
	scrape := func() string {
		t.Helper()
		status, body := exporter.Get(t, path)
		if status != http.StatusOK {
			t.Fatalf("GET %s = %d %s, want 200", path, status, body)
		}
		return body
	}
	if body := scrape(); strings.Contains(body, "probe_success") ||
		!strings.Contains(body, "probe_idle_rounds_total 0\n") {
		t.Errorf("the first scrape has a result, or lacks probe_idle_rounds_total 0:\n%s", body)
	}
	lab.Eventually(t, "all connections are established", func() bool {
		n := 0
		for _, s := range kernel.Sockets(t) {
			if s.Far == 80 && s.State == 1 {
				n++
			}
		}
		return n == 3
	})
	p.Signal(syscall.SIGSTOP)
	lab.Eventually(t, "the exporter is stopped", p.Stopped)
	time.Sleep(7 * time.Second)
	p.Signal(syscall.SIGCONT)
	var body string
	lab.Eventually(t, "both connections are skipped", func() bool {
		body = scrape()
		return strings.Contains(body, `probe_idle_skipped_total{reason="late"} 2`+"\n")
	})
	for _, no := range []string{"probe_idle_survived", "probe_idle_lost_seconds", "probe_success"} {
		if strings.Contains(body, no) {
			t.Errorf("the scrape has %s, although nothing was measured:\n%s", no, body)
		}
	}
	if !strings.Contains(body, "probe_idle_rounds_total 0\n") {
		t.Errorf("the scrape lacks probe_idle_rounds_total 0:\n%s", body)
	}
}
