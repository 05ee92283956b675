package examples

import (
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	monitoringv1alpha1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1alpha1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// likeManifests are values with which the chart makes the objects of examples/kubernetes.
const likeManifests = `
image: {repository: registry.example.com/shaker_exporter, tag: 0.1.0}
autoscaling: {enabled: true}
networkPolicy:
  from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]
serviceMonitor: {enabled: true}
probes:
  web:
    targets: ["kubernetes.default.svc:443", "192.0.2.1:443"]
    scrapeTimeout: 10s
`

// asManifests returns the objects in the form of examples/kubernetes: without what only Helm needs.
func asManifests(t *testing.T, chart, values string) (o objects) {
	t.Helper()
	file := lab.Write(t, t.TempDir(), "values.yaml", values)
	text, err := helm(t, "template", "shaker-exporter", chart, "--namespace=monitoring", "--values="+file)
	if err != nil {
		t.Fatal(err)
	}
	onlyHelm := regexp.MustCompile(
		`(?m)^ +(app\.kubernetes\.io/(instance|component|version|managed-by)|helm\.sh/chart): .*\n`)
	r, err := parseRelease(onlyHelm.ReplaceAllString(text, ""))
	if err != nil {
		t.Fatal(err)
	}
	o = objects{
		configMap:      *only[*corev1.ConfigMap](t, r),
		deployment:     *only[*appsv1.Deployment](t, r),
		autoscaler:     *only[*autoscalingv2.HorizontalPodAutoscaler](t, r),
		networkPolicy:  *only[*networkingv1.NetworkPolicy](t, r),
		budget:         *only[*policyv1.PodDisruptionBudget](t, r),
		probe:          *only[*monitoringv1.Probe](t, r),
		service:        *only[*corev1.Service](t, r),
		serviceMonitor: *only[*monitoringv1.ServiceMonitor](t, r),
	}
	template := &o.deployment.Spec.Template
	if account := only[*corev1.ServiceAccount](t, r); account.Name != template.Spec.ServiceAccountName ||
		account.AutomountServiceAccountToken == nil || *account.AutomountServiceAccountToken {
		t.Errorf("the account %+v is not the one of the pods, %s, or has a token",
			account, template.Spec.ServiceAccountName)
	}
	template.Spec.ServiceAccountName = ""
	template.Annotations = nil
	o.deployment.Spec.RevisionHistoryLimit = nil
	if o.service.Spec.Type == corev1.ServiceTypeClusterIP { // the default
		o.service.Spec.Type = ""
	}
	o.probe.Name = "shaker"
	return o
}

// differences returns the names of the objects that differ.
func differences(t *testing.T, got, want objects) (names []string) {
	t.Helper()
	file := func(o objects) (content any) {
		if err := decodeStrictly(o.configMap.Data["shaker.yml"], &content); err != nil {
			t.Errorf("shaker.yml: %v", err)
		}
		return content
	}
	for name, pair := range map[string][2]any{
		"ConfigMap":               {got.configMap.ObjectMeta, want.configMap.ObjectMeta},
		"shaker.yml":              {file(got), file(want)},
		"Deployment":              {got.deployment, want.deployment},
		"HorizontalPodAutoscaler": {got.autoscaler, want.autoscaler},
		"NetworkPolicy":           {got.networkPolicy, want.networkPolicy},
		"PodDisruptionBudget":     {got.budget, want.budget},
		"Probe":                   {got.probe, want.probe},
		"Service":                 {got.service, want.service},
		"ServiceMonitor":          {got.serviceMonitor, want.serviceMonitor},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// The chart makes the objects of examples/kubernetes and examples/kubernetes-raw: with the same arguments, privileges,
// ports, probes and limits. The controls are values that change an object.
func TestChartLikeManifests(t *testing.T) {
	lab.SkipWithRace(t)
	chart := packageChart(t, "v1.2.3")
	want, problems := decode(manifests(t))
	if problems != nil {
		t.Fatalf("the manifests have problems: %q", problems)
	}
	image := want.kustomization.Images[0]
	want.deployment.Spec.Template.Spec.Containers[0].Image = image.NewName + ":" + image.NewTag
	raw := want
	var err error
	if raw.deployment, err = patched(want.deployment, lab.Read(t, rawDirectory+"deployment.yml")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		values string
		base   objects
		want   []string
	}{
		{values: likeManifests, base: want},
		{values: likeManifests + "engine: raw\n", base: raw},
		{values: likeManifests + "engine: raw\n", base: want, want: []string{"Deployment"}},
		{values: likeManifests + "maxInFlight: 9\n", base: want, want: []string{"Deployment"}},
		{values: likeManifests + "securityContext: {privileged: true}\n", base: want, want: []string{"Deployment"}},
		{values: likeManifests + "config: {targets: null}\n", base: want, want: []string{"shaker.yml"}},
		{
			values: likeManifests + "service: {port: 80}\n", base: want,
			want: []string{"Probe", "Service"},
		},
	} {
		if got := differences(t, asManifests(t, chart, c.values), c.base); !slices.Equal(got, c.want) {
			t.Errorf("with the values%s, the objects that differ from the manifests are %q, want %q",
				c.values, got, c.want)
		}
	}
}

// everything are values with which the chart makes all objects that it has.
const everything = `
serviceMonitor: {enabled: true}
monitoring: {labels: {release: kube-prometheus-stack}}
prometheusRules: {enabled: true, files: [targets, prober, slo, watch, hold, flows, vantage]}
dashboards: {enabled: true, annotations: {grafana_folder: Probes}}
autoscaling: {enabled: true}
probes:
  web: {targets: ["example.com:443"], labels: {team: shop}}
scrapeConfigs:
  inventory:
    discovery: {httpSDConfigs: [{url: "https://inventory.example.com/targets"}]}
`

// Kubernetes and the Prometheus Operator accept what Helm renders, with every value that changes an object. helm lint
// accepts the values, and the Pod Security Standard restricted the pods, unless they need NET_RAW.
func TestChart(t *testing.T) {
	lab.SkipWithRace(t)
	chart := packageChart(t, "v1.2.3")
	standard := []string{"ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount"}
	without := func(kinds ...string) []string {
		return slices.DeleteFunc(slices.Clone(standard), func(kind string) bool { return slices.Contains(kinds, kind) })
	}
	with := func(kinds ...string) []string { return slices.Sorted(slices.Values(append(kinds, standard...))) }
	rules := slices.Repeat([]string{"PrometheusRule"}, len(lab.Files(t, "rules/*.yml")))
	dashboards := slices.Repeat([]string{"ConfigMap"}, len(lab.Files(t, "grafana/*.json")))
	for _, c := range []struct {
		name, values string
		want         []string
		forbidden    []string
		check        func(t *testing.T, r release)
	}{
		{name: "defaults", want: standard},
		{
			name: "DaemonSet", values: "kind: DaemonSet",
			want: slices.Sorted(slices.Values(append(without("Deployment", "PodDisruptionBudget"), "DaemonSet"))),
			check: func(t *testing.T, r release) {
				got := r.podTemplate(t)
				want := mustRender(t, chart, "test", "").podTemplate(t)
				want.Spec.TopologySpreadConstraints = nil
				if !reflect.DeepEqual(got, want) {
					t.Errorf("the pods of the DaemonSet are %+v, want those of the Deployment\n%+v", got, want)
				}
			},
		},
		{
			name: "raw", values: "engine: raw", want: standard,
			forbidden: []string{"runAsNonRoot != true", "runAsUser=0", "unrestricted capabilities"},
		},
		{
			name: "raw DaemonSet", values: "{kind: DaemonSet, engine: raw}",
			want:      slices.Sorted(slices.Values(append(without("Deployment", "PodDisruptionBudget"), "DaemonSet"))),
			forbidden: []string{"runAsNonRoot != true", "runAsUser=0", "unrestricted capabilities"},
		},
		{
			name: "autoscaling", values: "autoscaling: {enabled: true, maxReplicas: 3}",
			want: with("HorizontalPodAutoscaler"),
			check: func(t *testing.T, r release) {
				if replicas := only[*appsv1.Deployment](t, r).Spec.Replicas; replicas != nil {
					t.Errorf("replicas are %d, which override the autoscaler", *replicas)
				}
			},
		},
		{
			name: "little", want: []string{"Deployment", "Service"},
			values: "networkPolicy: {enabled: false}\npodDisruptionBudget: {enabled: false}\n" +
				"serviceAccount: {create: false}\nexistingConfigMap: mine\nreplicas: 1",
			check: func(t *testing.T, r release) {
				template := r.podTemplate(t)
				if got := template.Spec.ServiceAccountName; got != "default" {
					t.Errorf("the account of the pods is %s, want default", got)
				}
				if got := template.Spec.Volumes[0].ConfigMap.Name; got != "mine" || template.Annotations != nil {
					t.Errorf("the ConfigMap is %s, the annotations %v, want mine and none", got, template.Annotations)
				}
			},
		},
		{
			name: "account", values: "serviceAccount: {create: false, name: mine}", want: without("ServiceAccount"),
			check: func(t *testing.T, r release) {
				template := r.podTemplate(t)
				if got := template.Spec.ServiceAccountName; got != "mine" {
					t.Errorf("the account of the pods is %s, want mine", got)
				}
			},
		},
		{
			name: "image", want: standard,
			values: "image: {digest: sha256:" + strings.Repeat("a", 64) + ", pullPolicy: Always, pullSecrets: [a, b]}",
			check: func(t *testing.T, r release) {
				template := r.podTemplate(t)
				want := "registry.example.com/shaker_exporter@sha256:" + strings.Repeat("a", 64)
				c := template.Spec.Containers[0]
				if c.Image != want || c.ImagePullPolicy != "Always" || len(template.Spec.ImagePullSecrets) != 2 {
					t.Errorf("the image is %s, %s, with the Secrets %v, want %s, Always, a and b",
						c.Image, c.ImagePullPolicy, template.Spec.ImagePullSecrets, want)
				}
			},
		},
		{
			name: "TLS", want: with("Probe", "ScrapeConfig", "ServiceMonitor"),
			values: `
web: {configSecret: tls, scheme: https}
serviceMonitor: {enabled: true, endpoint: {tlsConfig: {ca: {secret: {name: tls, key: ca.crt}}}}}
probes: {web: {targets: ["example.com:443"], spec: {basicAuth: {username: {name: tls, key: user}}}}}
scrapeConfigs: {dns: {discovery: {dnsSDConfigs: [{names: [a.example]}]}, spec: {sampleLimit: 100}}}`,
			check: func(t *testing.T, r release) {
				template := r.podTemplate(t)
				c := template.Spec.Containers[0]
				if !slices.Contains(c.Args, "--web.config.file="+c.VolumeMounts[1].MountPath+"/web-config.yml") ||
					template.Spec.Volumes[1].Secret.SecretName != "tls" ||
					template.Spec.Volumes[1].Name != c.VolumeMounts[1].Name {
					t.Errorf("the Secret is not mounted, or not used: %q, %+v", c.Args, template.Spec.Volumes)
				}
				for _, probe := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
					if probe.TCPSocket == nil || probe.HTTPGet != nil {
						t.Errorf("a probe of the kubelet is %+v, want one that needs no password", probe)
					}
				}
				monitor := only[*monitoringv1.ServiceMonitor](t, r).Spec.Endpoints[0]
				prober := only[*monitoringv1.Probe](t, r).Spec.ProberSpec
				scrape := only[*monitoringv1alpha1.ScrapeConfig](t, r).Spec
				for _, scheme := range []*monitoringv1.Scheme{monitor.Scheme, prober.Scheme, scrape.Scheme} {
					if scheme.String() != "https" {
						t.Errorf("a scheme is %q, want https", scheme)
					}
				}
				if monitor.TLSConfig == nil || scrape.SampleLimit == nil {
					t.Errorf("more fields are missing in %+v or %+v", monitor, scrape)
				}
			},
		},
		{
			name: "scheduling", want: standard,
			values: `
revisionHistoryLimit: 3
podLabels: {team: net}
podAnnotations: {example.com/a: b}
nodeSelector: {kubernetes.io/os: linux}
tolerations: [{operator: Exists}]
affinity: {nodeAffinity: {}}
priorityClassName: system-cluster-critical
topologySpreadConstraints: [{maxSkew: 2, topologyKey: zone, whenUnsatisfiable: DoNotSchedule}]
extraArgs: [--log.level=debug, --web.external-url=https://example.com/shaker/, --web.route-prefix=/]
resources: {limits: {memory: 1Gi}}`,
			check: func(t *testing.T, r release) {
				template := r.podTemplate(t)
				s := template.Spec
				if limit := only[*appsv1.Deployment](t, r).Spec.RevisionHistoryLimit; *limit != 3 {
					t.Errorf("the Deployment keeps %d revisions, want 3", *limit)
				}
				if template.Labels["team"] != "net" || len(template.Annotations) != 2 || len(s.NodeSelector) != 1 ||
					len(s.Tolerations) != 1 || s.Affinity == nil || s.PriorityClassName == "" ||
					s.TopologySpreadConstraints[0].MaxSkew != 2 || len(s.Containers[0].Args) != 6 ||
					s.Containers[0].Resources.Limits.Memory().String() != "1Gi" {
					t.Errorf("a value is missing in %+v", template)
				}
			},
		},
		{
			name: "network of the nodes", want: without("NetworkPolicy"),
			values: "hostNetwork: true\nnetworkPolicy: {enabled: false}\n" +
				`dnsConfig: {options: [{name: ndots, value: "1"}]}`,
			forbidden: []string{"host namespaces"},
			check: func(t *testing.T, r release) {
				template := r.podTemplate(t)
				s := template.Spec
				if ndots := s.DNSConfig.Options[0]; !s.HostNetwork || *ndots.Value != "1" ||
					s.DNSPolicy != corev1.DNSClusterFirstWithHostNet {
					t.Errorf("the network of the pods is %v, %s, %+v, want the one of the nodes, "+
						"the DNS of the cluster, and ndots 1", s.HostNetwork, s.DNSPolicy, ndots)
				}
				// Without a spare node, a new pod gets the port of the node only when an old one is gone.
				update := only[*appsv1.Deployment](t, r).Spec.Strategy.RollingUpdate
				if update.MaxUnavailable.IntValue() != 1 {
					t.Errorf("an update may remove %s pods before new ones are ready, want 1", update.MaxUnavailable)
				}
			},
		},
		{
			// YAML takes these names for numbers, booleans and null, unless they are quoted.
			name: "names like numbers", want: slices.Sorted(slices.Values(append(
				without("ConfigMap", "Deployment", "PodDisruptionBudget"), "DaemonSet", "ScrapeConfig"))),
			values: `
kind: DaemonSet
fullnameOverride: "null"
existingConfigMap: mine
image: {pullSecrets: ["123"]}
web: {configSecret: "123"}
serviceAccount: {name: "true"}
priorityClassName: "true"
probes: {web: {targets: ["a:1"]}}`,
			check: func(t *testing.T, r release) {
				template := r.podTemplate(t)
				s := template.Spec
				got := []string{
					only[*appsv1.DaemonSet](t, r).Name, s.ImagePullSecrets[0].Name, s.Volumes[1].Secret.SecretName,
					only[*corev1.ServiceAccount](t, r).Name, s.ServiceAccountName, s.PriorityClassName,
				}
				if want := []string{"null", "123", "123", "true", "true", "true"}; !slices.Equal(got, want) {
					t.Errorf("the names are %q, want %q", got, want)
				}
			},
		},
		{
			name: "disruption budget", values: "podDisruptionBudget: {minAvailable: 50%}", want: standard,
			check: func(t *testing.T, r release) {
				budget := only[*policyv1.PodDisruptionBudget](t, r).Spec
				if budget.MaxUnavailable != nil || budget.MinAvailable.String() != "50%" {
					t.Errorf("the budget is %+v, want minAvailable 50%% only", budget)
				}
			},
		},
		{
			name: "nothing", want: without("ConfigMap"),
			values: "{config: null, resources: null, podSecurityContext: null, securityContext: null, " +
				"podLabels: null, podAnnotations: null, extraArgs: null, extraEnv: null, nodeSelector: null, " +
				"probes: null, scrapeConfigs: null, affinity: null, existingConfigMap: mine, fullnameOverride: null, " +
				"image: {tag: null, digest: null, pullPolicy: null, pullSecrets: null}, web: {configSecret: null}, " +
				"networkPolicy: {from: null}, serviceAccount: {name: null, annotations: null}, " +
				"podDisruptionBudget: {minAvailable: null}, prometheusRules: {severities: null}, " +
				"dashboards: {labels: null, annotations: null}, monitoring: {labels: null}, " +
				"service: {type: null, annotations: null}, revisionHistoryLimit: null}",
			forbidden: []string{
				"allowPrivilegeEscalation != false", "runAsNonRoot != true", "seccompProfile",
				"unrestricted capabilities",
			},
		},
		{
			// As a second file of values removes what the first one has.
			name: "removed", want: with("Probe"),
			values: "probes: {a: null, b: {targets: ['b:1']}}\nscrapeConfigs: {a: null}",
		},
		{
			name: "Service",
			values: "service: {type: LoadBalancer, port: 80, annotations: {a: b}}\n" +
				"extraEnv:\n- {name: GOMAXPROCS, value: '2'}\n" +
				"- {name: A, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}",
			want: standard,
			check: func(t *testing.T, r release) {
				service := only[*corev1.Service](t, r)
				if service.Spec.Type != "LoadBalancer" || service.Annotations["a"] != "b" {
					t.Errorf("the Service has the type %q and the annotations %v, want LoadBalancer and a",
						service.Spec.Type, service.Annotations)
				}
				template := r.podTemplate(t)
				if env := template.Spec.Containers[0].Env; len(env) != 2 || env[0].Value != "2" ||
					env[1].ValueFrom.FieldRef.FieldPath != "spec.nodeName" {
					t.Errorf("the environment is %+v, want GOMAXPROCS and A", env)
				}
			},
		},
		{
			name: "OpenShift", values: "podSecurityContext: {runAsUser: null, runAsGroup: null}", want: standard,
			check: func(t *testing.T, r release) {
				template := r.podTemplate(t)
				if s := template.Spec.SecurityContext; s.RunAsUser != nil || s.RunAsGroup != nil || !*s.RunAsNonRoot {
					t.Errorf("the security context is %+v, want no user", s)
				}
			},
		},
		{
			name: "probes", values: `
config: {modules: {m: {prober: tcp}}}
probes:
  web: {targets: ["example.com:443", "[2001:db8::1]:443"], labels: {team: shop}, module: m, job: j, interval: 1m}
  ingresses: {ingress: {namespaceSelector: {any: true}}}
  mine: {ingress: {}}`,
			want: with("Probe", "Probe", "Probe"),
			check: func(t *testing.T, r release) {
				var want []monitoringv1.RelabelConfig
				comment := regexp.MustCompile(`(?m)^    #    - (.*)$`)
				for _, line := range comment.FindAllStringSubmatch(manifests(t)["probe.yml"], -1) {
					var step monitoringv1.RelabelConfig
					if err := decodeStrictly(line[1], &step); err != nil {
						t.Fatal(err)
					}
					want = append(want, step)
				}
				ingresses := r["Probe/test-shaker-exporter-ingresses"].(*monitoringv1.Probe).Spec
				if got := ingresses.Targets.Ingress; got == nil || len(want) == 0 ||
					!reflect.DeepEqual(got.RelabelConfigs, want) || !got.NamespaceSelector.Any {
					t.Errorf("the Ingresses are %+v, want the relabelling of probe.yml, %+v", got, want)
				}
				if ingresses.Module != "tcp_connect" || ingresses.JobName != "shaker" || ingresses.Interval != "15s" {
					t.Errorf("the defaults are %+v", ingresses)
				}
				web := r["Probe/test-shaker-exporter-web"].(*monitoringv1.Probe).Spec
				static := web.Targets.StaticConfig
				if web.Module != "m" || web.JobName != "j" || web.Interval != "1m" ||
					len(static.Targets) != 2 || static.Labels["team"] != "shop" {
					t.Errorf("the values are not in %+v", web)
				}
			},
		},
		{
			name: "nodes",
			values: `
kind: DaemonSet
config: {modules: {m: {prober: tcp}}}
probes:
  web: {targets: ["a.example:443", "b.example:443"], labels: {team: shop}, module: m, scrapeTimeout: 5s}
  ingresses: {ingress: {}, labels: {team: shop}}`,
			want: slices.Sorted(slices.Values(append(without("Deployment", "PodDisruptionBudget"),
				"DaemonSet", "Probe", "ScrapeConfig", "ScrapeConfig"))),
			check: func(t *testing.T, r release) {
				var targets []string
				for _, object := range r {
					if o, ok := object.(*monitoringv1alpha1.ScrapeConfig); ok {
						targets = append(targets, o.Spec.Params["target"]...)
						if o.Spec.Params["module"][0] != "m" || *o.Spec.ScrapeTimeout != "5s" {
							t.Errorf("the values are not in %+v", o.Spec)
						}
					}
				}
				if slices.Sort(targets); !slices.Equal(targets, []string{"a.example:443", "b.example:443"}) {
					t.Errorf("the targets are %q, want both", targets)
				}
				steps := only[*monitoringv1.Probe](t, r).Spec.Targets.Ingress.RelabelConfigs
				if last := steps[len(steps)-1]; last.TargetLabel != "team" || *last.Replacement != "shop" {
					t.Errorf("the last step for Ingresses is %+v, want the label", last)
				}
			},
		},
		{
			name:   "rules",
			values: "prometheusRules: {enabled: true, files: [targets, prober, slo, watch, hold, flows, vantage]}",
			want:   with(rules...),
			check:  func(t *testing.T, r release) { checkRules(t, r, nil) },
		},
		{
			name:   "severities",
			values: "prometheusRules: {enabled: true, severities: {page: critical, ticket: warning}}",
			want:   with(rules[1:]...), // all except vantage
			check: func(t *testing.T, r release) {
				checkRules(t, r, map[string]string{"page": "critical", "ticket": "warning"})
			},
		},
		{
			name: "dashboards", values: "dashboards: {enabled: true, annotations: {grafana_folder: Probes}}",
			want: with(dashboards...),
			check: func(t *testing.T, r release) {
				for _, file := range lab.Files(t, "grafana/*.json") {
					name := strings.TrimSuffix(filepath.Base(file), ".json")
					m := r["ConfigMap/test-shaker-exporter-"+name].(*corev1.ConfigMap)
					if m.Data["shaker-"+name+".json"] != lab.Read(t, file) {
						t.Errorf("the ConfigMap %s does not contain %s unchanged", m.Name, file)
					}
					if m.Labels["grafana_dashboard"] != "1" || m.Annotations["grafana_folder"] != "Probes" {
						t.Errorf("the ConfigMap %s has the labels %v and the annotations %v, "+
							"want those of Grafana's sidecar", m.Name, m.Labels, m.Annotations)
					}
				}
			},
		},
		{
			name: "everything", values: everything,
			want: with(slices.Concat(rules, dashboards, []string{
				"HorizontalPodAutoscaler", "Probe", "ScrapeConfig", "ServiceMonitor",
			})...),
			check: func(t *testing.T, r release) {
				kinds := []string{"Probe", "PrometheusRule", "ScrapeConfig", "ServiceMonitor"}
				for name, object := range r {
					operator := slices.Contains(kinds, strings.Split(name, "/")[0])
					if got := object.GetLabels()["release"] == "kube-prometheus-stack"; got != operator {
						t.Errorf("%s has the labels %v, want monitoring.labels: %v", name, object.GetLabels(), operator)
					}
				}
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // for the time in which Helm starts
			r := mustRender(t, chart, "test", c.values)
			var kinds []string
			for name := range r {
				kinds = append(kinds, strings.Split(name, "/")[0])
			}
			if slices.Sort(kinds); !slices.Equal(kinds, c.want) {
				t.Errorf("the objects are %q, want %q", kinds, c.want)
			}
			checkReferences(t, r)
			if got := forbidden(r.podTemplate(t)); !slices.Equal(got, c.forbidden) {
				t.Errorf("the level restricted forbids the pods because of %q, want %q", got, c.forbidden)
			}
			file := lab.Write(t, t.TempDir(), "values.yaml", c.values)
			if out, err := helm(t, "lint", "--strict", "--values="+file, chart); err != nil {
				t.Errorf("%v, want no error\n%s", err, out)
			}
			if c.check != nil {
				c.check(t, r)
			}
		})
	}
}

// checkRules checks that the rules are those of examples/rules, with other severities, and that promtool accepts them.
func checkRules(t *testing.T, r release, severities map[string]string) {
	t.Helper()
	for _, object := range r {
		rule, ok := object.(*monitoringv1.PrometheusRule)
		if !ok {
			continue
		}
		file := "rules/" + strings.TrimPrefix(rule.Name, "test-shaker-exporter-") + ".yml"
		var want monitoringv1.PrometheusRuleSpec
		if err := decodeStrictly(lab.Read(t, file), &want); err != nil {
			t.Fatalf("decode %s: %v", file, err)
		}
		for _, group := range want.Groups {
			for _, rule := range group.Rules {
				if severity, ok := severities[rule.Labels["severity"]]; ok {
					rule.Labels["severity"] = severity
				}
			}
		}
		if !reflect.DeepEqual(rule.Spec, want) {
			t.Errorf("the rules of %s are\n%+v\nwant those of %s\n%+v", rule.Name, rule.Spec, file, want)
		}
		text, err := yaml.Marshal(rule.Spec)
		if err != nil {
			t.Fatal(err)
		}
		rules := lab.Write(t, t.TempDir(), "rules.yml", string(text))
		if out, err := process.Promtool(t, "check", "rules", "--lint-fatal", rules); err != nil {
			t.Errorf("promtool check rules of %s: %v, want no error\n%s", rule.Name, err, out)
		}
	}
}

// A change of the configuration replaces the pods, except with restartOnConfigChange: false. Helm keeps large numbers,
// and null removes a key, also one of an earlier file of values.
func TestChartConfig(t *testing.T) {
	lab.SkipWithRace(t)
	chart := packageChart(t, "v1.2.3")
	const mark = "config: {modules: {tcp_connect: {tcp: {fwmark: 4294967295}}}}\n"
	pods := func(values string) corev1.PodTemplateSpec {
		return mustRender(t, chart, "test", values).podTemplate(t)
	}
	const keep = "restartOnConfigChange: false\n"
	if before, after := pods(""), pods(mark); reflect.DeepEqual(before, after) {
		t.Errorf("a change of the configuration does not change the pods: %+v", after)
	}
	if before, after := pods(keep), pods(keep+mark); !reflect.DeepEqual(before, after) {
		t.Errorf("with %sa change of the configuration changes the pods:\n%+v\n%+v", keep, before, after)
	}
	text := only[*corev1.ConfigMap](t, mustRender(t, chart, "test", mark)).Data["shaker.yml"]
	c, warnings, err := config.Parse("shaker.yml", []byte(text))
	if err != nil || warnings != nil || !strings.Contains(text, "fwmark: 4294967295\n") {
		t.Errorf("the configuration with %sis\n%s%v, warnings %s, want no error and the same number",
			mark, text, err, warnings)
	} else if len(c.Targets.Deny) == 0 {
		t.Errorf("the configuration with %shas lost targets.deny:\n%s", mark, text)
	}

	const removed = "config: {modules: {m: null, tcp_connect: {timeout: null, tcp: {fwmark: null}}}}\n"
	before, after := mustRender(t, chart, "test", ""), mustRender(t, chart, "test", removed)
	if before, after := only[*corev1.ConfigMap](t, before), only[*corev1.ConfigMap](t, after); !maps.Equal(
		before.Data, after.Data) {
		t.Errorf("with %sthe configuration is\n%s\nwant that without it,\n%s", removed, after.Data, before.Data)
	}
	if before, after := before.podTemplate(t), after.podTemplate(t); !reflect.DeepEqual(before, after) {
		t.Errorf("with %sthe pods change:\n%+v\n%+v", removed, before, after)
	}
}

// Releases in one namespace never have objects of the same name or pods that the other one selects, and all names are
// valid. Neither do the copies in a parent chart that has the chart twice, and a third time without enabling it.
func TestChartNames(t *testing.T) {
	lab.SkipWithRace(t)
	chart := packageChart(t, "v1.2.3")
	long := strings.Repeat("a", 52)
	var releases []release
	var names []string
	add := func(name string, r release) {
		for i, other := range releases {
			for object := range r {
				if other[object] != nil {
					t.Errorf("the releases %s and %s both have %s", names[i], name, object)
				}
			}
			for object, selector := range other.selectors() {
				if selects(t, selector, r.podTemplate(t).Labels) {
					t.Errorf("%s of release %s selects the pods of release %s", object, names[i], name)
				}
			}
		}
		checkReferences(t, r)
		names, releases = append(names, name), append(releases, r)
	}
	for _, name := range []string{
		"shaker-exporter", "x", "x-shaker-exporter", "x-shaker-exporter-web", "x-web",
		"my.release", "my-release", "1st", long + "b", long + "c", long,
	} {
		add(name, mustRender(t, chart, name, everything)) // which checks the names
	}
	if names := slices.Sorted(maps.Keys(releases[1])); !slices.Contains(names, "Deployment/x-shaker-exporter") ||
		!slices.Contains(names, "Probe/x-shaker-exporter-web") {
		t.Errorf("the objects of release x are %q, want x-shaker-exporter and x-shaker-exporter-web", names)
	}
	if names := slices.Sorted(maps.Keys(releases[0])); !slices.Contains(names, "Deployment/shaker-exporter") {
		t.Errorf("the objects of release shaker-exporter are %q, want shaker-exporter", names)
	}
	named := mustRender(t, chart, "test", "fullnameOverride: probes\n"+everything)
	if got := only[*appsv1.Deployment](t, named).Name; got != "probes" {
		t.Errorf("with fullnameOverride: probes, the Deployment is %s", got)
	}

	parent := t.TempDir()
	lab.Write(t, parent, "Chart.yaml", `
apiVersion: v2
name: parent
version: 1.0.0
dependencies:
  - {name: shaker-exporter, version: 1.2.3, alias: east}
  - {name: shaker-exporter, version: 1.2.3, alias: west}
  - {name: shaker-exporter, version: 1.2.3, alias: north, condition: north.enabled}
`)
	lab.Write(t, parent, "charts/"+filepath.Base(chart), lab.Read(t, chart))
	indent := regexp.MustCompile(`(?m)^`)
	for _, other := range []string{"east", "west"} {
		values := "global: {a: b}\nnorth: {enabled: false}\n" +
			map[string]string{"east": "west", "west": "east"}[other] + ": {image: {repository: r}}\n" +
			other + ":\n" + indent.ReplaceAllString("image: {repository: r}\nenabled: true"+everything, "  ")
		r, err := render(t, parent, "parent", values)
		if err != nil {
			t.Fatalf("a parent chart: %v", err)
		}
		mine := maps.Clone(r)
		maps.DeleteFunc(mine, func(name string, _ metav1.Object) bool { return !strings.Contains(name, "-"+other) })
		if len(mine) == len(r) || len(mine) < 19 {
			t.Errorf("the parent chart has the objects %q, want some of each copy", slices.Sorted(maps.Keys(r)))
		}
		add("parent with "+other, mine)
	}
}

// discovered returns the targets of a ScrapeConfig with a relabelling, with all labels, as promtool finds them. Static
// targets replace the service discovery.
func discovered(
	t *testing.T, spec monitoringv1alpha1.ScrapeConfigSpec, static any, relabelling []map[string]any,
) string {
	t.Helper()
	job := map[string]any{
		"job_name": *spec.JobName, "metrics_path": *spec.MetricsPath, "params": spec.Params, "static_configs": static,
		"relabel_configs": relabelling,
	}
	text, err := yaml.Marshal(map[string]any{"scrape_configs": []any{job}})
	if err != nil {
		t.Fatal(err)
	}
	file := lab.Write(t, t.TempDir(), "prometheus.yml", string(text))
	out, err := process.Promtool(t, "check", "service-discovery", "--timeout=1s", file, *spec.JobName)
	if err != nil {
		t.Fatalf("promtool check service-discovery: %v\n%s", err, out)
	}
	var found []struct {
		Labels map[string]string `json:"labels"`
	}
	if err := yaml.Unmarshal([]byte(out), &found); err != nil {
		t.Fatalf("promtool check service-discovery prints %s: %v", out, err)
	}
	var lines []string
	for _, f := range found {
		if len(f.Labels) > 0 { // it was not dropped
			lines = append(lines, fmt.Sprint(f.Labels))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// The relabelling of a ScrapeConfig makes a probe of each target, by one of the pods, and with a DaemonSet a probe by
// each pod. The controls are Prometheus' results without it.
func TestChartScrapeConfig(t *testing.T) {
	lab.SkipWithRace(t)
	chart := packageChart(t, "v1.2.3")
	want := func(more map[string]string) string {
		all := map[string]string{
			"__scheme__": "http", "__metrics_path__": "/probe", "__param_module": "m",
			"__param_target": "a.example:443", "__scrape_interval__": "1m", "__scrape_timeout__": "10s",
			"instance": "a.example:443", "job": "shaker", "team": "a$1",
		}
		maps.Copy(all, more)
		return fmt.Sprint(all)
	}
	spec := only[*monitoringv1alpha1.ScrapeConfig](t, mustRender(t, chart, "test", `
config: {modules: {m: {prober: tcp}}}
scrapeConfigs:
  hosts:
    discovery: {staticConfigs: [{targets: [a.example, b.example], labels: {team: a$1}}]}
    relabelings:
      - {sourceLabels: [__address__], regex: "b.*", action: drop}
      - {sourceLabels: [__address__], targetLabel: __address__, replacement: "$1:443"}
    module: m
`)).Spec
	service := want(map[string]string{"__address__": "test-shaker-exporter.monitoring.svc:10115"})
	if got := discovered(t, spec, spec.StaticConfigs, relabelSteps(spec.RelabelConfigs)); got != service {
		t.Errorf("the targets are\n%s\nwant\n%s", got, service)
	}
	if got := discovered(t, spec, spec.StaticConfigs, nil); !strings.Contains(got, "__address__:a.example:80 ") {
		t.Errorf("without the relabelling, the targets are\n%s\nwant a.example", got)
	}

	spec = only[*monitoringv1alpha1.ScrapeConfig](t, mustRender(t, chart, "test", `
kind: DaemonSet
config: {modules: {m: {prober: tcp}}}
probes: {web: {targets: ["a.example:443"], labels: {team: a$1}, module: m}}
`)).Spec
	const node, port = "__meta_kubernetes_pod_node_name", "__meta_kubernetes_pod_container_port_name"
	type config = map[string]any
	pods := []config{
		{"targets": []string{"10.0.0.1:10115"}, "labels": config{node: "one", port: "http"}},
		{"targets": []string{"10.0.0.1:9000"}, "labels": config{node: "one", port: "sidecar"}},
		{"targets": []string{"10.0.0.2:10115"}, "labels": config{node: "two", port: "http"}},
	}
	nodes := want(map[string]string{"__address__": "10.0.0.1:10115", "prober": "one"}) + "\n" +
		want(map[string]string{"__address__": "10.0.0.2:10115", "prober": "two"})
	if got := discovered(t, spec, pods, relabelSteps(spec.RelabelConfigs)); got != nodes {
		t.Errorf("the targets of the nodes are\n%s\nwant\n%s", got, nodes)
	}
	if got := discovered(t, spec, pods, nil); strings.Contains(got, "prober:") || !strings.Contains(got, ":9000") {
		t.Errorf("without the relabelling, the targets of the nodes are\n%s\nwant all ports", got)
	}

	// Such a namespace is valid, too.
	r, err := render(t, chart, "test", "{kind: DaemonSet, probes: {web: {targets: ['a:1']}}}",
		"--set=image.repository=r", "--namespace=123")
	if err != nil {
		t.Fatalf("the chart in the namespace 123: %v", err)
	}
	spec = only[*monitoringv1alpha1.ScrapeConfig](t, r).Spec
	if got := spec.KubernetesSDConfigs[0].Namespaces.Names; !slices.Equal(got, []string{"123"}) {
		t.Errorf("in the namespace 123, the pods of the namespaces %q are discovered, want 123", got)
	}
}

// Helm rejects values that are misspelled, of another type or contradict each other, and says where and what is right.
func TestChartMistakes(t *testing.T) {
	lab.SkipWithRace(t)
	chart := packageChart(t, "v1.2.3")
	if _, err := render(t, chart, "test", ""); err == nil ||
		!strings.Contains(err.Error(), "image.repository is missing, want the image in the registry") {
		t.Errorf("the chart without an image has the error %v, want one about image.repository", err)
	}
	for _, c := range []struct{ values, want string }{
		{values: "kind: Pod", want: "at '/kind': value must be one of 'Deployment', 'DaemonSet'"},
		{values: "replicaCount: 2", want: "additional properties 'replicaCount' not allowed"},
		{values: "autoscaling: {enbled: true}", want: "at '/autoscaling': additional properties 'enbled' not allowed"},
		{values: "engine: rwa", want: "at '/engine': value must be one of 'socket', 'raw'"},
		{values: "replicas: two", want: "at '/replicas': got string, want integer"},
		{values: "service: {port: 70000}", want: "at '/service/port': maximum: got 70,000, want 65,535"},
		{values: "service: {port: null}", want: "at '/service': missing property 'port'"},
		{values: "autoscaling: null", want: "missing property 'autoscaling'"},
		{values: "resources: {requests: 1}", want: "at '/resources/requests': got number, want object"},
		{
			values: "engine: raw\nsecurityContext: {capabilities: NET_ADMIN}",
			want:   "at '/securityContext/capabilities': got string, want object",
		},
		{
			values: "engine: raw\nsecurityContext: {capabilities: {add: NET_ADMIN}}",
			want:   "at '/securityContext/capabilities/add': got string, want",
		},
		{values: "config: shaker.yml", want: "at '/config': got string, want object"},
		{values: "podLabels: {a: 1}", want: "at '/podLabels/a': got number, want string"},
		{values: "image: {digest: abc}", want: "at '/image/digest': 'abc' does not match pattern"},
		{
			values: "extraArgs: [log.level=debug]",
			want:   "at '/extraArgs/0': 'log.level=debug' does not match pattern '^--[a-z]'",
		},
		{values: "fullnameOverride: a_b", want: "at '/fullnameOverride': 'a_b' does not match pattern"},
		{values: "probes: {web: {module: m}}", want: "at '/probes/web': missing property 'targets'"},
		{values: `probes: {web: {targets: ["a:1"], ingress: {}}}`, want: "at '/probes/web': 'oneOf' failed"},
		{
			values: `probes: {web: {targets: ["a:1"], interval: 15}}`,
			want:   "at '/probes/web/interval': got number, want string",
		},
		{
			values: `probes: {web: {targets: ["a:1"], interval: soon}}`,
			want:   "at '/probes/web/interval': 'soon' does not match",
		},
		{values: "probes: {We_b: {}}", want: "at '/probes': additional properties 'We_b' not allowed"},
		{values: "scrapeConfigs: {a: {}}", want: "at '/scrapeConfigs/a': missing property 'discovery'"},
		{
			values: "scrapeConfigs: {a: {discovery: {http: []}}}",
			want:   "at '/scrapeConfigs/a/discovery': additional properties 'http' not allowed",
		},
		{
			values: "prometheusRules: {enabled: true, files: [alerts]}",
			want:   "prometheusRules.files has alerts, want some of flows, hold, prober, slo, targets, vantage, watch",
		},
		{values: "prometheusRules: {severities: {pages: critical}}", want: "additional properties 'pages' not allowed"},
	} {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			_, err := render(t, chart, "test", c.values, "--set=image.repository=r")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the chart with the values %s has the error %v, want %q", c.values, err, c.want)
			}
		})
	}
	for value, want := range map[string]string{
		"image.tag=":                   "image.tag is missing: only a chart that `make chart` packaged has a default",
		"prometheusRules.enabled=true": "this chart has no rules: `make chart` packages them",
		"dashboards.enabled=true":      "this chart has no dashboards: `make chart` packages them",
	} {
		_, err := render(t, chartDirectory, "test", "", "--set=image.repository=r,image.tag=v1,"+value)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the chart that is not packaged, with %s, has the error %v, want %q", value, err, want)
		}
	}
}

// A file of values can remove each value of the chart with null. If the chart needs the value, the error says so.
func TestChartNull(t *testing.T) {
	lab.SkipWithRace(t)
	chart := packageChart(t, "v1.2.3")
	var values map[string]any
	if err := decodeStrictly(lab.Read(t, filepath.Join(chartDirectory, "values.yaml")), &values); err != nil {
		t.Fatalf("decode values.yaml: %v", err)
	}
	values["image"].(map[string]any)["repository"] = "r"
	for _, name := range []string{"serviceMonitor", "prometheusRules", "dashboards"} {
		values[name].(map[string]any)["enabled"] = true
	}
	var remove func(path string, object map[string]any)
	remove = func(path string, object map[string]any) {
		for key, value := range object {
			object[key] = nil
			text, err := json.Marshal(values)
			object[key] = value
			if err != nil {
				t.Fatalf("marshal the values without %s%s: %v", path, key, err)
			}
			t.Run(path+key, func(t *testing.T) {
				t.Parallel()
				_, err := render(t, chart, "test", string(text))
				if err != nil && !strings.Contains(err.Error(), "missing property '"+key+"'") &&
					!strings.Contains(err.Error(), key+" is ") && !strings.Contains(err.Error(), "invalid values:\n") {
					t.Errorf("with %s%s: null, the chart has the error %v, want none, or one that says what is missing",
						path, key, err)
				}
			})
			child, _ := value.(map[string]any)
			remove(path+key+".", child)
		}
	}
	remove("", values)
}

// helm install prints how to probe, for the names and ports of the release.
func TestChartNotes(t *testing.T) {
	lab.SkipWithRace(t)
	chart := packageChart(t, "v1.2.3")
	for values, wanted := range map[string][]string{
		"": {
			"kubectl --namespace=monitoring port-forward service/test-shaker-exporter 10115:10115 &",
			"curl 'http://localhost:10115/probe?target=",
			"http://test-shaker-exporter.monitoring.svc:10115/probe?target=HOST:PORT",
			"Only pods in the namespace monitoring can connect",
			"Set serviceMonitor.enabled",
		},
		"{service: {port: 80}, web: {configSecret: tls, scheme: https}, engine: raw}": {
			"service/test-shaker-exporter 10115:80 &", "curl -k 'https://localhost:10115/probe?target=",
			"https://test-shaker-exporter.monitoring.svc:80/probe?target=HOST:PORT", "enforce=privileged",
		},
	} {
		file := lab.Write(t, t.TempDir(), "values.yaml", values)
		out, err := helm(t, "install", "test", chart, "--dry-run=client", "--namespace=monitoring",
			"--values="+file, "--set=image.repository=r")
		_, notes, _ := strings.Cut(out, "\nNOTES:\n")
		for _, want := range wanted {
			if err != nil || !strings.Contains(notes, want) {
				t.Errorf("with the values %q, helm install says %v\n%s\nwant %q", values, err, notes, want)
			}
		}
	}
}

// The package does not depend on when and where it is made, and Helm itself would put the same files into it. A version
// that Helm would reject becomes one that it accepts.
func TestChartPackage(t *testing.T) {
	lab.SkipWithRace(t)
	first := packageChart(t, "v1.2.3")
	if second := packageChart(t, "v1.2.3"); lab.Read(t, first) != lab.Read(t, second) {
		t.Error("two packages of the same version differ")
	}
	dir := t.TempDir()
	if out, err := exec.Command(lab.Program(t, "tar", "tar"), "-xzf", first, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	out, err := helm(t, "package", filepath.Join(dir, "shaker-exporter"), "--destination="+dir)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	files := func(file string) string {
		out, err := exec.Command(lab.Program(t, "tar", "tar"), "-tzf", file).Output()
		if err != nil {
			t.Fatal(err)
		}
		names := strings.Fields(string(out))
		names = slices.DeleteFunc(names, func(name string) bool { return strings.HasSuffix(name, "/") })
		slices.Sort(names)
		return strings.Join(names, "\n")
	}
	if got, want := files(first), files(filepath.Join(dir, filepath.Base(first))); got != want {
		t.Errorf("the package has the files\n%s\nwant those of helm package\n%s", got, want)
	}
	for version, want := range map[string]string{
		"v1.2.3": "1.2.3", "1.2.3-rc.1": "1.2.3-rc.1", "v1.2.3-4-gabcdef-dirty": "1.2.3-4-gabcdef-dirty",
		"0123456789ab": "0.0.0-g0123456789ab", "1.2.3+a_b": "1.2.3+a-b",
	} {
		chart := packageChart(t, version)
		out, err := helm(t, "show", "chart", chart)
		for _, line := range []string{"version: " + want, "appVersion: " + strings.TrimPrefix(version, "v")} {
			if line := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(line) + `$`); err != nil ||
				!line.MatchString(strings.ReplaceAll(out, `"`, "")) {
				t.Errorf("the chart of version %s is\n%s%v\nwant a line %s", version, out, err, line)
			}
		}
		if got, want := filepath.Base(chart), "shaker-exporter-"+want+".tgz"; got != want {
			t.Errorf("the chart of version %s is the file %s, want %s", version, got, want)
		}
		r := mustRender(t, chart, "test", "")
		template := r.podTemplate(t)
		tag := strings.ReplaceAll(strings.TrimPrefix(version, "v"), "+", "_") // in a tag, + is invalid
		if got, want := template.Spec.Containers[0].Image, "registry.example.com/shaker_exporter:"+tag; got != want {
			t.Errorf("the image of the chart of version %s is %s, want %s", version, got, want)
		}
	}
}
