package examples

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// The objects of a Kubernetes cluster: which of them are to be probed, and those that look as if they were.
const (
	kubernetesServices = `
- metadata: {name: web, namespace: shop, annotations: {shaker/probe: "true"}}
  spec:
    clusterIP: 192.0.2.10
    ports: [{port: 80, protocol: TCP}, {port: 443, protocol: TCP}, {port: 443, protocol: UDP}]
- metadata:
    name: db
    namespace: shop
    annotations: {shaker/probe: "true", shaker/port: "5432", shaker/module: tcp_watch}
  spec: {clusterIP: 192.0.2.11, ports: [{port: 5432, protocol: TCP}, {port: 9187, protocol: TCP}]}
- metadata: {name: empty, namespace: shop, annotations: {shaker/probe: "true", shaker/port: "", shaker/module: ""}}
  spec: {clusterIP: 192.0.2.12, ports: [{port: 22, protocol: TCP}]}
- metadata: {name: legacy, namespace: shop, annotations: {shaker/probe: "true"}}
  spec: {type: ExternalName, externalName: legacy.example.com, ports: [{port: 443, protocol: TCP}]}
- metadata: {name: unknown, namespace: shop, annotations: {shaker/probe: "true", shaker/module: "no such"}}
  spec: {clusterIP: 192.0.2.13, ports: [{port: 80, protocol: TCP}]}
- metadata:
    name: gateway-istio
    namespace: ingress
    labels: {gateway.networking.k8s.io/gateway-name: gateway}
    annotations: {shaker/probe: "true"}
  spec: {type: LoadBalancer, clusterIP: 192.0.2.14, ports: [{port: 443, protocol: TCP}, {port: 443, protocol: UDP}]}
# None of these is a target.
- metadata: {name: plain, namespace: shop}
  spec: {clusterIP: 192.0.2.20, ports: [{port: 80, protocol: TCP}]}
- metadata: {name: "off", namespace: shop, annotations: {shaker/probe: "false"}}
  spec: {clusterIP: 192.0.2.20, ports: [{port: 80, protocol: TCP}]}
- metadata: {name: maybe, namespace: shop, annotations: {shaker/probe: "true, please"}}
  spec: {clusterIP: 192.0.2.20, ports: [{port: 80, protocol: TCP}]}
- metadata: {name: named, namespace: shop, annotations: {shaker/probe: "true", shaker/port: http}}
  spec: {clusterIP: 192.0.2.20, ports: [{name: http, port: 80, protocol: TCP}]}
- metadata: {name: several, namespace: shop, annotations: {shaker/probe: "true", shaker/port: "80,443"}}
  spec: {clusterIP: 192.0.2.20, ports: [{port: 80, protocol: TCP}, {port: 443, protocol: TCP}]}
- metadata: {name: other-port, namespace: shop, annotations: {shaker/probe: "true", shaker/port: "8080"}}
  spec: {clusterIP: 192.0.2.20, ports: [{port: 80, protocol: TCP}]}
- metadata: {name: pattern, namespace: shop, annotations: {shaker/probe: "true", shaker/port: ".*"}}
  spec: {clusterIP: 192.0.2.20, ports: [{port: 80, protocol: TCP}]}
- metadata: {name: headless, namespace: shop, annotations: {shaker/probe: "true"}}
  spec: {clusterIP: None, ports: [{port: 80, protocol: TCP}]}
- metadata: {name: udp, namespace: shop, annotations: {shaker/probe: "true"}}
  spec: {clusterIP: 192.0.2.20, ports: [{port: 53, protocol: UDP}]}
- metadata: {name: portless, namespace: shop, annotations: {shaker/probe: "true"}}
  spec: {type: ExternalName, externalName: portless.example.com}
`
	kubernetesIngresses = `
- metadata: {name: shop, namespace: shop, annotations: {shaker/probe: "true"}}
  spec:
    tls: [{hosts: [shop.example.com, "*.tenants.example.com"]}]
    rules:
    - host: shop.example.com
      http: {paths: [{path: /, pathType: Prefix}, {path: /api, pathType: Prefix}]}
    - {host: a.tenants.example.com}
    - {host: plain.example.com}
    - {host: "*.tenants.example.com"}
    - http: {paths: [{path: /, pathType: Prefix}]}
- metadata: {name: watched, namespace: shop, annotations: {shaker/probe: "true", shaker/module: tcp_watch}}
  spec: {rules: [{host: watched.example.com}]}
- metadata: {name: rules, namespace: shop, annotations: {shaker/probe: "true"}}
  spec: {defaultBackend: {service: {name: web, port: {number: 80}}}}
- metadata: {name: plain, namespace: shop}
  spec: {rules: [{host: no.example.com}]}
- metadata: {name: wrong, namespace: shop, annotations: {shaker/probe: "1"}}
  spec: {rules: [{host: no.example.com}]}
`
	kubernetesPods = `
- metadata: {name: web-0, namespace: shop, annotations: {shaker/probe: "true"}}
  spec:
    nodeName: node1
    initContainers: [{name: init, ports: [{containerPort: 1111, protocol: TCP}]}]
    containers:
    - {name: web, ports: [{containerPort: 8080, protocol: TCP}, {containerPort: 9090, protocol: UDP}]}
    - {name: sidecar, ports: [{containerPort: 15020, protocol: TCP}]}
    - {name: portless}
  status: {phase: Running, podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}]}
- metadata:
    name: db-0
    namespace: shop
    annotations: {shaker/probe: "true", shaker/port: "5432", shaker/module: tcp_watch}
  spec:
    nodeName: node2
    containers:
    - {name: db, ports: [{containerPort: 5432, protocol: TCP}, {containerPort: 9187, protocol: TCP}]}
  status: {phase: Running, podIP: "2001:db8::7", podIPs: [{ip: "2001:db8::7"}]}
# None of these is a target.
- metadata: {name: plain, namespace: shop}
  spec: {nodeName: node1, containers: [{name: a, ports: [{containerPort: 80, protocol: TCP}]}]}
  status: {phase: Running, podIP: 10.1.0.3}
- metadata: {name: done, namespace: shop, annotations: {shaker/probe: "true"}}
  spec: {nodeName: node1, containers: [{name: a, ports: [{containerPort: 80, protocol: TCP}]}]}
  status: {phase: Succeeded, podIP: 10.1.0.4}
- metadata: {name: pending, namespace: shop, annotations: {shaker/probe: "true"}}
  spec: {containers: [{name: a, ports: [{containerPort: 80, protocol: TCP}]}]}
  status: {phase: Pending}
- metadata: {name: undeclared, namespace: shop, annotations: {shaker/probe: "true", shaker/port: "8080"}}
  spec: {nodeName: node1, containers: [{name: a}, {name: b, ports: [{containerPort: 80, protocol: TCP}]}]}
  status: {phase: Running, podIP: 10.1.0.5}
`
)

// inventory is the response of the server for http_sd_configs.
const inventory = `[
	{"targets": ["10.1.3.1:443", "down.example.com:5432"], "labels": {"team": "edge"}},
	{"targets": ["10.1.3.2:22"], "labels": {"team": "ops", "__param_module": "tcp_watch"}},
	{"targets": ["portless.example.com"]}
]`

// With each example, Prometheus discovers exactly the targets that the example describes, with their labels, and drops
// everything else, whatever its annotations, tags or records are. The exporter probes these targets.
func TestDiscovery(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	network := simnet.NewNetwork(t)
	network.At("192.0.2.0/24", simnet.SYNACK())
	network.At("10.1.0.0/16", simnet.SYNACK())
	network.At("2001:db8::/32", simnet.SYNACK())
	kubernetes := serveKubernetes(t, map[string]string{
		"/api/v1/services": kubernetesServices, "/apis/networking.k8s.io/v1/ingresses": kubernetesIngresses,
		"/api/v1/pods": kubernetesPods,
	})
	consul := serveConsul(t, []consulService{
		{name: "db", node: "n1", nodeAddress: "10.1.2.1", port: 5432, tags: []string{"shaker"}},
		{
			name: "db", node: "n2", nodeAddress: "10.1.2.2", address: "2001:db8::2", port: 5432,
			tags: []string{"primary", "shaker"}, meta: map[string]string{"shaker_module": "tcp_watch"},
		},
		{name: "db", node: "n3", nodeAddress: "10.1.2.3", port: 5432, tags: []string{"shakers"}},
		{name: "job", node: "n1", nodeAddress: "10.1.2.1", tags: []string{"shaker"}}, // no port
		{name: "consul", node: "n1", nodeAddress: "10.1.2.1", port: 8300},
	})
	ec2, filters := serveEC2(t, []ec2Instance{
		{address: "10.1.5.1", tags: map[string]string{"Name": "db", "shaker_port": "5432"}},
		{address: "10.1.5.2", tags: map[string]string{"shaker_port": "22", "shaker_module": "tcp_watch"}},
		{address: "10.1.5.3", tags: map[string]string{"shaker_port": "99999"}}, // which the exporter rejects
		{address: "10.1.5.4", tags: map[string]string{"Name": "plain"}},
		{address: "10.1.5.5", tags: map[string]string{"shaker_port": "ssh"}},
		{address: "10.1.5.6", tags: map[string]string{"shaker_port": ""}},
		{address: "10.1.5.7", tags: map[string]string{"shaker_port": "22,443"}},
		{address: "10.1.5.8", tags: map[string]string{"shaker_port": "022"}},
		{address: "", tags: map[string]string{"shaker_port": "22"}},
	})
	inventoryURL := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, json.RawMessage(inventory))
	}))
	simnet.ServeDNS(t, "127.0.0.1:53", simnet.Names{
		"_postgresql._tcp.example.com": {"10 50 5432 db1.example.com.", "20 50 5433 db2.example.com."},
		"_ldap._tcp.example.com":       {"0 0 0 .", "0 0 0 db1.example.com."},
		"db1.example.com":              {"10.1.4.1"},
		"shop.example.com":             {"192.0.2.30"},
		"watched.example.com":          {"192.0.2.31"},
		"web.shop.svc":                 {"192.0.2.10"},
		"db.shop.svc":                  {"192.0.2.11"},
		"empty.shop.svc":               {"192.0.2.12"},
		"unknown.shop.svc":             {"192.0.2.13"},
		"gateway-istio.ingress.svc":    {"192.0.2.14"},
	})
	lab.Program(t, "sh", "dash") // for process.WithFiles
	dns := map[string]string{"/etc/resolv.conf": lab.Write(t, t.TempDir(), "resolv.conf", "nameserver 127.0.0.1\n")}
	exporter.Run(t, process.WithFiles(t, exporter.Command(t, "--config.file=shaker.yml"), dns))

	for i, c := range []struct {
		file         string
		replacements []string
		want         []string // the module, the target, and the labels
		open         []string // those of the targets that are open
		dropped      int
	}{
		{
			file: "kubernetes.yml",
			replacements: []string{
				"- role: service\n", "- {role: service, api_server: '" + kubernetes + "'}\n",
				"- role: ingress\n", "- {role: ingress, api_server: '" + kubernetes + "'}\n",
				"- role: pod\n", "- {role: pod, api_server: '" + kubernetes + "'}\n",
			},
			want: []string{
				"no such unknown.shop.svc:80 namespace=shop service=unknown",
				"tcp_connect 10.1.0.1:15020 namespace=shop node=node1 pod=web-0",
				"tcp_connect 10.1.0.1:8080 namespace=shop node=node1 pod=web-0",
				"tcp_connect a.tenants.example.com:443 ingress=shop namespace=shop",
				"tcp_connect empty.shop.svc:22 namespace=shop service=empty",
				"tcp_connect gateway-istio.ingress.svc:443 namespace=ingress service=gateway-istio",
				"tcp_connect legacy.shop.svc:443 namespace=shop service=legacy",
				"tcp_connect plain.example.com:80 ingress=shop namespace=shop",
				"tcp_connect shop.example.com:443 ingress=shop namespace=shop",
				"tcp_connect web.shop.svc:443 namespace=shop service=web",
				"tcp_connect web.shop.svc:80 namespace=shop service=web",
				"tcp_watch [2001:db8::7]:5432 namespace=shop node=node2 pod=db-0",
				"tcp_watch db.shop.svc:5432 namespace=shop service=db",
				"tcp_watch watched.example.com:80 ingress=watched namespace=shop",
			},
			open: []string{
				"10.1.0.1:15020", "10.1.0.1:8080", "[2001:db8::7]:5432", "db.shop.svc:5432", "empty.shop.svc:22",
				"gateway-istio.ingress.svc:443", "shop.example.com:443", "watched.example.com:80", "web.shop.svc:443",
				"web.shop.svc:80",
			},
			dropped: 13 + 4 + 8,
		},
		{
			file: "dns.yml",
			want: []string{
				"tcp_connect db1.example.com:5432 srv=_postgresql._tcp.example.com",
				"tcp_connect db2.example.com:5433 srv=_postgresql._tcp.example.com", // a host without an address
			},
			open:    []string{"db1.example.com:5432"},
			dropped: 2,
		},
		{
			file:         "consul.yml",
			replacements: []string{"localhost:8500", strings.TrimPrefix(consul, "http://")},
			want: []string{
				"tcp_connect 10.1.2.1:5432 dc=fra node=n1 service=db",
				"tcp_watch [2001:db8::2]:5432 dc=fra node=n2 service=db",
			},
			open:    []string{"10.1.2.1:5432", "[2001:db8::2]:5432"},
			dropped: 1,
		},
		{
			file:         "http.yml",
			replacements: []string{"http://inventory.example.com/targets", inventoryURL},
			want: []string{
				"tcp_connect 10.1.3.1:443 team=edge", "tcp_connect down.example.com:5432 team=edge",
				"tcp_connect portless.example.com", "tcp_watch 10.1.3.2:22 team=ops",
			},
			open: []string{"10.1.3.1:443", "10.1.3.2:22"},
		},
		{
			file: "file.yml",
			want: []string{
				"tcp_connect 10.1.6.1:443 team=edge", "tcp_connect portless.example.com",
				"tcp_watch 10.1.6.2:22 team=ops",
			},
			open: []string{"10.1.6.1:443", "10.1.6.2:22"},
		},
		{
			file: "ec2.yml",
			replacements: []string{
				"region: eu-central-1\n",
				"region: eu-central-1\n        endpoint: " + ec2 +
					"\n        access_key: key\n        secret_key: secret\n",
			},
			want: []string{
				"tcp_connect 10.1.5.1:5432 name=db zone=eu-central-1a", "tcp_connect 10.1.5.3:99999 zone=eu-central-1a",
				"tcp_watch 10.1.5.2:22 zone=eu-central-1a",
			},
			open:    []string{"10.1.5.1:5432", "10.1.5.2:22"},
			dropped: 5,
		},
	} {
		t.Run(c.file, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			lab.Write(t, dir, "targets/a.yml", `[{targets: ["10.1.6.1:443"], labels: {team: edge}}]`)
			lab.Write(t, dir, "targets/b.json", `[{"targets": ["portless.example.com"]},
				{"targets": ["10.1.6.2:22"], "labels": {"team": "ops", "__param_module": "tcp_watch"}}]`)
			p := startDiscovery(t, 9090+i, dir, c.file, dns, c.replacements...)
			p.discovers(c.want, c.dropped)
			lab.Eventually(t, fmt.Sprintf("%q are open", c.open), func() bool {
				return slices.Equal(p.instances("probe_success == 1"), c.open)
			})
			if c.file != "ec2.yml" {
				return
			}
			// The server in this test does not filter, so that the relabelling has something to drop.
			want := []string{"instance-state-name=running", "tag-key=shaker_port"}
			if got := filters(); !slices.Equal(got, want) {
				t.Errorf("Prometheus requests instances with the filters %q, want %q", got, want)
			}
		})
	}
}

// A discoverer is a Prometheus that has discovered targets.
type discoverer struct {
	*process.Prometheus
	t *testing.T
}

// startDiscovery starts a Prometheus with an example, in which it replaces texts and the address of the exporter.
func startDiscovery(
	t *testing.T, port int, dir, file string, files map[string]string, replacements ...string,
) discoverer {
	t.Helper()
	text := lab.Replace(t, file, lab.Read(t, "discovery/"+file), replacements...)
	text = strings.ReplaceAll(text, "shaker-exporter.monitoring.svc:10115", "localhost:10115")
	config := lab.Write(t, dir, "prometheus.yml", "global: {scrape_interval: 1s}\nscrape_config_files: ["+file+"]\n")
	lab.Write(t, dir, file, text)
	cmd := process.Prometheus3.Command(t, port, config)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(setting string) bool { return strings.HasPrefix(setting, "AWS_") })
	cmd = process.WithFiles(t, cmd, files)
	return discoverer{process.ServePrometheus(t, cmd, fmt.Sprintf("localhost:%d", port)), t}
}

// discovers waits until the targets of a Prometheus are the wanted ones, and a number of others has been dropped.
func (s discoverer) discovers(want []string, dropped int) {
	s.t.Helper()
	var got []string
	n := -1
	defer func() {
		if s.t.Failed() {
			s.t.Logf("the targets are, with %d dropped ones, want %d,\n%s\nwant\n%s",
				n, dropped, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}()
	lab.Eventually(s.t, "Prometheus has discovered the targets", func() bool {
		got, n = s.targets()
		return slices.Equal(got, want) && n == dropped
	})
}

// targets returns the module, the target and the labels of each target, sorted, and the number of those that were
// dropped.
func (s discoverer) targets() (found []string, dropped int) {
	s.t.Helper()
	var data struct {
		ActiveTargets []struct {
			Labels    map[string]string
			ScrapeURL string
		}
		DroppedTargetCounts map[string]int
	}
	s.API("targets", &data)
	for _, target := range data.ActiveTargets {
		scraped, err := url.Parse(target.ScrapeURL)
		if err != nil {
			s.t.Fatal(err)
		}
		if scraped.Host != "localhost:10115" || scraped.Path != "/probe" {
			s.t.Errorf("Prometheus scrapes %s, want /probe of the exporter at localhost:10115", target.ScrapeURL)
		}
		query := scraped.Query()
		if target.Labels["instance"] != query.Get("target") {
			s.t.Errorf("the instance of %s is %s, want the target", target.ScrapeURL, target.Labels["instance"])
		}
		words := []string{query.Get("module"), query.Get("target")}
		for _, name := range slices.Sorted(maps.Keys(target.Labels)) {
			if name != "instance" && name != "job" {
				words = append(words, name+"="+target.Labels[name])
			}
		}
		found = append(found, strings.Join(words, " "))
	}
	for n := range maps.Values(data.DroppedTargetCounts) {
		dropped += n
	}
	slices.Sort(found)
	return found, dropped
}

// instances returns the label instance of each series of an instant vector, sorted.
func (s discoverer) instances(expression string) (instances []string) {
	s.t.Helper()
	for _, sample := range s.Query(expression) {
		instances = append(instances, sample.Labels["instance"])
	}
	slices.Sort(instances)
	return instances
}

// The command of docs/discovery.md that lists the host names of routes writes a file from which Prometheus can take
// targets. It leaves out wildcards, and routes without a host name.
func TestGatewayRoutes(t *testing.T) {
	lab.SkipWithRace(t)
	lab.Program(t, "jq", "jq")
	shell := lab.Program(t, "sh", "dash")
	command := regexp.MustCompile(`(?m)^\$ (kubectl .*)$`).FindStringSubmatch(lab.Read(t, discoveryPage))
	if command == nil {
		t.Fatal("docs/discovery.md has no command with kubectl")
	}
	dir := t.TempDir()
	lab.Write(t, dir, "targets/a.json", "[]")
	const routes = `{"items": [
		{"kind": "HTTPRoute", "spec": {"hostnames": ["shop.example.com", "*.example.com"]}},
		{"kind": "HTTPRoute", "spec": {"hostnames": ["shop.example.com", "api.example.com"]}},
		{"kind": "HTTPRoute", "spec": {}},
		{"kind": "TLSRoute", "spec": {"hostnames": ["mail.example.com"]}}]}`
	kubectl := lab.Write(t, dir, "bin/kubectl", "#!/bin/sh\ncat <<'END'\n"+routes+"\nEND\n")
	if err := os.Chmod(kubectl, 0o755); err != nil {
		t.Fatal(err)
	}
	run := func() (output []byte, err error) {
		cmd := exec.Command(shell, "-e", "-c", command[1])
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+filepath.Dir(kubectl)+":"+os.Getenv("PATH"))
		return cmd.CombinedOutput()
	}
	if out, err := run(); err != nil {
		t.Fatalf("%s: %v\n%s", command[1], err, out)
	}
	file := filepath.Join(dir, "targets", "routes.json")
	var got []struct{ Targets []string }
	if err := json.Unmarshal([]byte(lab.Read(t, file)), &got); err != nil {
		t.Fatalf("decode %s: %v", file, err)
	}
	want := []string{"api.example.com:443", "mail.example.com:443", "shop.example.com:443"}
	if len(got) != 1 || !slices.Equal(got[0].Targets, want) {
		t.Errorf("%s\nwrites %v, want the targets %q", command[1], got, want)
	}

	// A cluster that lacks one of the kinds.
	before := lab.Read(t, file)
	lab.Write(t, dir, "bin/kubectl", "#!/bin/sh\necho the server does not have a resource type >&2\nexit 1\n")
	out, err := run()
	if after := lab.Read(t, file); err == nil || after != before {
		t.Errorf("%s\nwith a kubectl that fails: %v, and the file is %q, want an error and %q\n%s",
			command[1], err, after, before, out)
	}
}
