package examples

import (
	"errors"
	"fmt"
	"maps"
	"net"
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
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
)

// objects are the objects in examples/kubernetes, one in each file.
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

// A kustomization is the content of kustomization.yml, with the fields that it may have here.
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

// decodeStrictly decodes an object as Kubernetes does with strict validation: fields that are unknown, have another
// capitalization, or occur twice are errors.
func decodeStrictly(text string, object any) error {
	encoded, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return err
	}
	strict, err := json.UnmarshalStrict(encoded, object)
	return errors.Join(append(strict, err)...)
}

// decode decodes the objects from the text of each file, by the name of the file.
func decode(files map[string]string) (o objects, problems []string) {
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	type wanted struct {
		apiVersion, kind string
		object           any
		meta             *metav1.ObjectMeta
	}
	missing := map[string]wanted{
		kustomizationFile: {
			apiVersion: "kustomize.config.k8s.io/v1beta1", kind: "Kustomization", object: &o.kustomization,
		},
		"configmap.yml": {
			apiVersion: "v1", kind: "ConfigMap", object: &o.configMap, meta: &o.configMap.ObjectMeta,
		},
		"deployment.yml": {
			apiVersion: "apps/v1", kind: "Deployment", object: &o.deployment, meta: &o.deployment.ObjectMeta,
		},
		"horizontalpodautoscaler.yml": {
			apiVersion: "autoscaling/v2", kind: "HorizontalPodAutoscaler",
			object: &o.autoscaler, meta: &o.autoscaler.ObjectMeta,
		},
		"networkpolicy.yml": {
			apiVersion: "networking.k8s.io/v1", kind: "NetworkPolicy",
			object: &o.networkPolicy, meta: &o.networkPolicy.ObjectMeta,
		},
		"poddisruptionbudget.yml": {
			apiVersion: "policy/v1", kind: "PodDisruptionBudget", object: &o.budget, meta: &o.budget.ObjectMeta,
		},
		"probe.yml": {
			apiVersion: "monitoring.coreos.com/v1", kind: "Probe", object: &o.probe, meta: &o.probe.ObjectMeta,
		},
		"service.yml": {
			apiVersion: "v1", kind: "Service", object: &o.service, meta: &o.service.ObjectMeta,
		},
		"servicemonitor.yml": {
			apiVersion: "monitoring.coreos.com/v1", kind: "ServiceMonitor",
			object: &o.serviceMonitor, meta: &o.serviceMonitor.ObjectMeta,
		},
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		want, ok := missing[name]
		if !ok {
			complain("%s: unknown file", name)
			continue
		}
		delete(missing, name)
		if err := decodeStrictly(files[name], want.object); err != nil {
			complain("%s: %v", name, err)
			continue
		}
		var kind metav1.TypeMeta
		err := yaml.Unmarshal([]byte(files[name]), &kind)
		if err != nil || kind.APIVersion != want.apiVersion || kind.Kind != want.kind {
			complain("%s: holds %s of %s, want %s of %s", name, kind.Kind, kind.APIVersion, want.kind, want.apiVersion)
		}
		if want.meta == nil {
			continue
		}
		// The names of Services have the strictest syntax. The kustomization sets the namespace.
		for _, err := range validation.ValidateObjectMeta(want.meta, false,
			validation.NameIsDNS1035Label, field.NewPath("metadata")) {
			complain("%s: %v", name, err)
		}
		if got := want.meta.Labels[nameLabel]; got != exporterName {
			complain("%s: label %s is %q, want %q", name, nameLabel, got, exporterName)
		}
	}
	for name := range missing {
		complain("%s: missing", name)
	}
	return o, problems
}

const (
	nameLabel    = "app.kubernetes.io/name"
	exporterName = "shaker_exporter" // also the job of its own metrics
)

// manifestProblems returns what is wrong with the objects, and with the references between them.
func manifestProblems(files map[string]string) (problems []string) {
	o, problems := decode(files)
	if problems != nil {
		return problems
	}
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	o.checkKustomization(files, complain)
	o.checkPod(complain)
	o.checkSelectors(complain)
	o.checkPorts(complain)
	o.checkConfig(complain)
	o.checkScale(complain)
	o.checkPrometheus(complain)
	return problems
}

// A complainer adds a problem.
type complainer func(format string, args ...any)

// checkKustomization checks that the kustomization has all files, and replaces the image of the Deployment.
func (o *objects) checkKustomization(files map[string]string, complain complainer) {
	all := slices.Sorted(maps.Keys(files))
	all = slices.DeleteFunc(all, func(name string) bool { return name == kustomizationFile })
	if !slices.Equal(o.kustomization.Resources, all) {
		complain("kustomization: resources are %s, want %s", o.kustomization.Resources, all)
	}
	container := o.container()
	if images := o.kustomization.Images; len(images) != 1 || images[0].Name != container.Image ||
		images[0].NewName == "" || images[0].NewTag == "" {
		complain("kustomization: images are %+v, want a replacement of the container's image, %s",
			images, container.Image)
	}
	if errs := validation.ValidateNamespaceName(o.kustomization.Namespace, false); errs != nil {
		complain("kustomization: namespace %q: %s", o.kustomization.Namespace, errs)
	}
	namespace := o.kustomization.Namespace
	service := fmt.Sprintf("%s.%s.svc:%d", o.service.Name, namespace, o.service.Spec.Ports[0].Port)
	if url := o.probe.Spec.ProberSpec.URL; url != service {
		complain("probe: prober %s is not the Service in namespace %s", url, namespace)
	}
}

// container returns the container of the pods, if they have exactly one.
func (o *objects) container() corev1.Container {
	if containers := o.deployment.Spec.Template.Spec.Containers; len(containers) == 1 {
		return containers[0]
	}
	return corev1.Container{}
}

// forbidden returns why the Pod Security Standard restricted forbids pods, nil if it permits them.
func forbidden(template corev1.PodTemplateSpec) []string {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		panic(err) // the checks are always the same
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	result := policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &template.ObjectMeta, &template.Spec))
	return slices.Sorted(slices.Values(result.ForbiddenReasons))
}

// checkPod checks that the pods have no privileges, finish their probes before they stop, and have resource limits.
func (o *objects) checkPod(complain complainer) {
	template, container := o.deployment.Spec.Template, o.container()
	pod := template.Spec
	if reasons := forbidden(template); reasons != nil {
		complain("deployment: not restricted: %s", strings.Join(reasons, ", "))
	}
	const nobody = 65534
	if s := pod.SecurityContext; s == nil || s.RunAsUser == nil || *s.RunAsUser != nobody ||
		s.RunAsGroup == nil || *s.RunAsGroup != nobody {
		complain("deployment: does not run as nobody")
	}
	if s := container.SecurityContext; s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
		complain("deployment: can write to its root file system")
	}
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		complain("deployment: has a token for the Kubernetes API")
	}

	wait := config.MaxTimeout + collector.AnswerTime
	if hook := container.Lifecycle; hook == nil || hook.PreStop == nil || hook.PreStop.Sleep == nil {
		complain("deployment: stops while it still receives probe requests")
	} else {
		wait += time.Duration(hook.PreStop.Sleep.Seconds) * time.Second
	}
	if grace := pod.TerminationGracePeriodSeconds; grace == nil || time.Duration(*grace)*time.Second <= wait {
		complain("deployment: is killed before %v have passed", wait)
	}
	if update := o.deployment.Spec.Strategy.RollingUpdate; update == nil || update.MaxUnavailable == nil ||
		update.MaxUnavailable.String() != "0" {
		complain("deployment: an old pod stops before a new one is ready")
	}

	requests, limits := container.Resources.Requests, container.Resources.Limits
	if requests.Cpu().IsZero() || requests.Memory().IsZero() || limits.Memory().Cmp(*requests.Memory()) < 0 {
		complain("deployment: requests and limits are %v and %v, want CPU and memory, and no less memory as limit",
			requests, limits)
	}
	if !limits.Cpu().IsZero() {
		complain("deployment: has a CPU limit, which would pause the exporter")
	}
}

// checkSelectors checks that the selectors of pods match the Deployment's pods, and that the ServiceMonitor selects the
// Service.
func (o *objects) checkSelectors(complain complainer) {
	spec := o.deployment.Spec
	pods := spec.Template.Labels
	selectors := map[string]*metav1.LabelSelector{
		"deployment":          spec.Selector,
		"networkpolicy":       &o.networkPolicy.Spec.PodSelector,
		"poddisruptionbudget": o.budget.Spec.Selector,
		"service":             {MatchLabels: o.service.Spec.Selector},
	}
	for i, constraint := range spec.Template.Spec.TopologySpreadConstraints {
		selectors[fmt.Sprintf("deployment: spread %d", i)] = constraint.LabelSelector
	}
	if len(spec.Template.Spec.TopologySpreadConstraints) == 0 {
		complain("deployment: all pods may be on one node")
	}
	check := func(name string, selector *metav1.LabelSelector, set map[string]string) {
		for _, err := range metavalidation.ValidateLabelSelector(selector,
			metavalidation.LabelSelectorValidationOptions{}, field.NewPath("selector")) {
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

// checkPorts checks that all objects refer to the exporter's port by the same name.
func (o *objects) checkPorts(complain complainer) {
	container := o.container()
	if len(container.Ports) != 1 || container.Ports[0].ContainerPort != exporter.Port {
		complain("deployment: ports are %v, want %d", container.Ports, exporter.Port)
		return
	}
	name := intstr.FromString(container.Ports[0].Name)
	for _, c := range []struct {
		name, path string
		probe      *corev1.Probe
	}{
		{name: "startup", path: "/-/ready", probe: container.StartupProbe},
		{name: "readiness", path: "/-/ready", probe: container.ReadinessProbe},
		{name: "liveness", path: "/-/healthy", probe: container.LivenessProbe},
	} {
		if p := c.probe; p == nil || p.HTTPGet == nil || p.HTTPGet.Port != name || p.HTTPGet.Path != c.path {
			complain("deployment: no %s probe of %s", c.name, c.path)
		}
	}
	ports := o.service.Spec.Ports
	if len(ports) != 1 || ports[0].TargetPort != name {
		complain("service: target port of %v is not %v", ports, &name)
	}
	if endpoints := o.serviceMonitor.Spec.Endpoints; len(endpoints) != 1 || endpoints[0].Port != ports[0].Name {
		complain("servicemonitor: endpoints %v are not the port of the Service", endpoints)
	}

	spec := o.networkPolicy.Spec
	if !slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeIngress) ||
		!slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeEgress) {
		complain("networkpolicy: policy types are %s, want Ingress and Egress", spec.PolicyTypes)
	}
	prometheus := map[string]string{corev1.LabelMetadataName: o.kustomization.Namespace}
	if in := spec.Ingress; len(in) != 1 || len(in[0].From) != 1 || in[0].From[0].NamespaceSelector == nil ||
		!maps.Equal(in[0].From[0].NamespaceSelector.MatchLabels, prometheus) ||
		len(in[0].Ports) != 1 || in[0].Ports[0].Port == nil || *in[0].Ports[0].Port != name {
		complain("networkpolicy: ingress is not limited to the namespace of Prometheus and the exporter's port")
	}
	for _, out := range []struct {
		protocol corev1.Protocol
		port     int
	}{
		{protocol: corev1.ProtocolTCP, port: 1},
		{protocol: corev1.ProtocolTCP, port: 65535},
		{protocol: corev1.ProtocolUDP, port: 53},
		{protocol: corev1.ProtocolUDP, port: 5353}, // of OpenShift's DNS servers, behind port 53 of their Service
	} {
		if !slices.ContainsFunc(spec.Egress, func(rule networkingv1.NetworkPolicyEgressRule) bool {
			return len(rule.To) == 0 && slices.ContainsFunc(rule.Ports, func(p networkingv1.NetworkPolicyPort) bool {
				return p.Protocol != nil && *p.Protocol == out.protocol &&
					(p.Port == nil || p.Port.IntValue() == out.port)
			})
		}) {
			complain("networkpolicy: egress to %s port %d is not allowed", out.protocol, out.port)
		}
	}
}

// checkConfig checks that the exporter's configuration file is mounted and valid, and has the module of the Probe.
func (o *objects) checkConfig(complain complainer) {
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
				complain("configmap: %v, warnings: %s", err, warnings)
			} else if _, ok := c.Modules[o.probe.Spec.Module]; !ok {
				complain("probe: module %s is unknown", o.probe.Spec.Module)
			}
			return
		}
	}
	complain("deployment: %q is not mounted from the ConfigMap", file)
}

// checkScale checks that the autoscaler scales the Deployment, and that the budget allows the eviction of some of its
// pods and not of all.
func (o *objects) checkScale(complain complainer) {
	spec := o.autoscaler.Spec
	target := autoscalingv2.CrossVersionObjectReference{
		Kind: "Deployment", Name: o.deployment.Name, APIVersion: "apps/v1",
	}
	if spec.ScaleTargetRef != target {
		complain("horizontalpodautoscaler: scales %+v, want %+v", spec.ScaleTargetRef, target)
	}
	if len(spec.Metrics) != 1 || spec.Metrics[0].Resource == nil ||
		spec.Metrics[0].Resource.Name != corev1.ResourceCPU ||
		spec.Metrics[0].Resource.Target.AverageUtilization == nil {
		complain("horizontalpodautoscaler: metrics are %+v, want the CPU utilization", spec.Metrics)
	}
	if o.deployment.Spec.Replicas != nil {
		complain("deployment: replicas override the autoscaler")
	}
	if spec.MinReplicas == nil || spec.MaxReplicas < *spec.MinReplicas {
		complain("horizontalpodautoscaler: minReplicas is not set, or exceeds maxReplicas, %d", spec.MaxReplicas)
	} else if most := o.budget.Spec.MaxUnavailable; most == nil || most.IntValue() < 1 ||
		most.IntValue() >= int(*spec.MinReplicas) {
		complain("poddisruptionbudget: %v of %d pods may be unavailable", most, *spec.MinReplicas)
	}
}

// checkPrometheus checks that the jobs have the names that the rules use, and that a probe fits into the interval.
func (o *objects) checkPrometheus(complain complainer) {
	if got := o.service.Labels[o.serviceMonitor.Spec.JobLabel]; got != exporterName {
		complain("servicemonitor: the job is %q, want %q", got, exporterName)
	}
	spec := o.probe.Spec
	if spec.JobName != "shaker" {
		complain("probe: the job is %q, want shaker", spec.JobName)
	}
	if spec.ProberSpec.Path != "/probe" {
		complain("probe: the path is %q, want /probe", spec.ProberSpec.Path)
	}
	interval, err := time.ParseDuration(string(spec.Interval))
	timeout, err2 := time.ParseDuration(string(spec.ScrapeTimeout))
	if err != nil || err2 != nil || timeout > interval {
		complain("probe: the timeout %s is longer than the interval %s", spec.ScrapeTimeout, spec.Interval)
	}
	if spec.Targets.Validate() != nil || spec.Targets.StaticConfig == nil ||
		len(spec.Targets.StaticConfig.Targets) == 0 {
		complain("probe: no static targets")
		return
	}
	for _, target := range spec.Targets.StaticConfig.Targets {
		if _, _, err := net.SplitHostPort(target); err != nil {
			complain("probe: target %s: %v", target, err)
		}
	}
}

// manifests returns the text of each file in examples/kubernetes, by the name of the file.
func manifests(t *testing.T) map[string]string {
	t.Helper()
	texts := make(map[string]string)
	for _, file := range lab.Files(t, "kubernetes/*") {
		texts[filepath.Base(file)] = lab.Read(t, file)
	}
	return texts
}

// Kubernetes and the Prometheus Operator accept the objects. The objects fit together and have no more privileges than
// the exporter needs. The controls are mistakes in each object.
func TestKubernetes(t *testing.T) {
	for _, problem := range manifestProblems(manifests(t)) {
		t.Errorf("examples/kubernetes has a problem: %s", problem)
	}
	for _, c := range []struct{ file, old, new, want string }{
		{
			file: "deployment.yml", old: "maxUnavailable: 0", new: "maxUnavailible: 0",
			want: `unknown field "spec.strategy.rollingUpdate.maxUnavailible"`,
		},
		{
			file: "deployment.yml", old: "runAsNonRoot: true",
			new: "runAsNonRoot: true\n        runAsNonRoot: true", want: `already set in map`,
		},
		{file: "probe.yml", old: "module:", new: "modul:", want: `unknown field "spec.modul"`},
		{file: "servicemonitor.yml", old: "jobLabel:", new: "joblabel:", want: `unknown field "spec.joblabel"`},
		{file: "kustomization.yml", old: "images:", new: "image:", want: `unknown field "image"`},
		{
			file: "networkpolicy.yml", old: "kind: NetworkPolicy", new: "kind: Networkpolicy",
			want: "networkpolicy.yml: holds Networkpolicy",
		},
		{
			file: "horizontalpodautoscaler.yml", old: "autoscaling/v2", new: "autoscaling/v1",
			want: "want HorizontalPodAutoscaler of autoscaling/v2",
		},
		{
			file: "service.yml", old: "name: shaker-exporter\n", new: "name: shaker_exporter\n",
			want: `Invalid value: "shaker_exporter"`,
		},
		{
			file: "configmap.yml", old: "labels:\n    app.kubernetes.io/name: shaker_exporter", new: "labels: {}",
			want: "configmap.yml: label app.kubernetes.io/name",
		},
		{
			file: "probe.yml", old: "  name: shaker\n", new: "  name: shaker\n  namespace: default\n",
			want: "metadata.namespace: Forbidden",
		},

		{file: "kustomization.yml", old: "  - service.yml\n", new: "", want: "kustomization: resources are"},
		{
			file: "kustomization.yml", old: "namespace: monitoring", new: "namespace: probes",
			want: "probe: prober shaker-exporter.monitoring.svc:10115 is not the Service in namespace probes",
		},
		{
			file: "deployment.yml", old: "image: shaker_exporter", new: "image: shaker-exporter",
			want: "kustomization: images",
		},

		{
			file: "deployment.yml", old: "drop: [ALL]", new: "drop: [ALL]\n              add: [NET_RAW]",
			want: "deployment: not restricted: unrestricted capabilities",
		},
		{
			file: "deployment.yml", old: "drop: [ALL]", new: "drop: []",
			want: "deployment: not restricted: unrestricted capabilities",
		},
		{
			file: "deployment.yml", old: "allowPrivilegeEscalation: false", new: "allowPrivilegeEscalation: true",
			want: "deployment: not restricted: allowPrivilegeEscalation != false",
		},
		{
			file: "deployment.yml", old: "runAsNonRoot: true", new: "runAsNonRoot: false",
			want: "deployment: not restricted: runAsNonRoot != true",
		},
		{
			file: "deployment.yml", old: "type: RuntimeDefault", new: "type: Unconfined",
			want: "deployment: not restricted: seccompProfile",
		},
		{
			file: "deployment.yml", old: "    spec:\n      #", new: "    spec:\n      hostNetwork: true\n      #",
			want: "deployment: not restricted: host namespaces",
		},
		{
			file: "deployment.yml", old: "runAsUser: 65534", new: "runAsUser: 1000",
			want: "deployment: does not run as nobody",
		},
		{
			file: "deployment.yml", old: "readOnlyRootFilesystem: true", new: "readOnlyRootFilesystem: false",
			want: "deployment: can write",
		},
		{
			file: "deployment.yml", old: "automountServiceAccountToken: false",
			new: "automountServiceAccountToken: true", want: "deployment: has a token",
		},
		{
			file: "deployment.yml", old: "terminationGracePeriodSeconds: 135",
			new: "terminationGracePeriodSeconds: 130", want: "deployment: is killed before 2m10s",
		},
		{
			file: "deployment.yml", old: "maxUnavailable: 0", new: "maxUnavailable: 1",
			want: "deployment: an old pod stops before",
		},
		{file: "deployment.yml", old: "memory: 512Mi", new: "memory: 32Mi", want: "deployment: requests and limits"},
		{
			file: "deployment.yml", old: "limits:\n", new: "limits:\n              cpu: 1\n",
			want: "deployment: has a CPU limit",
		},

		{
			file: "deployment.yml",
			old:  "    metadata:\n      labels:\n        app.kubernetes.io/name: shaker_exporter",
			new:  "    metadata:\n      labels:\n        app: shaker_exporter",
			want: "deployment: selector app.kubernetes.io/name=shaker_exporter does not match map[app:shaker_exporter]",
		},
		{
			file: "service.yml", old: "selector:\n    app.kubernetes.io/name: shaker_exporter", new: "selector: {}",
			want: "service: selector  does not match",
		},
		{
			file: "poddisruptionbudget.yml", old: "matchLabels:\n      app.kubernetes.io/name: shaker_exporter",
			new: "matchLabels:\n      app.kubernetes.io/name: other", want: "poddisruptionbudget: selector",
		},
		{
			file: "networkpolicy.yml",
			old:  "podSelector:\n    matchLabels:\n      app.kubernetes.io/name: shaker_exporter",
			new:  "podSelector: {}", want: "networkpolicy: selector",
		},
		{
			file: "servicemonitor.yml", old: "matchLabels:\n      app.kubernetes.io/name: shaker_exporter",
			new: "matchLabels:\n      app.kubernetes.io/name: other", want: "servicemonitor: selector",
		},

		{file: "deployment.yml", old: "containerPort: 10115", new: "containerPort: 9115", want: "deployment: ports"},
		{file: "deployment.yml", old: "path: /-/healthy", new: "path: /healthz", want: "deployment: no liveness probe"},
		{file: "deployment.yml", old: "- name: http", new: "- name: web", want: "service: target port"},
		{file: "servicemonitor.yml", old: "port: http", new: "port: web", want: "servicemonitor: endpoints"},
		{
			file: "networkpolicy.yml", old: "policyTypes: [Ingress, Egress]", new: "policyTypes: [Ingress]",
			want: "networkpolicy: policy types are",
		},
		{
			file: "networkpolicy.yml", old: "kubernetes.io/metadata.name: monitoring",
			new: "kubernetes.io/metadata.name: default", want: "networkpolicy: ingress is not limited",
		},
		{
			file: "networkpolicy.yml", old: "port: 53\n", new: "port: 54\n",
			want: "networkpolicy: egress to UDP port 53 is not allowed",
		},
		{
			file: "networkpolicy.yml", old: "port: 5353", new: "port: 54",
			want: "networkpolicy: egress to UDP port 5353 is not allowed",
		},

		{
			file: "configmap.yml", old: "prober: tcp", new: "prober: udp",
			want: "configmap: shaker.yml:15: module tcp_connect: prober is udp",
		},
		{
			file: "configmap.yml", old: "    modules:\n      tcp_connect:", new: "    modules:\n      tcp:",
			want: "probe: module tcp_connect is unknown",
		},
		{
			file: "configmap.yml", old: "  shaker.yml: |", new: "  config.yml: |",
			want: "is not mounted from the ConfigMap",
		},
		{
			file: "deployment.yml", old: "mountPath: /etc/shaker_exporter", new: "mountPath: /etc/shaker",
			want: "is not mounted from the ConfigMap",
		},

		{
			file: "horizontalpodautoscaler.yml", old: "kind: Deployment", new: "kind: StatefulSet",
			want: "horizontalpodautoscaler: scales",
		},
		{
			file: "poddisruptionbudget.yml", old: "maxUnavailable: 1", new: "maxUnavailable: 2",
			want: "poddisruptionbudget: 2 of",
		},
		{
			file: "deployment.yml", old: "spec:\n  #", new: "spec:\n  replicas: 2\n  #",
			want: "deployment: replicas override the autoscaler",
		},

		{
			file: "servicemonitor.yml", old: "jobLabel: app.kubernetes.io/name", new: "jobLabel: app",
			want: `servicemonitor: the job is ""`,
		},
		{file: "probe.yml", old: "jobName: shaker", new: "jobName: probes", want: `probe: the job is "probes"`},
		{file: "probe.yml", old: "path: /probe", new: "path: /metrics", want: `probe: the path is "/metrics"`},
		{
			file: "probe.yml", old: "scrapeTimeout: 10s", new: "scrapeTimeout: 20s",
			want: "probe: the timeout 20s is longer",
		},
		{
			file: "probe.yml", old: "192.0.2.1:443", new: "192.0.2.1",
			want: "probe: target 192.0.2.1: address 192.0.2.1: missing port",
		},
	} {
		files := manifests(t)
		if !strings.Contains(files[c.file], c.old) {
			t.Errorf("%s does not contain %q, which the test wants to replace", c.file, c.old)
			continue
		}
		files[c.file] = strings.Replace(files[c.file], c.old, c.new, 1)
		got := manifestProblems(files)
		if !slices.ContainsFunc(got, func(problem string) bool { return strings.Contains(problem, c.want) }) {
			t.Errorf("%s with %q: the problems are %q, want one with %q", c.file, c.new, got, c.want)
		}
	}
}

// The exporter accepts the arguments of the container. The control is a misspelled argument.
func TestKubernetesArguments(t *testing.T) {
	golang := lab.Program(t, "go", "golang-go")
	o, problems := decode(manifests(t))
	if problems != nil {
		t.Fatalf("the manifests have problems: %q", problems)
	}
	file := lab.Write(t, t.TempDir(), "shaker.yml", "modules: {tcp_connect: {prober: tcp}}")
	args := []string{"run", "..", "--config.check"}
	for _, arg := range o.container().Args {
		args = append(args, regexp.MustCompile(`^(--config\.file=).*`).ReplaceAllString(arg, "${1}"+file))
	}
	if out, err := exec.Command(golang, args...).CombinedOutput(); err != nil {
		t.Errorf("go %s: %v, want no error\n%s", strings.Join(args, " "), err, out)
	}
	args = append(args, "--probe.max-inflight=1")
	if out, err := exec.Command(golang, args...).CombinedOutput(); err == nil {
		t.Errorf("go %s succeeds, want an error\n%s", strings.Join(args, " "), out)
	}
}

// The command in kustomization.yml makes objects from the rules that the Prometheus Operator accepts, with all rules.
func TestKubernetesRules(t *testing.T) {
	comment := regexp.MustCompile(`(?s)\n#   (for rules in .*?done) \| kubectl apply`).
		FindStringSubmatch(manifests(t)[kustomizationFile])
	if comment == nil {
		t.Fatalf("%s has no command for the rules", kustomizationFile)
	}
	command := strings.ReplaceAll(comment[1], "\n#", "\n")
	// The command lists the files that most users need. Here it gets all files.
	files := lab.Files(t, "rules/*.yml")
	var names []string
	for _, file := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(file), ".yml"))
	}
	list := regexp.MustCompile(`for rules in (.*?); do`).FindStringSubmatch(command)
	for _, name := range strings.Fields(list[1]) {
		if !slices.Contains(names, name) {
			t.Errorf("the command uses rules/%s.yml, which does not exist", name)
		}
	}

	shell := lab.Program(t, "sh", "dash")
	lab.Program(t, "sed", "sed")
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
			if err := decodeStrictly(text, &rule); err != nil {
				return nil, err
			}
			if errs := validation.NameIsDNSSubdomain(rule.Name, false); errs != nil || rule.Kind != "PrometheusRule" {
				return nil, fmt.Errorf("%s %q is not a PrometheusRule with a valid name: %s",
					rule.Kind, rule.Name, errs)
			}
			rules[rule.Name] = &rule
		}
		return rules, nil
	}
	all := strings.Replace(command, list[1], strings.Join(names, " "), 1)
	rules, err := apply(all)
	if err != nil {
		t.Fatalf("the objects that the command makes are not accepted: %v", err)
	}
	for i, file := range files {
		var want monitoringv1.PrometheusRuleSpec
		if err := decodeStrictly(lab.Read(t, file), &want); err != nil {
			t.Errorf("decode %s: %v", file, err)
			continue
		}
		got := rules["shaker-"+names[i]]
		if got == nil || len(want.Groups) == 0 || !reflect.DeepEqual(got.Spec, want) {
			t.Errorf("the command makes of %s the object\n%v\nwant the rules\n%v", file, got, want)
		}
	}
	// The controls: a field that the Operator does not know, and rules that are not below spec.
	for _, broken := range []string{
		strings.Replace(all, "s/^/  /", "s/^/  /; s/alert:/alarm:/", 1),
		strings.Replace(all, "s/^/  /", "", 1),
	} {
		if broken == all {
			t.Fatalf("the command has no s/^/  /, which the test wants to replace: %s", all)
		}
		if _, err := apply(broken); err == nil {
			t.Errorf("the objects that this command makes are accepted, want an error: %s", broken)
		}
	}
}
