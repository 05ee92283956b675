package documents

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// docs/hold.md has the kernel's default values for keepalive, and the time that follows from them.
func TestKeepaliveSysctls(t *testing.T) {
	lab.Need(t) // this network namespace has the default values
	value := make(map[string]int)
	for name, cells := range rows(t, holdPage, "sysctl") {
		text := lab.Read(t, "/proc/sys/"+strings.ReplaceAll(name, ".", "/"))
		if want := strings.TrimSuffix(cells[0], " s"); strings.TrimSpace(text) != want {
			t.Errorf("%s is %s, %s has %s", name, strings.TrimSpace(text), holdPage, want)
		}
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			t.Fatal(err)
		}
		value[cells[1]] = n
	}
	if len(value) != 3 {
		t.Fatalf("%s has sysctls for the keys %v, want idle, interval and count", holdPage, value)
	}
	total := value["idle"] + value["interval"]*value["count"]
	want := fmt.Sprintf("%d + %d × %d = %d s, which is %v.",
		value["idle"], value["count"], value["interval"], total, time.Duration(total)*time.Second)
	if text := strings.Join(strings.Fields(lab.Read(t, holdPage)), " "); !strings.Contains(text, want) {
		t.Errorf("%s lacks %q", holdPage, want)
	}
}

// A heldServer is an application that answers heartbeats.
type heldServer struct {
	listener net.Listener
	deaf     bool // it does not read

	mu      sync.Mutex
	conns   []*net.TCPConn
	stopped bool // it does not answer
}

// serve accepts connections for the rest of the test.
func (s *heldServer) serve(t *testing.T) {
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := s.listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, conn.(*net.TCPConn))
			s.mu.Unlock()
			if !s.deaf {
				serving.Go(func() { s.answer(conn) })
			}
		}
	})
	t.Cleanup(func() {
		s.listener.Close()
		s.each(func(c *net.TCPConn) { c.Close() })
		serving.Wait()
	})
}

func (s *heldServer) answer(conn net.Conn) {
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		s.mu.Lock()
		stopped := s.stopped
		s.mu.Unlock()
		if !stopped {
			io.WriteString(conn, "+PONG\r\n")
		}
	}
}

func (s *heldServer) each(f func(*net.TCPConn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.conns {
		f(conn)
	}
}

func (s *heldServer) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
}

// seriesOf returns the value of the first series of a metric in an exposition, or 0.
func seriesOf(t *testing.T, body, metric string) float64 {
	t.Helper()
	found := regexp.MustCompile(`(?m)^` + metric + `(?:\{.*\})? (\S+)$`).FindStringSubmatch(body)
	if found == nil {
		return 0
	}
	value, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// The page's table shows how connections end, with and without heartbeats.
func TestHeldEnds(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	chain := kernel.NewChain(t)
	prober, loose, strict, host := node{chain, 0}, node{chain, 2}, node{chain, 3}, node{chain, 4}
	ip := lab.Program(t, "ip", "iproute2")
	conntrack := lab.Program(t, "conntrack", "conntrack")
	// With a FIN, connections whose path is gone would go on sending it to the host of the next test.
	const ways = "keepalive: {idle: 1s, interval: 1s, count: 3}, reconnect: {min: 1h, max: 1h}, close: reset"
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", `modules:
  kept: {prober: hold, timeout: 2s, hold: {`+ways+`}}
  asked: {prober: hold, timeout: 2s, hold: {`+ways+`, heartbeat: {
    interval: 2s, timeout: 500ms, send: "PING\r\n", expect: '^\+PONG', frame: {delimiter: "\r\n"}}}}
`))
	const rebooting = "10.77.4.3"
	host.Run(host.n, ip, "address", "add", rebooting+"/32", "dev", "lo")
	// One router forgets connections and takes them up again, the other one does not.
	strict.In(strict.n, func() error {
		return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_loose", []byte("0"), 0)
	})
	const silent, telling, lenient, vanishing, routeless, prohibited = 7001, 7002, 7003, 7004, 7005, 7006
	strict.rules(t, filterForward(fmt.Sprintf("tcp dport %d ct state invalid drop; "+
		"tcp dport %d ct state invalid reject with tcp reset;", silent, telling)))
	loose.rules(t, filterForward(fmt.Sprintf("tcp dport %d ct state invalid drop;", lenient)))
	forget := func(router node, port int) {
		router.Run(router.n, conntrack, "-D", "-p", "tcp", "--dport", strconv.Itoa(port))
	}
	each := func(f func(*net.TCPConn)) func(*heldServer) { return func(s *heldServer) { s.each(f) } }

	type scene struct {
		name    string
		address string // 10.77.4.2 if it is empty
		port    int
		deaf    bool
		end     func(s *heldServer)
		stays   bool // the connection does not end
		last    bool // it affects the other ones

		server *heldServer
		ended  time.Time
	}
	scenes := []*scene{
		{name: "the application closes the connection, or its process ends", port: 8001,
			end: each(func(c *net.TCPConn) { c.Close() })},
		{name: "the application closes its sending side only", port: 8002,
			end: each(func(c *net.TCPConn) { c.CloseWrite() })},
		{name: "the process is killed, and has not read the last heartbeat", port: 8003, deaf: true,
			end: each(func(c *net.TCPConn) { c.Close() })},
		{name: "the application sends an RST", port: 8004,
			end: each(func(c *net.TCPConn) { c.SetLinger(0); c.Close() })},
		{name: "the application is stopped, or hangs", port: 8005, stays: true,
			end: func(s *heldServer) { s.stop() }},
		{name: "the host vanishes, or its cable is pulled", port: vanishing,
			end: func(*heldServer) {
				loose.Run(loose.n, lab.Program(t, "nft", "nftables"),
					fmt.Sprintf("insert rule inet page forward tcp dport %d drop", vanishing))
			}},
		{name: "the host restarts", address: rebooting, port: 8006,
			end: func(*heldServer) { // another kernel, which has no connections, has its address
				host.Run(host.n, ip, "address", "del", rebooting+"/32", "dev", "lo")
				strict.Run(strict.n, ip, "address", "add", rebooting+"/32", "dev", "lo")
			}},
		{name: "a router forgets the connection, and drops its packets", port: silent,
			end: func(*heldServer) { forget(strict, silent) }},
		{name: "a router forgets the connection, and answers with RST", port: telling,
			end: func(*heldServer) { forget(strict, telling) }},
		{name: "a router forgets the connection, and takes it up again", port: lenient, stays: true,
			end: func(*heldServer) { forget(loose, lenient) }},
		{name: "a router has no route any more, and says so", port: routeless,
			end: func(*heldServer) {
				loose.Run(loose.n, lab.Program(t, "nft", "nftables"), fmt.Sprintf("insert rule inet page forward "+
					"tcp dport %d reject with icmp host-unreachable", routeless))
			}},
		{name: "a firewall prohibits the connection, and says so", port: prohibited,
			end: func(*heldServer) {
				loose.Run(loose.n, lab.Program(t, "nft", "nftables"), fmt.Sprintf("insert rule inet page forward "+
					"tcp dport %d reject with icmp admin-prohibited", prohibited))
			}},
		{name: "this host has no route any more", port: 8007, last: true,
			end: func(*heldServer) { prober.Run(prober.n, ip, "route", "del", "10.77.4.0/24") }},
	}
	modules := []string{"kept", "asked"}
	path := func(s *scene, module string) string {
		address := s.address
		if address == "" {
			address = "10.77.4.2"
		}
		return fmt.Sprintf("/probe?module=%s&target=%s:%d", module, url.QueryEscape(address), s.port)
	}
	for _, s := range scenes {
		s.server = &heldServer{listener: host.listen(t, s.port, net.ListenConfig{}), deaf: s.deaf}
		s.server.serve(t)
		for _, module := range modules {
			want := 1.0
			if s.deaf && module == "asked" {
				want = 0
			}
			if _, body := exporter.Get(t, path(s, module)); seriesOf(t, body, "probe_success") != want {
				t.Fatalf("%s: GET %s: want probe_success %v in\n%s", s.name, path(s, module), want, body)
			}
		}
		lab.Eventually(t, s.name+": a heartbeat has been answered, or has arrived", func() bool {
			_, body := exporter.Get(t, path(s, "asked"))
			return seriesOf(t, body, "probe_hold_heartbeats_total") > 0
		})
	}

	measured, table := make(map[string][]string), rows(t, holdPage, "what happens")
	end := func(s *scene) {
		s.ended = time.Now()
		s.end(s.server)
	}
	measure := func(s *scene) {
		var cells []string
		for _, module := range modules {
			cell := ""
			lab.Eventually(t, s.name+", "+module+": the connection has ended, or is known to live", func() bool {
				_, body := exporter.Get(t, path(s, module))
				info := regexp.MustCompile(`probe_result_info\{result="(.*)",errno="(.*)"\}`).FindStringSubmatch(body)
				if info == nil {
					t.Fatalf("%s: GET %s: want probe_result_info in\n%s", s.name, path(s, module), body)
				}
				cell = strings.TrimSpace(info[1] + " " + info[2])
				since := "probe_hold_last_answer_timestamp_seconds"
				if module == "asked" {
					since = "probe_hold_last_data_timestamp_seconds"
				}
				heard := seriesOf(t, body, since) > float64(s.ended.Add(2*time.Second).UnixMilli())/1000
				closes := regexp.MustCompile(`(?m)^probe_hold_closes_total\{.*\} 1$`).MatchString(body)
				return closes || s.stays && (info[1] == "silent" || heard)
			})
			cells = append(cells, cell)
		}
		if documented := table[s.name]; len(documented) == 3 {
			cells = append(cells, documented[2]) // when it is noticed, which is not measured
		}
		measured[s.name] = cells
	}
	for _, last := range []bool{false, true} {
		some := slices.DeleteFunc(slices.Clone(scenes), func(s *scene) bool { return s.last != last })
		for _, s := range some {
			end(s)
		}
		for _, s := range some {
			measure(s)
		}
	}
	compareRows(t, holdPage, "what happens", measured)
}

// A scrape of a held target has as many series more than one of a handshake as the page says.
func TestHeldSeries(t *testing.T) {
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", `modules:
  kept: {prober: hold}
  asked: {prober: hold, hold: {heartbeat: {send: "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"}}}
`))
	series := regexp.MustCompile(`(?m)^probe_hold_`)
	count := func(module, target string) (n int, body string) {
		_, body = exporter.Get(t, "/probe?module="+module+"&target="+target)
		return len(series.FindAllString(body, -1)), body
	}
	kept, _ := count("kept", "127.0.0.1:10115")
	var asked int
	lab.Eventually(t, "a heartbeat has been answered", func() bool {
		var body string
		asked, body = count("asked", "127.0.0.1:10115")
		return seriesOf(t, body, "probe_hold_heartbeats_total") > 0
	})
	want := fmt.Sprintf("has %d series more than a probe. A heartbeat adds %d, a name one", kept, asked-kept)
	if text := strings.Join(strings.Fields(lab.Read(t, holdPage)), " "); !strings.Contains(text, want) {
		t.Errorf("%s lacks %q", holdPage, want)
	}
	if named, _ := count("kept", "localhost:10115"); named != kept+1 {
		t.Errorf("a held target with a name has %d series more than a probe, want %d", named, kept+1)
	}
}
