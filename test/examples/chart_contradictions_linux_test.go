package examples

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// Helm rejects values that contradict each other, or would replace what the chart sets. The controls are values that
// differ only in what is wrong.
func TestChartContradictions(t *testing.T) {
	lab.SkipWithRace(t)
	chart := packageChart(t, "v1.2.3")
	target := func(name string) string { return "probes: {web: {targets: [" + name + "]}}" }
	for _, c := range []struct {
		name, values, want string
		control            string
	}{
		{
			name: "disabled", values: "enabled: false",
			want:    "enabled is false, want it only as the condition of a dependency in the Chart.yaml of a parent",
			control: "enabled: true",
		},
		{
			name: "DaemonSet", values: "kind: DaemonSet\nautoscaling: {enabled: true}",
			want:    "autoscaling.enabled is true, but a DaemonSet has one pod on each node, want kind Deployment",
			control: "autoscaling: {enabled: true}",
		},
		{
			name: "replicas", values: "autoscaling: {enabled: true, minReplicas: 9}",
			want:    "autoscaling.minReplicas is 9, want at most maxReplicas, which is 8",
			control: "autoscaling: {enabled: true, minReplicas: 8}",
		},
		{
			name: "requests", values: "autoscaling: {enabled: true}\nresources: {requests: {cpu: null}}",
			want:    "autoscaling.enabled is true, want resources.requests.cpu",
			control: "autoscaling: {enabled: true}\nresources: {requests: null, limits: {cpu: 1}}",
		},
		{
			name: "no resources", values: "autoscaling: {enabled: true}\nresources: null",
			want: "autoscaling.enabled is true, want resources.requests.cpu", control: "resources: null",
		},
		{
			name: "tag", values: "image: {repository: 'localhost:5000/shaker_exporter:v1'}",
			want:    "image.repository is localhost:5000/shaker_exporter:v1, want the tag in image.tag",
			control: "image: {repository: 'localhost:5000/shaker_exporter'}",
		},
		{
			name: "digest", values: "image: {repository: 'shaker@sha256:abc'}",
			want:    "image.repository is shaker@sha256:abc, want the digest in image.digest",
			control: "image: {repository: shaker}",
		},
		{
			name: "URL", values: "image: {repository: 'https://registry.example.com/shaker'}",
			want:    "image.repository is https://registry.example.com/shaker, want it without a scheme",
			control: "image: {repository: registry.example.com/shaker}",
		},
		{
			name: "user", values: "engine: raw\npodSecurityContext: {runAsUser: 1000}",
			want:    "podSecurityContext.runAsUser is 1000, but engine: raw runs the pods as root, want no value",
			control: "podSecurityContext: {runAsUser: 1000}",
		},
		{
			name: "group", values: "engine: raw\npodSecurityContext: {runAsGroup: 1000}",
			want:    "podSecurityContext.runAsGroup is 1000, but engine: raw",
			control: "engine: raw\npodSecurityContext: {runAsGroup: null}",
		},
		{
			name: "user of the container", values: "engine: raw\nsecurityContext: {runAsUser: 65534}",
			want: "securityContext.runAsUser is 65534, but engine: raw", control: "securityContext: {runAsUser: 65534}",
		},
		{
			name: "root of the container", values: "engine: raw\nsecurityContext: {runAsNonRoot: true}",
			want:    "securityContext.runAsNonRoot is true, but engine: raw",
			control: "securityContext: {runAsNonRoot: true}",
		},
		{
			name: "engine", values: "extraArgs: [--probe.engine=raw]",
			want: "extraArgs has --probe.engine, want the value engine instead", control: "engine: raw",
		},
		{
			name: "address", values: "extraArgs: [--web.listen-address=:80]",
			want:    "extraArgs has --web.listen-address, want the value service.port instead",
			control: "service: {port: 80}",
		},
		{
			name: "reload", values: "extraArgs: [--no-config.enable-auto-reload]",
			want:    "extraArgs has --config.enable-auto-reload, which the chart sets itself, want it left out",
			control: "extraArgs: [--config.auto-reload-interval=60]",
		},
		{
			name: "systemd", values: "extraArgs: [--web.systemd-socket]",
			want: "extraArgs has --web.systemd-socket, but pods have no systemd, want it left out",
		},
		{
			name: "path", values: "extraArgs: [--web.external-url=/shaker/]",
			want:    "extraArgs has --web.external-url, want also --web.route-prefix=/",
			control: "extraArgs: [--web.external-url=/shaker/, --web.route-prefix=/]",
		},
		{
			name: "ports", values: "extraArgs: [--probe.raw-ports=2000-2127]",
			want:    "extraArgs has --probe.raw-ports, want also engine: raw",
			control: "engine: raw\nextraArgs: [--probe.raw-ports=2000-2127]",
		},
		{
			name: "no value", values: "extraArgs: [--log.level]",
			want:    "extraArgs has --log.level, want it with a value: --log.level=…",
			control: "extraArgs: [--log.level=info]",
		},
		{
			name: "no and a value", values: "extraArgs: [--no-log.level=info]",
			want: "extraArgs has --no-log.level=info, want it with a value: --log.level=…",
		},
		{
			name: "value", values: "extraArgs: [--web.enable-pprof=true]",
			want:    "extraArgs has --web.enable-pprof=true, want --web.enable-pprof without a value",
			control: "extraArgs: [--no-web.enable-pprof]",
		},
		{
			name: "unknown flag", values: "extraArgs: [--log.levle=debug]",
			want: "extraArgs has --log.levle, want one of --config.auto-reload-interval, --history.limit,",
		},
		{
			name: "twice", values: "extraArgs: [--log.level=debug, --log.level=info]",
			want:    "extraArgs has --log.level twice, want it once",
			control: "extraArgs: [--log.level=debug, --log.format=json]",
		},
		{
			name: "twice with no", values: "extraArgs: [--web.enable-pprof, --no-web.enable-pprof]",
			want: "extraArgs has --web.enable-pprof twice, want it once",
		},
		{
			name: "blank", values: "extraArgs: [--log.level debug]",
			want:    `extraArgs has "--log.level debug", want the flag and its value joined by =`,
			control: "extraArgs: ['--web.external-url=http://a/b c', --web.route-prefix=/]",
		},
		{
			name: "check", values: "extraArgs: [--config.check]",
			want: "extraArgs has --config.check, which ends the exporter, want a flag of a running exporter",
		},
		{name: "version", values: "extraArgs: [--version]", want: "extraArgs has --version, which ends the exporter"},
		{name: "help", values: "extraArgs: [--help]", want: "extraArgs has --help, which ends the exporter"},
		{name: "man", values: "extraArgs: [--help-man]", want: "extraArgs has --help-man, which ends the exporter"},
		{
			name: "configuration", values: "existingConfigMap: mine\nconfig: {modules: {m: {prober: tcp}}}",
			want:    "existingConfigMap is mine, which replaces config, want only one of them",
			control: "existingConfigMap: mine", // with the defaults of config
		},
		{
			name: "no configuration", values: "config: null",
			want:    "config is empty, want targets or modules, or existingConfigMap",
			control: "config: null\nexistingConfigMap: mine",
		},
		{
			name: "no rules of targets", values: "config: {targets: {deny: null}}",
			want:    "config.targets is empty, want config.targets: null to permit all targets",
			control: "config: {targets: null}",
		},
		{
			name: "no modules", values: "config: {modules: {tcp_connect: null}}",
			want:    "config.modules is empty, want config.modules: null for the built-in modules",
			control: "config: {modules: null}",
		},
		{
			name: "all modules removed", values: "config: {modules: {tcp_connect: null, m: null}}",
			want:    "config.modules is empty, want config.modules: null for the built-in modules",
			control: "config: {modules: {m: null}}",
		},
		{
			name:    "module removed",
			values:  "config: {modules: {m: null}}\nprobes: {web: {targets: ['a:1'], module: m}}",
			want:    "probes.web.module is m, want a module of config.modules: tcp_connect\n",
			control: "config: {modules: {m: null}}\nprobes: {web: {targets: ['a:1']}}",
		},
		{
			name: "engine in the environment", values: "extraEnv: [{name: SHAKER_PROBE_ENGINE, value: raw}]",
			want:    "extraEnv has SHAKER_PROBE_ENGINE, want the value engine instead",
			control: "extraEnv: [{name: GODEBUG, value: netdns=go}]",
		},
		{
			name: "TLS", values: "web: {scheme: https}", want: "web.scheme is https, want web.configSecret",
			control: "web: {scheme: https, configSecret: tls}",
		},
		{
			name: "account", values: "serviceAccount: {create: false, annotations: {a: b}}",
			want:    "serviceAccount.annotations has annotations, want serviceAccount.create: true",
			control: "serviceAccount: {annotations: {a: b}}",
		},
		{
			name: "access", values: "networkPolicy: {enabled: false, from: [{podSelector: {}}]}",
			want:    "networkPolicy.from has clients, want networkPolicy.enabled: true",
			control: "networkPolicy: {from: [{podSelector: {}}]}",
		},
		{
			name: "network of the nodes", values: "hostNetwork: true",
			want:    "hostNetwork is true, want networkPolicy.enabled: false,",
			control: "hostNetwork: true\nnetworkPolicy: {enabled: false}",
		},
		{
			name: "disruption budget", values: "podDisruptionBudget: {minAvailable: 0, maxUnavailable: 10%}",
			want:    "podDisruptionBudget has maxUnavailable 10% and minAvailable 0, want only one of them",
			control: "podDisruptionBudget: {minAvailable: 0}",
		},
		{
			name: "no disruption budget", values: "podDisruptionBudget: {maxUnavailable: null}",
			want:    "podDisruptionBudget has neither maxUnavailable nor minAvailable, want one of them",
			control: "podDisruptionBudget: {maxUnavailable: null, minAvailable: 1}",
		},
		{
			name: "label of pods", values: "podLabels: {app.kubernetes.io/name: a}",
			want:    "podLabels has app.kubernetes.io/name, which the chart sets, want another label",
			control: "podLabels: {app.kubernetes.io/part-of: a}",
		},
		{
			name: "annotation of pods", values: "podAnnotations: {checksum/config: a}",
			want:    "podAnnotations has checksum/config, which the chart sets, want another annotation",
			control: "restartOnConfigChange: false\npodAnnotations: {checksum/config: a}",
		},
		{
			name: "label for the Operator", values: "monitoring: {labels: {app.kubernetes.io/instance: a}}",
			want:    "monitoring.labels has app.kubernetes.io/instance, which the chart sets, want another label",
			control: "serviceMonitor: {enabled: true}\nmonitoring: {labels: {release: a}}",
		},
		{
			name: "label for Grafana", values: "dashboards: {enabled: true, labels: {helm.sh/chart: a}}",
			want:    "dashboards.labels has helm.sh/chart, which the chart sets, want another label",
			control: "dashboards: {enabled: true, labels: {a: b}}",
		},
		{
			name: "module", values: `probes: {web: {targets: ["a:1"], module: m}}`,
			want:    "probes.web.module is m, want a module of config.modules: tcp_connect",
			control: "config: {modules: {m: {prober: tcp}}}\nprobes: {web: {targets: ['a:1'], module: m}}",
		},
		{
			name:   "module of a ScrapeConfig",
			values: "scrapeConfigs: {a: {discovery: {dnsSDConfigs: [{names: [a]}]}, module: m}}",
			want:   "scrapeConfigs.a.module is m, want a module of config.modules: tcp_connect",
			control: "existingConfigMap: mine\n" +
				"scrapeConfigs: {a: {discovery: {dnsSDConfigs: [{names: [a]}]}, module: m}}",
		},
		{
			name:    "default module",
			values:  "config: {modules: {tcp_connect: null, m: {prober: tcp}}}\nprobes: {web: {targets: ['a:1']}}",
			want:    "probes.web.module is tcp_connect, want a module of config.modules: m",
			control: "config: {modules: null}\nprobes: {web: {targets: ['a:1'], module: tcp_connect_ip6}}",
		},
		{
			name: "no port", values: target("example.com"),
			want:    `probes.web.targets has "example.com", want HOST:PORT, such as example.com:443`,
			control: target("'example.com:1'"),
		},
		{name: "URL as target", values: target("'https://a:443'"), want: `targets has "https://a:443", want`},
		{name: "port 0", values: target("'a:0'"), want: `probes.web.targets has "a:0", want`},
		{
			name: "port above 65535", values: target("'a:65536'"),
			want: "with a port from 1 to 65535", control: target("'a:65535'"),
		},
		{
			name: "blank in a target", values: target("'a b:1'"), want: `probes.web.targets has "a b:1", want`,
		},
		{
			name: "address without brackets", values: target("'2001:db8::1:443'"),
			want:    `probes.web.targets has "2001:db8::1:443", want HOST:PORT`,
			control: target("'[2001:db8::1]:443'"),
		},
		{
			name: "same series", values: `probes: {a: {targets: ["a:1"]}, b: {targets: ["b:1", "a:1"]}}`,
			want: "probes.b has a target of probes.a, with the same job and labels, want another job or label: a:1",
			control: `probes: {a: {targets: ["a:1"], labels: {b: c}}, b: {targets: ["a:1"]}, ` +
				`c: {targets: ["a:1"], job: c}}`,
		},
		{
			name: "job", values: `probes: {web: {targets: ["a:1"], labels: {job: a}}}`,
			want:    "probes.web.labels has job, which the chart or Prometheus sets, want another label",
			control: `probes: {web: {targets: ["a:1"], job: a}}`,
		},
		{
			name: "instance", values: `probes: {web: {ingress: {}, labels: {instance: a}}}`,
			want: "probes.web.labels has instance,", control: `probes: {web: {ingress: {}, labels: {team: a}}}`,
		},
		{
			name: "internal label", values: `probes: {web: {targets: ["a:1"], labels: {__address__: a}}}`,
			want: "probes.web.labels has __address__,",
		},
		{
			name: "prober", values: "kind: DaemonSet\nprobes: {web: {targets: ['a:1'], labels: {prober: a}}}",
			want:    "probes.web.labels has prober, which is the name of the node with kind DaemonSet, want another",
			control: "probes: {web: {targets: ['a:1'], labels: {prober: a}}}", // a vantage point
		},
		{
			name: "relabelling",
			values: "scrapeConfigs: {a: {discovery: {dnsSDConfigs: [{names: [a]}]}, " +
				"relabelings: [{targetLabel: __param_target, replacement: b}]}}",
			want: "scrapeConfigs.a.relabelings sets __param_target, want __address__, from which the chart sets it",
			control: "scrapeConfigs: {a: {discovery: {dnsSDConfigs: [{names: [a]}]}, " +
				"relabelings: [{targetLabel: __address__, replacement: b}]}}",
		},
		{
			name: "timeout", values: `probes: {web: {targets: ["a:1"], interval: 59s999ms, scrapeTimeout: 1m}}`,
			want:    "probes.web.scrapeTimeout is 1m, want at most the interval, which is 59s999ms",
			control: `probes: {web: {targets: ["a:1"], interval: 1m, scrapeTimeout: 60s}}`,
		},
		{
			name: "timeout and default", values: `probes: {web: {targets: ["a:1"], scrapeTimeout: 16s}}`,
			want:    "probes.web.scrapeTimeout is 16s, want at most the interval, which is 15s",
			control: `probes: {web: {targets: ["a:1"], scrapeTimeout: 15s}}`,
		},
		{
			name: "timeout of a ScrapeConfig",
			values: "scrapeConfigs: {a: {discovery: {dnsSDConfigs: [{names: [a]}]}, " +
				"interval: 1h, scrapeTimeout: 1h1m}}",
			want: "scrapeConfigs.a.scrapeTimeout is 1h1m, want at most the interval, which is 1h",
		},
		{
			name:    "timeout of the ServiceMonitor",
			values:  "serviceMonitor: {enabled: true, endpoint: {scrapeTimeout: 20s}}",
			want:    "serviceMonitor.endpoint.scrapeTimeout is 20s, want at most the interval, which is 15s",
			control: "serviceMonitor: {enabled: true, endpoint: {scrapeTimeout: 10s}}",
		},
		{
			name: "interval 0", values: `probes: {web: {targets: ["a:1"], interval: 0s}}`,
			want: "probes.web.interval is 0s, want more than 0s",
		},
		{
			name: "interval of the ServiceMonitor", values: "serviceMonitor: {enabled: true, interval: 0m0s}",
			want: "serviceMonitor.interval is 0m0s, want more than 0s",
		},
		{
			name: "timeout 0", values: `probes: {web: {targets: ["a:1"], scrapeTimeout: 0ms}}`,
			want: "probes.web.scrapeTimeout is 0ms, want more than 0s",
		},
		{
			name: "field of a Probe", values: `probes: {web: {targets: ["a:1"], spec: {jobName: j}}}`,
			want:    "probes.web.spec has jobName, want the value probes.web.job instead",
			control: `probes: {web: {targets: ["a:1"], spec: {sampleLimit: 9}}}`,
		},
		{
			name:   "field of each node",
			values: "kind: DaemonSet\nprobes: {web: {targets: ['a:1'], spec: {relabelings: []}}}",
			want:   "probes.web.spec has relabelings, want the value probes.web.labels instead",
		},
		{
			name:   "field of a ScrapeConfig",
			values: "scrapeConfigs: {a: {discovery: {dnsSDConfigs: [{names: [a]}]}, spec: {httpSDConfigs: []}}}",
			want:   "scrapeConfigs.a.spec has httpSDConfigs, want the value scrapeConfigs.a.discovery instead",
		},
		{
			name:   "path of a ScrapeConfig",
			values: "scrapeConfigs: {a: {discovery: {dnsSDConfigs: [{names: [a]}]}, spec: {metricsPath: /}}}",
			want:   "scrapeConfigs.a.spec has metricsPath, which the chart sets itself, want it left out",
		},
		{
			name: "field of the ServiceMonitor", values: "serviceMonitor: {enabled: true, endpoint: {interval: 1m}}",
			want:    "serviceMonitor.endpoint has interval, want the value serviceMonitor.interval instead",
			control: "serviceMonitor: {enabled: true, interval: 1m}",
		},
		{
			name: "port of the ServiceMonitor", values: "serviceMonitor: {enabled: true, endpoint: {targetPort: 1}}",
			want: "serviceMonitor.endpoint has targetPort, which the chart sets itself, want it left out",
		},
		{
			name: "several", values: "web: {scheme: https}\nextraArgs: [--version]",
			want: "invalid values:\n" +
				"extraArgs has --version, which ends the exporter, want a flag of a running exporter\n" +
				"web.scheme is https, want web.configSecret",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			repository := "--set=image.repository=r"
			if strings.HasPrefix(c.values, "image:") {
				repository = "--set=image.tag=v1"
			}
			if _, err := render(t, chart, "test", c.values, repository); err == nil ||
				!strings.Contains(err.Error(), c.want) {
				t.Errorf("the chart with the values\n%s\nhas the error %v, want %q", c.values, err, c.want)
			}
			if _, err := render(t, chart, "test", c.control, repository); err != nil && c.control != "" {
				t.Errorf("the chart with the values\n%s\nhas the error %v, want none", c.control, err)
			}
		})
	}
}

// The chart knows all flags of the command serve, as docs/operation.md prints them: it accepts them, or says what to do
// instead.
func TestChartFlags(t *testing.T) {
	lab.SkipWithRace(t)
	help, _, _ := strings.Cut(lab.Read(t, "../docs/operation.md"), "\nprobe [<flags>]")
	var flags []string
	defined := regexp.MustCompile(`(?m)^(?:  -h, |      |    )--(?:\[no-\])?([a-z.-]+)`)
	for _, flag := range defined.FindAllStringSubmatch(help, -1) {
		flags = append(flags, "--"+flag[1])
	}
	if len(flags) < 20 || !slices.Contains(flags, "--help") || !slices.Contains(flags, "--web.enable-pprof") {
		t.Fatalf("docs/operation.md has the flags %q, want those of serve", flags)
	}
	_, err := render(t, packageChart(t, "v1.2.3"), "test",
		fmt.Sprintf("extraArgs: [%s, --log.levle]", strings.Join(flags, ", ")), "--set=image.repository=r")
	if err == nil {
		t.Fatal("the chart accepts all flags, want an error")
	}
	unknown := regexp.MustCompile(`extraArgs has (\S+), want one of`).FindAllStringSubmatch(err.Error(), -1)
	if len(unknown) != 1 || unknown[0][1] != "--log.levle" {
		t.Errorf("extraArgs with all flags and --log.levle has the error %v, want only --log.levle to be unknown", err)
	}
	known := regexp.MustCompile(`want one of (.*)`).FindStringSubmatch(err.Error())
	for _, flag := range strings.Split(known[1], ", ") {
		if !slices.Contains(flags, flag) {
			t.Errorf("the chart knows the flag %s, which docs/operation.md does not have", flag)
		}
	}
}
