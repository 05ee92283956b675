package endtoend

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// With a web configuration file, the exporter requires a client certificate and a password.
func TestMutualTLSAndPassword(t *testing.T) {
	dir := t.TempDir()
	newAuthority(t, dir, "server", "client")
	hash, err := bcrypt.GenerateFromPassword([]byte("correct-horse"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	lab.Write(t, dir, "web.yml", `
tls_server_config:
  cert_file: server.pem
  key_file: server.key
  client_ca_file: authority.pem
  client_auth_type: RequireAndVerifyClientCert
basic_auth_users:
  prometheus: `+string(hash)+"\n")
	p := exporter.Start(t, "--web.config.file="+dir+"/web.yml")
	t.Run("Prometheus", func(t *testing.T) { scrapeOverTLS(t, dir) })
	t.Run("curl", func(t *testing.T) { requestOverTLS(t, dir, p) })
}

// scrapeOverTLS lets a real Prometheus scrape the exporter with the right password, and with a wrong one.
func scrapeOverTLS(t *testing.T, dir string) {
	client := fmt.Sprintf(`
    scheme: https
    scrape_interval: 1s
    tls_config: {ca_file: %[1]s/authority.pem, cert_file: %[1]s/client.pem, key_file: %[1]s/client.key}
    static_configs: [{targets: ["localhost:10115"]}]
`, dir)
	config := lab.Write(t, dir, "prometheus.yml", `
scrape_configs:
  - job_name: right_password
    basic_auth: {username: prometheus, password: correct-horse}
    metrics_path: /probe
    params: {target: ["127.0.0.1:10115"]}`+client+`
  - job_name: wrong_password
    basic_auth: {username: prometheus, password: guess}`+client)
	prometheus := process.StartPrometheus(t, 9090, config)
	lab.Eventually(t, "both jobs have scraped", func() bool { return len(prometheus.Query("up")) == 2 })
	for expression, want := range map[string]float64{"probe_success": 1, `up{job="wrong_password"}`: 0} {
		if got := prometheus.Query(expression); len(got) != 1 || got[0].Value != want {
			t.Errorf("the query %s = %v, want one series with the value %v", expression, got, want)
		}
	}
}

// requestOverTLS requests a page with curl: with a certificate and a password, and without one of the two.
func requestOverTLS(t *testing.T, dir string, p *process.Process) {
	curl := lab.Program(t, "curl", "curl")
	request := []string{"-s", "--cacert", dir + "/authority.pem", "https://localhost:10115/-/healthy"}
	password := []string{"-u", "prometheus:correct-horse"}
	certificate := []string{"--cert", dir + "/client.pem", "--key", dir + "/client.key"}
	for _, c := range []struct {
		name string
		args []string
		want string // the body
	}{
		{name: "password and certificate", args: slices.Concat(password, certificate), want: "Healthy\n"},
		{name: "no password", args: certificate, want: "Unauthorized\n"},
		{name: "no certificate", args: password, want: ""},
	} {
		out, err := exec.Command(curl, append(c.args, request...)...).Output()
		if string(out) != c.want {
			t.Errorf("%s: curl prints %q, %v, want %q", c.name, out, err, c.want)
		}
	}
	if want := "client didn't provide a certificate"; !strings.Contains(p.Output(), want) {
		t.Errorf("the log is %s\nwant %q in it", p.Output(), want)
	}
}

// newAuthority writes the certificate of an authority, authority.pem, and certificates that it has issued for
// localhost, each with its key.
func newAuthority(t *testing.T, dir string, names ...string) {
	t.Helper()
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
	}
	authority := template("authority")
	authority.IsCA, authority.BasicConstraintsValid = true, true
	var authorityKey *ecdsa.PrivateKey
	for _, name := range append([]string{"authority"}, names...) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		certificate := template(name)
		if authorityKey == nil {
			certificate, authorityKey = authority, key
		}
		signed, err := x509.CreateCertificate(rand.Reader, certificate, authority, &key.PublicKey, authorityKey)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		lab.Write(t, dir, name+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed})))
		lab.Write(t, dir, name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	}
}

// With --web.systemd-socket, systemd listens, and starts the exporter on the first connection.
func TestSocketActivation(t *testing.T) {
	activate := lab.Program(t, "systemd-socket-activate", "systemd")
	program := exporter.Command(t).Path
	cmd := exec.Command(activate, "--listen=127.0.0.1:10115", program, "--web.systemd-socket")
	process.Start(t, cmd).Listening(10115)
	const path, want = "/probe?target=127.0.0.1:10115", "probe_success 1\n"
	if status, body := exporter.Get(t, path); status != 200 || !strings.Contains(body, want) {
		t.Errorf("GET %s = %d %s\nwant 200 and %q in it", path, status, body, want)
	}
}

// All endpoints are below the path of --web.external-url or below --web.route-prefix, and only there. The root
// and the prefix redirect to the status page.
func TestRoutePrefix(t *testing.T) {
	for _, c := range []struct {
		flags    []string
		prefix   string
		location string // to which / redirects, "" if it is the status page
	}{
		{
			flags:  []string{"--web.external-url=https://example.com/tools/shaker/"},
			prefix: "/tools/shaker", location: "https://example.com/tools/shaker/",
		},
		{flags: []string{"--web.external-url=/shaker/"}, prefix: "/shaker", location: "/shaker/"},
		{flags: []string{"--web.external-url=/"}},
		{flags: []string{"--web.route-prefix=shaker/"}, prefix: "/shaker", location: "/shaker/"},
		{flags: []string{"--web.external-url=https://example.com/shaker", "--web.route-prefix=/"}},
		{flags: []string{"--web.external-url=https://example.com"}},
	} {
		p := exporter.Start(t, c.flags...)
		for _, page := range []struct{ path, want string }{
			{path: "/", want: "<form"},
			{path: "/probe?target=localhost:10115", want: "probe_success 1\n"},
			{path: "/metrics", want: "shaker_exporter_build_info"},
			{path: "/config", want: "tcp_connect:"},
			{path: "/logs", want: "localhost:10115"},
			{path: "/-/healthy", want: "Healthy\n"},
		} {
			path := c.prefix + page.path
			if status, body := exporter.Get(t, path); status != 200 || !strings.Contains(body, page.want) {
				t.Errorf("with %v, GET %s = %d %s\nwant 200 and %q in it", c.flags, path, status, body, page.want)
			}
			if c.prefix != "" && page.path != "/" {
				if status, body := exporter.Get(t, page.path); status != 404 {
					t.Errorf("with %v, GET %s = %d %s, want 404", c.flags, page.path, status, body)
				}
			}
		}
		for _, path := range []string{"/", c.prefix} {
			if path == "" {
				continue
			}
			response, err := lab.Client.Transport.RoundTrip(exporter.NewRequest(t, "GET", exporter.Port, path))
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if got := response.Header.Get("Location"); got != c.location {
				t.Errorf("with %v, GET %s redirects to %q, want %q", c.flags, path, got, c.location)
			}
		}
		p.Stop()
	}
}

// With --web.enable-pprof the exporter serves profiles of itself.
func TestProfiling(t *testing.T) {
	exporter.Start(t, "--web.enable-pprof", "--web.route-prefix=/shaker")
	for path, want := range map[string]string{
		"/shaker/debug/pprof/":                  "heap",
		"/shaker/debug/pprof":                   "heap",
		"/shaker/debug/pprof/heap?debug=1":      "heap profile:",
		"/shaker/debug/pprof/goroutine?debug=1": "goroutine profile:",
		"/shaker/debug/pprof/cmdline":           "--web.enable-pprof",
	} {
		if status, body := exporter.Get(t, path); status != 200 || !strings.Contains(body, want) {
			t.Errorf("GET %s = %d %s\nwant 200 and %q in it", path, status, body, want)
		}
	}
}
