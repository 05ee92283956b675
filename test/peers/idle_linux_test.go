package peers

import (
	"math"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

const idleConfig = `
modules:
  limits:
    prober: idle
    idle: {steps: [3s, 12s], probe: {interval: 1s, count: 2}, control: 1s}
`

// Servers end connections whose client says nothing. The exporter finds the limit of each server, and tells it apart
// from that of a middlebox: the server also ends the control connection, which is never idle.
func TestIdleLimitsOfServers(t *testing.T) {
	lab.NeedRoot(t)
	addServerAddress(t)
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", idleConfig))
	for name, c := range map[string]struct {
		start  func(*testing.T) server
		ending string // result and errno
	}{
		"MariaDB": {ending: `result="reset",errno="ECONNRESET"`, start: func(t *testing.T) server {
			startMariaDB(t, "--connect-timeout=5")
			return server{port: mariaDBPort}
		}},
		"nginx": {ending: `result="closed",errno=""`, start: func(t *testing.T) server {
			return startNginx(t, "client_header_timeout 5s;")
		}},
		"PostgreSQL": {ending: `result="closed",errno=""`, start: func(t *testing.T) server {
			return startPostgreSQL(t, "-c", "authentication_timeout=5s")
		}},
		"Redis": {ending: `result="closed",errno=""`, start: func(t *testing.T) server {
			return startRedis(t, "--timeout", "5")
		}},
		"sshd": {ending: `result="closed",errno=""`, start: func(t *testing.T) server {
			return startSSHD(t, "-o", "LoginGraceTime=5")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := awaitRound(t, addressOf(c.start(t).port))
			checkSeries(t, s, map[string]float64{
				`probe_idle_survived{idle="3"}`:                      1,
				`probe_idle_result_info{idle="12",` + c.ending + `}`: 1,
				`probe_idle_control_result_info{` + c.ending + `}`:   1,
				`probe_idle_control_alive`:                           0,
				`probe_idle_lost_seconds`:                            s["probe_idle_told_seconds"],
			})
			// nginx rounds to milliseconds. Redis counts full seconds, and looks at its connections once a second.
			told, age := s["probe_idle_told_seconds"], s["probe_idle_control_age_seconds"]
			if told < 4.9 || told > 9 || math.Abs(age-told) > 4 {
				t.Errorf("a connection ended after %v s, and the control connection after %v s, want the 5 s of the "+
					"server, or a little more", told, age)
			}
		})
	}
}

// The control of TestIdleLimitsOfServers: the server ends no connection, but a router on the path forgets connections
// that are idle for 5 s. The idle connection is lost, and the control connection is not.
func TestIdleLimitOfMiddlebox(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	nft := lab.Program(t, "nft", "nftables")
	m := kernel.NewMiddlebox(t)
	m.Run(nft, "table ip lab { chain forward { type filter hook forward priority 0; ct state invalid drop; }; }")
	m.Sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", "5")
	m.Sysctl("net.netfilter.nf_conntrack_tcp_loose", "0")
	listener := m.Listen(80)
	kernel.ServeUntilEOF(t, listener)
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", idleConfig))
	s := awaitRound(t, listener.Addr().String())
	checkSeries(t, s, map[string]float64{
		`probe_idle_survived{idle="3"}`:                                        1,
		`probe_idle_result_info{idle="12",result="timeout",errno="ETIMEDOUT"}`: 1,
		`probe_idle_control_result_info{result="open",errno=""}`:               1,
		`probe_idle_control_alive`:                                             1,
	})
	if told, ok := s["probe_idle_told_seconds"]; ok {
		t.Errorf("a connection ended unasked after %v s, want that the router drops its packets silently", told)
	}
}

// checkSeries checks that there are certain series with certain values.
func checkSeries(t *testing.T, series, want map[string]float64) {
	t.Helper()
	for name, value := range want {
		if got, ok := series[name]; !ok || got != value {
			t.Errorf("%s is %v (present: %t), want %v", name, got, ok, value)
		}
	}
}

// awaitRound scrapes a target until there is a complete round of measurements, and returns the values of its series.
func awaitRound(t *testing.T, target string) (series map[string]float64) {
	t.Helper()
	lab.Eventually(t, "a round of "+target+" is complete", func() bool {
		series = seriesOf(t, "limits", target)
		return series["probe_idle_rounds_total"] >= 1
	})
	return series
}
