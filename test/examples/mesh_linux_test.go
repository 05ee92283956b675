package examples

import (
	"fmt"
	"math"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

const discoveryPage = "../docs/discovery.md"

// meshObjects are the objects of mesh/daemonset.yml.
type meshObjects struct {
	configMap corev1.ConfigMap
	service   corev1.Service
	daemonSet appsv1.DaemonSet
}

// readMesh reads the objects of mesh/daemonset.yml.
func readMesh(t *testing.T) (m meshObjects) {
	t.Helper()
	texts := strings.Split(lab.Read(t, "mesh/daemonset.yml"), "\n---\n")
	objects := []any{&m.configMap, &m.service, &m.daemonSet}
	if len(texts) != len(objects) {
		t.Fatalf("mesh/daemonset.yml has %d objects, want %d", len(texts), len(objects))
	}
	for i, text := range texts {
		if err := decodeStrictly(text, objects[i]); err != nil {
			t.Fatalf("mesh/daemonset.yml, object %d: %v", i, err)
		}
	}
	return m
}

// The objects of the mesh fit together and need no privileges, and Prometheus finds the pods and probes the Service.
func TestMeshObjects(t *testing.T) {
	m := readMesh(t)
	pod := m.daemonSet.Spec.Template
	if reasons := forbidden(pod); reasons != nil {
		t.Errorf("the pods of the mesh are not restricted: %q", reasons)
	}
	for what, selector := range map[string]map[string]string{
		"DaemonSet": m.daemonSet.Spec.Selector.MatchLabels, "Service": m.service.Spec.Selector,
	} {
		for name, value := range selector {
			if pod.Labels[name] != value {
				t.Errorf("the %s selects pods with %s=%s, and the pods have %v", what, name, value, pod.Labels)
			}
		}
	}
	if s := m.service.Spec; s.ClusterIP != "None" || !s.PublishNotReadyAddresses {
		t.Errorf("clusterIP is %q, and addresses that are not ready are published: %t, want None and true",
			s.ClusterIP, s.PublishNotReadyAddresses)
	}
	container := pod.Spec.Containers[0]
	if got := pod.Spec.Volumes[0].ConfigMap.Name; got != m.configMap.Name {
		t.Errorf("the pods mount the ConfigMap %s, want %s", got, m.configMap.Name)
	}
	file := strings.TrimPrefix(container.Args[0], "--config.file="+container.VolumeMounts[0].MountPath+"/")
	c, _, err := config.Parse(file, []byte(m.configMap.Data[file]))
	if err != nil {
		t.Fatalf("the configuration of the mesh: %v", err)
	}
	prometheus := lab.Read(t, "mesh/prometheus.yml")
	const namespace = "monitoring"
	port := m.service.Spec.Ports[0].Port
	if got := container.Ports[0].ContainerPort; got != port || port != exporter.Port {
		t.Errorf("the ports of the Service and the pods are %d and %d, want %d", port, got, exporter.Port)
	}
	module := regexp.MustCompile(`module: \[(\w+)\]`).FindStringSubmatch(prometheus)
	if module == nil {
		t.Error("mesh/prometheus.yml has no module")
	} else if _, ok := c.Modules[module[1]]; !ok {
		t.Errorf("mesh/prometheus.yml probes with the module %s, which the ConfigMap does not have", module[1])
	}
	for _, want := range []string{
		fmt.Sprintf("target: [%q]\n", fmt.Sprintf("%s.%s.svc:%d", m.service.Name, namespace, port)),
		"names: [" + namespace + "]\n",
		"label: " + nameLabel + "=" + pod.Labels[nameLabel] + "\n",
	} {
		if !strings.Contains(prometheus, want) {
			t.Errorf("mesh/prometheus.yml does not contain %q", want)
		}
	}
}

// meshNode returns the address of a node of the test's mesh.
func meshNode(i int) string { return fmt.Sprintf("10.88.0.%d", 11+i) }

// newMesh starts exporters in a number of network namespaces, which a bridge connects, and a Prometheus with
// mesh/prometheus.yml, which discovers them.
func newMesh(
	t *testing.T, nodes int,
) (namespaces []*kernel.Namespace, exporters []*process.Process, prometheus *process.Prometheus) {
	t.Helper()
	lab.Program(t, "sh", "dash") // for process.WithFiles
	m := readMesh(t)
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "mesh"
	bridge := &netlink.Bridge{LinkAttrs: attributes}
	if err := netlink.LinkAdd(bridge); err != nil {
		lab.Skip(t, "needs a bridge: %v", err)
	}
	t.Cleanup(func() { netlink.LinkDel(bridge) })
	setUp := func(link netlink.Link, address string) {
		t.Helper()
		addr, err := netlink.ParseAddr(address + "/24")
		if err == nil {
			err = netlink.AddrAdd(link, addr)
		}
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		if err != nil {
			t.Fatalf("give the address %s to %s: %v", address, link.Attrs().Name, err)
		}
	}
	setUp(bridge, "10.88.0.1")
	var addresses []string
	pods := ""
	for i := range nodes {
		addresses = append(addresses, meshNode(i))
		pods += fmt.Sprintf(`
- metadata: {name: shaker-mesh-%d, namespace: monitoring, labels: {app.kubernetes.io/name: shaker-mesh}}
  spec: {nodeName: node%d, containers: [{name: a, ports: [{name: http, containerPort: 10115, protocol: TCP}]}]}
  status: {phase: Running, podIP: %s}
`, i, i, meshNode(i))
	}
	pods += `
- metadata: {name: ended, namespace: monitoring, labels: {app.kubernetes.io/name: shaker-mesh}}
  spec: {nodeName: node0, containers: [{name: a, ports: [{name: http, containerPort: 10115, protocol: TCP}]}]}
  status: {phase: Failed, podIP: 10.88.0.99}
- metadata: {name: other, namespace: monitoring, labels: {app.kubernetes.io/name: other}}
  spec: {nodeName: node0, containers: [{name: a, ports: [{name: http, containerPort: 10115, protocol: TCP}]}]}
  status: {phase: Running, podIP: 10.88.0.98}
`
	simnet.ServeDNS(t, "10.88.0.1:53", simnet.Names{"shaker-mesh.monitoring.svc": addresses})
	files := map[string]string{"/etc/resolv.conf": lab.Write(t, t.TempDir(), "resolv.conf", "nameserver 10.88.0.1\n")}
	conf := lab.Write(t, t.TempDir(), "shaker.yml", m.configMap.Data["shaker.yml"])
	program := exporter.Command(t).Path
	for i := range nodes {
		n := kernel.NewNamespace(t)
		n.Link(fmt.Sprintf("node%d", i), "eth0")
		near, err := netlink.LinkByName(fmt.Sprintf("node%d", i))
		if err == nil {
			err = netlink.LinkSetMaster(near, bridge)
		}
		if err != nil {
			t.Fatal(err)
		}
		n.In(func() {
			far, err := netlink.LinkByName("eth0")
			if err != nil {
				t.Error(err)
				return
			}
			setUp(far, meshNode(i))
			if err := lab.LoopbackUp(); err != nil {
				t.Error(err)
			}
		})
		cmd := process.WithFiles(t, n.Command(program, "--config.file="+conf), files)
		exporters = append(exporters, process.Start(t, cmd))
		namespaces = append(namespaces, n)
	}
	for i := range nodes {
		lab.Eventually(t, fmt.Sprintf("the exporter of node %d is ready", i), func() bool {
			conn, err := net.Dial("tcp", meshNode(i)+":10115")
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
	kubernetes := serveKubernetes(t, map[string]string{"/api/v1/namespaces/monitoring/pods": pods})
	dir := t.TempDir()
	for _, file := range lab.Files(t, "rules/*.yml") {
		lab.Write(t, dir, file, lab.Read(t, file))
	}
	const file = "mesh/prometheus.yml"
	config := lab.Replace(t, file, lab.Read(t, file),
		"role: pod\n        namespaces", "role: pod\n        api_server: "+kubernetes+"\n        namespaces",
		"scrape_interval: 15s", "scrape_interval: "+scrapeInterval.String())
	return namespaces, exporters, process.Prometheus3.Start(t, 9090, lab.Write(t, dir, file, config))
}

// In a mesh of four nodes, the SYNs from node 1 to node 3 get lost, and not those from node 3 to node 1. Only this link
// is broken, and the dashboard shows which one it is. When the exporter of node 2 has ended, the links to it are
// broken, and those from it have no result.
func TestMesh(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	nft := lab.Program(t, "nft", "nftables")
	const nodes = 4
	namespaces, exporters, prometheus := newMesh(t, nodes)
	lab.Eventually(t, "all links are open", func() bool {
		return len(prometheus.Query(`probe_address_result_info{job="shaker_mesh", result="open"}`)) == nodes*nodes
	})

	// docs/discovery.md calculates the number of series from these numbers. The others are those of the rules.
	const count = `count by (prober) ({job="shaker_mesh", __name__!~"ALERTS.*|.*:.*"})`
	each := fmt.Sprintf("%s == %d", count, meshSeries(nodes)/nodes)
	lab.Eventually(t, "for each node, "+each, func() bool { return len(prometheus.Query(each)) == nodes })
	lab.Eventually(t, "all exporters have metrics of their own", func() bool {
		return len(prometheus.Query(`up{job="shaker_exporter", prober!=""} == 1`)) == nodes
	})

	rule := fmt.Sprintf("table inet lab { chain input { type filter hook input priority 0; "+
		"ip saddr %s tcp flags syn / syn,ack drop; }; }", meshNode(1))
	if out, err := namespaces[3].Command(nft, rule).CombinedOutput(); err != nil {
		t.Fatalf("nft %s: %v\n%s", rule, err, out)
	}
	const broken = `probe_address_result_info{job="shaker_mesh", result!="open"}`
	lab.Eventually(t, "only the link from node1 to node3 is broken", func() bool {
		got := prometheus.Query(broken)
		return len(got) == 1 && got[0].Labels["prober"] == "node1" && got[0].Labels["ip"] == meshNode(3) &&
			got[0].Labels["result"] == "timeout"
	})

	for i, want := range []int{1, 0, nodes} { // no node is broken for most others
		query := meshQueries(t)[i]
		lab.Eventually(t, fmt.Sprintf("%s has %d series", query, want), func() bool {
			return len(prometheus.Query(query)) == want
		})
	}

	d, err := readDashboard(lab.Read(t, meshFile))
	if err != nil {
		t.Fatal(err)
	}
	g := &grafana{t: t, url: "http://localhost:9090"}
	if g.jobs = g.values(d, "job"); !slices.Equal(g.jobs, []string{"shaker_mesh"}) {
		t.Fatalf("the values of job are %q, want shaker_mesh", g.jobs)
	}
	// The range queries have the broken link when it has been there at one of their steps.
	lab.Eventually(t, "the dashboard has data", func() bool {
		return len(g.query(queriesOf(panelNamed(t, d, "Broken links by source"))[0], "")) > 0
	})
	for _, problem := range g.dataProblems(d, []string{""}) {
		t.Error(problem)
	}
	number := func(title string) string {
		got := ""
		for _, s := range g.query(queriesOf(panelNamed(t, d, title))[0], "") {
			got += strconv.FormatFloat(s.last(), 'g', -1, 64)
		}
		return got
	}
	for title, want := range map[string]string{
		"Nodes": "4", "Links": "16", "Broken links": "1", "Nodes without results": "0",
	} {
		if got := number(title); got != want {
			t.Errorf("panel %q shows %q, want %s", title, got, want)
		}
	}
	table := g.query(queriesOf(panelNamed(t, d, "Broken links now"))[0], "")
	if got, want := formatLabels(table, "from", "to", "ip", "result", "errno"),
		"node1 node3 10.88.0.14 timeout ETIMEDOUT"; got != want {
		t.Errorf("panel %q has %s, want %s", "Broken links now", got, want)
	}
	for title, missing := range map[string]string{"Links now": "", "RTT now": "node1 node3"} {
		panel := panelNamed(t, d, title)
		options := panel.Transformations[len(panel.Transformations)-1].Options.(map[string]any)
		if options["rowField"] != "from" || options["columnField"] != "to" || options["valueField"] != "Value" {
			t.Errorf("panel %q has the matrix %v, want rows by from, columns by to, and Value", title, options)
		}
		cells := make(map[string]float64)
		for _, s := range g.query(queriesOf(panel)[0], "") {
			cells[formatLabels([]series{s}, "from", "to")] = s.last()
		}
		for i := range nodes * nodes {
			link := fmt.Sprintf("node%d node%d", i/nodes, i%nodes)
			value, found := cells[link]
			if found != (link != missing) {
				t.Errorf("panel %q has a cell %s: %t, want %t", title, link, found, !found)
			}
			if title != "Links now" || !found {
				continue
			}
			want := "open"
			if link == "node1 node3" {
				want = "timeout"
			}
			names := panel.FieldConfig.Defaults.Mappings[0].ValueMap.Options
			if got := orEmpty(names[strconv.Itoa(int(value))].Text); got != want {
				t.Errorf("panel %q shows %s as %q, want %s", title, link, got, want)
			}
		}
	}

	exporters[2].Stop()
	links := queriesOf(panelNamed(t, d, "Broken links now"))[0]
	const want = "node0 node2 refused, node1 node2 refused, node1 node3 timeout, node3 node2 refused"
	lab.Eventually(t, "the broken links are "+want, func() bool {
		return formatLabels(g.query(links, ""), "from", "to", "result") == want
	})
	if got := number("Nodes without results"); got != "1" {
		t.Errorf("with an exporter that has ended, panel %q shows %s, want 1", "Nodes without results", got)
	}
	for _, s := range g.query(queriesOf(panelNamed(t, d, "Links now"))[0], "") {
		if s.labels["from"] == "node2" {
			t.Errorf("panel %q has a cell %v, want none from node2, whose exporter has ended", "Links now", s.labels)
		}
	}
}

// meshQueries returns the three queries of docs/discovery.md about a mesh.
func meshQueries(t *testing.T) (queries []string) {
	t.Helper()
	for line := range strings.Lines(lab.Read(t, discoveryPage)) {
		if strings.Contains(line, `{job="shaker_mesh"`) {
			queries = append(queries, strings.TrimSpace(line))
		}
	}
	if len(queries) != 3 {
		t.Fatalf("docs/discovery.md has the queries %q about a mesh, want 3", queries)
	}
	return queries
}

// meshSeries returns how many series a mesh of open links has. Each exporter can probe 64 addresses in one scrape, so
// that more nodes need several Services. A scrape has 14 series, and five of Prometheus. Each address has three.
func meshSeries(nodes int) int {
	scrapes := meshScrapes(nodes)
	return nodes*scrapes*(14+5) + 3*nodes*nodes
}

// meshScrapes returns how many scrapes of each exporter a mesh needs.
func meshScrapes(nodes int) int { return (nodes + probe.MaxAddresses - 1) / probe.MaxAddresses }

// The table of docs/discovery.md has the numbers that a mesh has at the scrape interval of mesh/prometheus.yml.
func TestMeshTable(t *testing.T) {
	const interval = 15
	want := fmt.Sprintf("scrape_interval: %ds\n", interval)
	if !strings.Contains(lab.Read(t, "mesh/prometheus.yml"), want) {
		t.Errorf("mesh/prometheus.yml does not contain %q", want)
	}
	page := lab.Read(t, discoveryPage)
	row := regexp.MustCompile(`(?m)^\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d.,]+) \| ([\d.,]+) \| ([\d,]+) \|$`)
	rows := row.FindAllStringSubmatch(page, -1)
	if len(rows) != 3 {
		t.Fatalf("the table of docs/discovery.md has %d rows, want 3", len(rows))
	}
	for _, cells := range rows {
		var got []float64
		for _, cell := range cells[1:] {
			n, err := strconv.ParseFloat(strings.ReplaceAll(cell, ",", ""), 64)
			if err != nil {
				t.Fatalf("row %q: %v", cells[0], err)
			}
			got = append(got, n)
		}
		n := int(got[0])
		links := float64(n * n)
		want := []float64{
			float64(n), float64(meshScrapes(n)), links, float64(n) / interval, links / interval, float64(meshSeries(n)),
		}
		for i := range want {
			if math.Abs(got[i]-want[i]) > 0.01*want[i] {
				t.Errorf("row %q: column %d is %v, want %v", cells[0], i+1, got[i], want[i])
			}
		}
	}
}
