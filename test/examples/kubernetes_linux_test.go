package examples

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/shaker-exporter/shaker_exporter/collector"
	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// The objects of examples/kubernetes, one in each file.
type objects struct {
	kustomization  kustomization
	configMap      corev1.ConfigMap
	deployment     appsv1.Deployment
	autoscaler     autoscalingv2.HorizontalPodAutoscaler
	networkPolicy  networkingv1.NetworkPolicy
	budget         policyv1.PodDisruptionBudget
	probe          monitoringv1.Probe
	service        corev1.Service
	serviceMonitor monitoringv1.ServiceMonitor
}

// A kustomization is what kustomization.yml may have here.
type kustomization struct {
	metav1.TypeMeta
	Namespace string   `json:"namespace"`
	Resources []string `json:"resources"`
	Images    []struct {
		Name    string `json:"name"`
		NewName string `json:"newName"`
		NewTag  string `json:"newTag"`
	} `json:"images"`
}

const kustomizationFile = "kustomization.yml"

// strictly reads an object as Kubernetes does when it is told to be strict: what is unknown,
// spelt with other capitals, or there twice is an error.
func strictly(text string, object any) error {
	encoded, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return err
	}
	strict, err := json.UnmarshalStrict(encoded, object)
	return errors.Join(append(strict, err)...)
}

// decode reads the objects, the text of each file by its name.
func decode(files map[string]string) (o objects, wrong []string) {
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	places := map[string]struct {
		apiVersion, kind string
		object           any
		meta             *metav1.ObjectMeta
	}{
		kustomizationFile:             {"kustomize.config.k8s.io/v1beta1", "Kustomization", &o.kustomization, nil},
		"configmap.yml":               {"v1", "ConfigMap", &o.configMap, &o.configMap.ObjectMeta},
		"deployment.yml":              {"apps/v1", "Deployment", &o.deployment, &o.deployment.ObjectMeta},
		"horizontalpodautoscaler.yml": {"autoscaling/v2", "HorizontalPodAutoscaler", &o.autoscaler, &o.autoscaler.ObjectMeta},
		"networkpolicy.yml":           {"networking.k8s.io/v1", "NetworkPolicy", &o.networkPolicy, &o.networkPolicy.ObjectMeta},
		"poddisruptionbudget.yml":     {"policy/v1", "PodDisruptionBudget", &o.budget, &o.budget.ObjectMeta},
		"probe.yml":                   {"monitoring.coreos.com/v1", "Probe", &o.probe, &o.probe.ObjectMeta},
		"service.yml":                 {"v1", "Service", &o.service, &o.service.ObjectMeta},
		"servicemonitor.yml":          {"monitoring.coreos.com/v1", "ServiceMonitor", &o.serviceMonitor, &o.serviceMonitor.ObjectMeta},
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		place, ok := places[name]
		if !ok {
			complain("%s: unknown", name)
			continue
		}
		delete(places, name)
		if err := strictly(files[name], place.object); err != nil {
			complain("%s: %v", name, err)
			continue
		}
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(files[name]), &kind); err != nil || kind.APIVersion != place.apiVersion || kind.Kind != place.kind {
			complain("%s: holds %s of %s, want %s of %s", name, kind.Kind, kind.APIVersion, place.kind, place.apiVersion)
		}
		if meta := place.meta; meta != nil {
			// A Service's name is the strictest. The namespace is the kustomization's to say.
			for _, err := range validation.ValidateObjectMeta(meta, false, validation.NameIsDNS1035Label, field.NewPath("metadata")) {
				complain("%s: %v", name, err)
			}
			if got := meta.Labels[nameLabel]; got != exporterName {
				complain("%s: label %s is %q", name, nameLabel, got)
			}
		}
	}
	for name := range places {
		complain("%s: missing", name)
	}
	return o, wrong
}

const (
	nameLabel    = "app.kubernetes.io/name"
	exporterName = "shaker_exporter" // also the job of its own metrics
)

// manifestComplaints says what is wrong with the objects, each by itself and with one another.
func manifestComplaints(files map[string]string) (wrong []string) {
	o, wrong := decode(files)
	if wrong != nil {
		return wrong
	}
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	o.kustomizationComplaints(files, complain)
	o.podComplaints(complain)
	o.selectorComplaints(complain)
	o.portComplaints(complain)
	o.configComplaints(complain)
	o.scaleComplaints(complain)
	o.prometheusComplaints(complain)
	return wrong
}

type complainer func(format string, args ...any)

// The kustomization has all files, and the image that the Deployment has.
func (o *objects) kustomizationComplaints(files map[string]string, complain complainer) {
	all := slices.DeleteFunc(slices.Sorted(maps.Keys(files)), func(name string) bool { return name == kustomizationFile })
	if !slices.Equal(o.kustomization.Resources, all) {
		complain("kustomization: resources are %s, want %s", o.kustomization.Resources, all)
	}
	container := o.container()
	if images := o.kustomization.Images; len(images) != 1 || images[0].Name != container.Image || images[0].NewName == "" || images[0].NewTag == "" {
		complain("kustomization: images %+v, the container's is %s", images, container.Image)
	}
	if errs := validation.ValidateNamespaceName(o.kustomization.Namespace, false); errs != nil {
		complain("kustomization: namespace %s", errs)
	}
	if o.probe.Spec.ProberSpec.URL != fmt.Sprintf("%s.%s.svc:%d", o.service.Name, o.kustomization.Namespace, o.service.Spec.Ports[0].Port) {
		complain("probe: prober %s is not the Service in namespace %s", o.probe.Spec.ProberSpec.URL, o.kustomization.Namespace)
	}
}

// container returns the one container of the pods.
func (o *objects) container() corev1.Container {
	if containers := o.deployment.Spec.Template.Spec.Containers; len(containers) == 1 {
		return containers[0]
	}
	return corev1.Container{}
}

// The pods have no privilege, end no probe, and are told how much they may use.
func (o *objects) podComplaints(complain complainer) {
	template, container := o.deployment.Spec.Template, o.container()
	pod := template.Spec
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		complain("%v", err)
		return
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	if result := policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &template.ObjectMeta, &pod)); !result.Allowed {
		complain("deployment: not restricted: %s", result.ForbiddenDetail())
	}
	const nobody = 65534
	if s := pod.SecurityContext; s == nil || s.RunAsUser == nil || *s.RunAsUser != nobody || s.RunAsGroup == nil || *s.RunAsGroup != nobody {
		complain("deployment: does not run as nobody")
	}
	if s := container.SecurityContext; s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
		complain("deployment: can write to its root file system")
	}
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		complain("deployment: has a token for Kubernetes")
	}

	wait := config.MaxTimeout + collector.AnswerTime
	if hook := container.Lifecycle; hook == nil || hook.PreStop == nil || hook.PreStop.Sleep == nil {
		complain("deployment: stops while it is still sent probes")
	} else {
		wait += time.Duration(hook.PreStop.Sleep.Seconds) * time.Second
	}
	if grace := pod.TerminationGracePeriodSeconds; grace == nil || time.Duration(*grace)*time.Second <= wait {
		complain("deployment: is killed before %v are over", wait)
	}
	if update := o.deployment.Spec.Strategy.RollingUpdate; update == nil || update.MaxUnavailable == nil || update.MaxUnavailable.String() != "0" {
		complain("deployment: an old pod goes before a new one is ready")
	}

	requests, limits := container.Resources.Requests, container.Resources.Limits
	if requests.Cpu().IsZero() || requests.Memory().IsZero() || limits.Memory().Cmp(*requests.Memory()) < 0 {
		complain("deployment: requests and limits are %v, %v", requests, limits)
	}
	if !limits.Cpu().IsZero() {
		complain("deployment: is stopped for having used too much CPU")
	}
}

// What selects pods selects these, and what selects the Service that one.
func (o *objects) selectorComplaints(complain complainer) {
	spec := o.deployment.Spec
	pods := spec.Template.Labels
	byLabels := func(set map[string]string) *metav1.LabelSelector { return &metav1.LabelSelector{MatchLabels: set} }
	selectors := map[string]*metav1.LabelSelector{
		"deployment":          spec.Selector,
		"networkpolicy":       &o.networkPolicy.Spec.PodSelector,
		"poddisruptionbudget": o.budget.Spec.Selector,
		"service":             byLabels(o.service.Spec.Selector),
	}
	for i, constraint := range spec.Template.Spec.TopologySpreadConstraints {
		selectors[fmt.Sprintf("deployment: spread %d", i)] = constraint.LabelSelector
	}
	if len(spec.Template.Spec.TopologySpreadConstraints) == 0 {
		complain("deployment: all pods may be on one node")
	}
	check := func(name string, selector *metav1.LabelSelector, set map[string]string) {
		for _, err := range metavalidation.ValidateLabelSelector(selector, metavalidation.LabelSelectorValidationOptions{}, field.NewPath("selector")) {
			complain("%s: %v", name, err)
		}
		if s, err := metav1.LabelSelectorAsSelector(selector); err != nil || s.Empty() || !s.Matches(labels.Set(set)) {
			complain("%s: selector %s does not match %v", name, s, set)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(selectors)) {
		check(name, selectors[name], pods)
	}
	check("servicemonitor", &o.serviceMonitor.Spec.Selector, o.service.Labels)
}

// Ports are called the same everywhere, and are the exporter's.
func (o *objects) portComplaints(complain complainer) {
	container := o.container()
	if len(container.Ports) != 1 || container.Ports[0].ContainerPort != 10115 {
		complain("deployment: ports %v", container.Ports)
		return
	}
	name := intstr.FromString(container.Ports[0].Name)
	for probe, p := range map[string]*corev1.Probe{"startup": container.StartupProbe, "readiness": container.ReadinessProbe, "liveness": container.LivenessProbe} {
		path := map[bool]string{true: "/-/healthy", false: "/-/ready"}[probe == "liveness"]
		if p == nil || p.HTTPGet == nil || p.HTTPGet.Port != name || p.HTTPGet.Path != path {
			complain("deployment: no %s probe of %s", probe, path)
		}
	}
	ports := o.service.Spec.Ports
	if len(ports) != 1 || ports[0].TargetPort != name {
		complain("service: target port %v", ports)
	}
	if endpoints := o.serviceMonitor.Spec.Endpoints; len(endpoints) != 1 || endpoints[0].Port != ports[0].Name {
		complain("servicemonitor: endpoints %v", endpoints)
	}

	spec := o.networkPolicy.Spec
	if !slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeIngress) || !slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeEgress) {
		complain("networkpolicy: is about %s only", spec.PolicyTypes)
	}
	if in := spec.Ingress; len(in) != 1 || len(in[0].From) != 1 || in[0].From[0].NamespaceSelector == nil ||
		!maps.Equal(in[0].From[0].NamespaceSelector.MatchLabels, map[string]string{corev1.LabelMetadataName: o.kustomization.Namespace}) ||
		len(in[0].Ports) != 1 || in[0].Ports[0].Port == nil || *in[0].Ports[0].Port != name {
		complain("networkpolicy: lets others in than Prometheus")
	}
	for _, out := range []struct {
		protocol corev1.Protocol
		port     int
	}{{corev1.ProtocolTCP, 1}, {corev1.ProtocolTCP, 65535}, {corev1.ProtocolUDP, 53}} {
		if !slices.ContainsFunc(spec.Egress, func(rule networkingv1.NetworkPolicyEgressRule) bool {
			return len(rule.To) == 0 && slices.ContainsFunc(rule.Ports, func(p networkingv1.NetworkPolicyPort) bool {
				return p.Protocol != nil && *p.Protocol == out.protocol && (p.Port == nil || p.Port.IntValue() == out.port)
			})
		}) {
			complain("networkpolicy: does not let %s to port %d out", out.protocol, out.port)
		}
	}
}

// The exporter finds its configuration, and accepts it.
func (o *objects) configComplaints(complain complainer) {
	container := o.container()
	var file string
	for _, arg := range container.Args {
		if name, ok := strings.CutPrefix(arg, "--config.file="); ok {
			file = name
		}
	}
	for _, mount := range container.VolumeMounts {
		for _, volume := range o.deployment.Spec.Template.Spec.Volumes {
			text, there := o.configMap.Data[path.Base(file)]
			if volume.Name != mount.Name || path.Dir(file) != mount.MountPath || mount.SubPath != "" ||
				volume.ConfigMap == nil || volume.ConfigMap.Name != o.configMap.Name || !there {
				continue
			}
			c, warnings, err := config.Parse(path.Base(file), []byte(text))
			if err != nil || warnings != nil {
				complain("configmap: %v %s", err, warnings)
			} else if _, ok := c.Modules[o.probe.Spec.Module]; !ok {
				complain("probe: module %s is unknown", o.probe.Spec.Module)
			}
			return
		}
	}
	complain("deployment: %q is not mounted from the ConfigMap", file)
}

// The autoscaler and the budget are about the Deployment, and leave each other room.
func (o *objects) scaleComplaints(complain complainer) {
	spec := o.autoscaler.Spec
	if target := spec.ScaleTargetRef; target != (autoscalingv2.CrossVersionObjectReference{Kind: "Deployment", Name: o.deployment.Name, APIVersion: "apps/v1"}) {
		complain("horizontalpodautoscaler: scales %+v", target)
	}
	if len(spec.Metrics) != 1 || spec.Metrics[0].Resource == nil || spec.Metrics[0].Resource.Name != corev1.ResourceCPU ||
		spec.Metrics[0].Resource.Target.AverageUtilization == nil {
		complain("horizontalpodautoscaler: metrics %+v", spec.Metrics)
	}
	if o.deployment.Spec.Replicas != nil {
		complain("deployment: overrules the autoscaler")
	}
	if most := o.budget.Spec.MaxUnavailable; most == nil || spec.MinReplicas == nil || most.IntValue() < 1 || most.IntValue() >= int(*spec.MinReplicas) || spec.MaxReplicas < *spec.MinReplicas {
		complain("poddisruptionbudget: %v of %v pods may go", most, spec.MinReplicas)
	}
}

// The jobs are called as the rules have it, and there is time for a probe.
func (o *objects) prometheusComplaints(complain complainer) {
	if got := o.service.Labels[o.serviceMonitor.Spec.JobLabel]; got != exporterName {
		complain("servicemonitor: the job is %q", got)
	}
	spec := o.probe.Spec
	if spec.JobName != "shaker" {
		complain("probe: the job is %q", spec.JobName)
	}
	if spec.ProberSpec.Path != "/probe" {
		complain("probe: the path is %q", spec.ProberSpec.Path)
	}
	interval, err := time.ParseDuration(string(spec.Interval))
	timeout, err2 := time.ParseDuration(string(spec.ScrapeTimeout))
	if err != nil || err2 != nil || timeout > interval {
		complain("probe: the timeout of %s is longer than the interval of %s", spec.ScrapeTimeout, spec.Interval)
	}
	if spec.Targets.Validate() != nil || spec.Targets.StaticConfig == nil || len(spec.Targets.StaticConfig.Targets) == 0 {
		complain("probe: no targets")
		return
	}
	for _, target := range spec.Targets.StaticConfig.Targets {
		if _, _, err := net.SplitHostPort(target); err != nil {
			complain("probe: %v", err)
		}
	}
}

// manifests returns the text of each file in examples/kubernetes.
func manifests(t *testing.T) map[string]string {
	t.Helper()
	found, err := filepath.Glob("kubernetes/*")
	if err != nil {
		t.Fatal(err)
	}
	texts := make(map[string]string)
	for _, file := range found {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts[filepath.Base(file)] = string(text)
	}
	return texts
}

// The objects are what Kubernetes and the Prometheus Operator take, fit together, and run
// with no more than the exporter needs. The controls are mistakes in each of them.
func TestKubernetes(t *testing.T) {
	for _, w := range manifestComplaints(manifests(t)) {
		t.Error(w)
	}
	for _, c := range []struct{ file, old, new, want string }{
		{"deployment.yml", "maxUnavailable: 0", "maxUnavailible: 0", `unknown field "spec.strategy.rollingUpdate.maxUnavailible"`},
		{"deployment.yml", "runAsNonRoot: true", "runAsNonRoot: true\n        runAsNonRoot: true", `already set in map`},
		{"probe.yml", "module:", "modul:", `unknown field "spec.modul"`},
		{"servicemonitor.yml", "jobLabel:", "joblabel:", `unknown field "spec.joblabel"`},
		{"kustomization.yml", "images:", "image:", `unknown field "image"`},
		{"networkpolicy.yml", "kind: NetworkPolicy", "kind: Networkpolicy", "networkpolicy.yml: holds Networkpolicy"},
		{"horizontalpodautoscaler.yml", "autoscaling/v2", "autoscaling/v1", "want HorizontalPodAutoscaler of autoscaling/v2"},
		{"service.yml", "name: shaker-exporter\n", "name: shaker_exporter\n", `Invalid value: "shaker_exporter"`},
		{"configmap.yml", "labels:\n    app.kubernetes.io/name: shaker_exporter", "labels: {}", "configmap.yml: label app.kubernetes.io/name"},
		{"probe.yml", "  name: shaker\n", "  name: shaker\n  namespace: default\n", "metadata.namespace: Forbidden"},

		{"kustomization.yml", "  - service.yml\n", "", "kustomization: resources are"},
		{"kustomization.yml", "namespace: monitoring", "namespace: probes", "probe: prober shaker-exporter.monitoring.svc:10115 is not the Service in namespace probes"},
		{"deployment.yml", "image: shaker_exporter", "image: shaker-exporter", "kustomization: images"},

		{"deployment.yml", "drop: [ALL]", "drop: [ALL]\n              add: [NET_RAW]", "deployment: not restricted: unrestricted capabilities"},
		{"deployment.yml", "drop: [ALL]", "drop: []", "deployment: not restricted: unrestricted capabilities"},
		{"deployment.yml", "allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", "deployment: not restricted: allowPrivilegeEscalation != false"},
		{"deployment.yml", "runAsNonRoot: true", "runAsNonRoot: false", "deployment: not restricted: runAsNonRoot != true"},
		{"deployment.yml", "type: RuntimeDefault", "type: Unconfined", "deployment: not restricted: seccompProfile"},
		{"deployment.yml", "    spec:\n      #", "    spec:\n      hostNetwork: true\n      #", "deployment: not restricted: host namespaces"},
		{"deployment.yml", "runAsUser: 65534", "runAsUser: 1000", "deployment: does not run as nobody"},
		{"deployment.yml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "deployment: can write"},
		{"deployment.yml", "automountServiceAccountToken: false", "automountServiceAccountToken: true", "deployment: has a token"},
		{"deployment.yml", "terminationGracePeriodSeconds: 135", "terminationGracePeriodSeconds: 130", "deployment: is killed before 2m10s"},
		{"deployment.yml", "maxUnavailable: 0", "maxUnavailable: 1", "deployment: an old pod goes before"},
		{"deployment.yml", "memory: 512Mi", "memory: 32Mi", "deployment: requests and limits"},
		{"deployment.yml", "limits:\n", "limits:\n              cpu: 1\n", "deployment: is stopped"},

		{"deployment.yml", "    metadata:\n      labels:\n        app.kubernetes.io/name: shaker_exporter", "    metadata:\n      labels:\n        app: shaker_exporter",
			"deployment: selector app.kubernetes.io/name=shaker_exporter does not match map[app:shaker_exporter]"},
		{"service.yml", "selector:\n    app.kubernetes.io/name: shaker_exporter", "selector: {}", "service: selector  does not match"},
		{"poddisruptionbudget.yml", "matchLabels:\n      app.kubernetes.io/name: shaker_exporter", "matchLabels:\n      app.kubernetes.io/name: other", "poddisruptionbudget: selector"},
		{"networkpolicy.yml", "podSelector:\n    matchLabels:\n      app.kubernetes.io/name: shaker_exporter", "podSelector: {}", "networkpolicy: selector"},
		{"servicemonitor.yml", "matchLabels:\n      app.kubernetes.io/name: shaker_exporter", "matchLabels:\n      app.kubernetes.io/name: other", "servicemonitor: selector"},

		{"deployment.yml", "containerPort: 10115", "containerPort: 9115", "deployment: ports"},
		{"deployment.yml", "path: /-/healthy", "path: /healthz", "deployment: no liveness probe"},
		{"deployment.yml", "- name: http", "- name: web", "service: target port"},
		{"servicemonitor.yml", "port: http", "port: web", "servicemonitor: endpoints"},
		{"networkpolicy.yml", "policyTypes: [Ingress, Egress]", "policyTypes: [Ingress]", "networkpolicy: is about"},
		{"networkpolicy.yml", "kubernetes.io/metadata.name: monitoring", "kubernetes.io/metadata.name: default", "networkpolicy: lets others in"},
		{"networkpolicy.yml", "port: 53", "port: 5353", "networkpolicy: does not let UDP to port 53 out"},

		{"configmap.yml", "prober: tcp", "prober: http", "configmap: shaker.yml:6: module tcp_connect: prober is http"},
		{"configmap.yml", "    modules:\n      tcp_connect:", "    modules:\n      tcp:", "probe: module tcp_connect is unknown"},
		{"configmap.yml", "  shaker.yml: |", "  config.yml: |", "is not mounted from the ConfigMap"},
		{"deployment.yml", "mountPath: /etc/shaker_exporter", "mountPath: /etc/shaker", "is not mounted from the ConfigMap"},

		{"horizontalpodautoscaler.yml", "kind: Deployment", "kind: StatefulSet", "horizontalpodautoscaler: scales"},
		{"poddisruptionbudget.yml", "maxUnavailable: 1", "maxUnavailable: 2", "poddisruptionbudget: 2 of"},
		{"deployment.yml", "spec:\n  #", "spec:\n  replicas: 2\n  #", "deployment: overrules the autoscaler"},

		{"servicemonitor.yml", "jobLabel: app.kubernetes.io/name", "jobLabel: app", `servicemonitor: the job is ""`},
		{"probe.yml", "jobName: shaker", "jobName: probes", `probe: the job is "probes"`},
		{"probe.yml", "path: /probe", "path: /metrics", `probe: the path is "/metrics"`},
		{"probe.yml", "scrapeTimeout: 10s", "scrapeTimeout: 20s", "probe: the timeout of 20s is longer"},
		{"probe.yml", "192.0.2.1:443", "192.0.2.1", "probe: address 192.0.2.1: missing port"},
	} {
		files := manifests(t)
		if !strings.Contains(files[c.file], c.old) {
			t.Errorf("%s has no %q", c.file, c.old)
			continue
		}
		files[c.file] = strings.Replace(files[c.file], c.old, c.new, 1)
		if got := manifestComplaints(files); !slices.ContainsFunc(got, func(w string) bool { return strings.Contains(w, c.want) }) {
			t.Errorf("%s with %q: %q, want %q", c.file, c.new, got, c.want)
		}
	}
}

// The exporter understands the arguments that it gets.
func TestKubernetesArguments(t *testing.T) {
	o, _ := decode(manifests(t))
	file := filepath.Join(t.TempDir(), "shaker.yml")
	if err := os.WriteFile(file, []byte("modules: {tcp_connect: {prober: tcp}}"), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"run", "..", "--config.check"}
	for _, arg := range o.container().Args {
		args = append(args, regexp.MustCompile(`^(--config\.file=).*`).ReplaceAllString(arg, "${1}"+file))
	}
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		t.Errorf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	// The control: one that is misspelled.
	if out, err := exec.Command("go", append(args, "--probe.max-inflight=1")...).CombinedOutput(); err == nil {
		t.Errorf("it understands anything: %s", out)
	}
}

// The command in kustomization.yml makes objects of the rules that the Operator takes, with
// every rule that there is.
func TestKubernetesRules(t *testing.T) {
	shell := lab.Program(t, "sh", "dash")
	comment := regexp.MustCompile(`(?s)\n#   (for rules in .*?done) \| kubectl apply`).FindStringSubmatch(manifests(t)[kustomizationFile])
	if comment == nil {
		t.Fatal("kustomization.yml has no command for the rules")
	}
	command := strings.ReplaceAll(comment[1], "\n#", "\n")
	apply := func(command string) (rules map[string]*monitoringv1.PrometheusRule, err error) {
		cmd := exec.Command(shell, "-e", "-c", command)
		cmd.Dir = ".."
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", command, err)
		}
		rules = make(map[string]*monitoringv1.PrometheusRule)
		for text := range strings.SplitSeq(strings.TrimPrefix(string(out), "---\n"), "\n---\n") {
			var rule monitoringv1.PrometheusRule
			if err := strictly(text, &rule); err != nil {
				return nil, err
			}
			if errs := validation.NameIsDNSSubdomain(rule.Name, false); errs != nil || rule.Kind != "PrometheusRule" {
				return nil, fmt.Errorf("%s %q: %s", rule.Kind, rule.Name, errs)
			}
			rules[rule.Name] = &rule
		}
		return rules, nil
	}
	// All files, though not everybody has use for all of them.
	found, err := filepath.Glob("rules/*.yml")
	if err != nil || found == nil {
		t.Fatal("no rules", err)
	}
	var names []string
	for _, file := range found {
		names = append(names, strings.TrimSuffix(filepath.Base(file), ".yml"))
	}
	list := regexp.MustCompile(`for rules in (.*?); do`).FindStringSubmatch(command)
	for _, name := range strings.Fields(list[1]) {
		if !slices.Contains(names, name) {
			t.Errorf("there is no rules/%s.yml", name)
		}
	}
	all := strings.Replace(command, list[1], strings.Join(names, " "), 1)
	rules, err := apply(all)
	if err != nil {
		t.Fatal(err)
	}
	for i, file := range found {
		var want monitoringv1.PrometheusRuleSpec
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := strictly(string(text), &want); err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		got := rules["shaker-"+names[i]]
		if got == nil || len(want.Groups) == 0 || !reflect.DeepEqual(got.Spec, want) {
			t.Errorf("of %s the command makes something else: %v", file, got)
		}
	}
	// The controls: a field that the Operator does not know, and rules that are not below spec.
	for _, broken := range []string{strings.Replace(all, "s/^/  /", "s/^/  /; s/alert:/alarm:/", 1), strings.Replace(all, "s/^/  /", "", 1)} {
		if broken == all {
			t.Fatalf("%s is not what it was", all)
		}
		if _, err := apply(broken); err == nil {
			t.Errorf("what %s makes is accepted", broken)
		}
	}
}
