package examples

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
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
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

const chartDirectory = "../charts/shaker-exporter"

// packageChart packages the chart as `make chart` does, with a version, and returns the file.
func packageChart(t *testing.T, version string) string {
	t.Helper()
	shell := lab.Program(t, "sh", "dash")
	for _, name := range []string{"tar", "gzip", "sed", "grep"} {
		lab.Program(t, name, name)
	}
	dir := t.TempDir()
	cmd := exec.Command(shell, "scripts/chart.sh")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "OUT="+dir, "VERSION="+version, "SOURCE_DATE_EPOCH=1700000000")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("scripts/chart.sh: %v\n%s", err, out)
	}
	return filepath.Join(dir, strings.TrimSpace(string(out)))
}

// helm runs Helm, with directories of its own.
func helm(t *testing.T, args ...string) (output string, err error) {
	t.Helper()
	cmd := exec.Command(lab.GoProgram(t, "helm"), args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("helm %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), err
}

// chartKinds makes an empty object of each kind that the chart has.
var chartKinds = map[string]func() metav1.Object{
	"apps/v1/DaemonSet":  func() metav1.Object { return new(appsv1.DaemonSet) },
	"apps/v1/Deployment": func() metav1.Object { return new(appsv1.Deployment) },
	"autoscaling/v2/HorizontalPodAutoscaler": func() metav1.Object {
		return new(autoscalingv2.HorizontalPodAutoscaler)
	},
	"monitoring.coreos.com/v1/Probe": func() metav1.Object { return new(monitoringv1.Probe) },
	"monitoring.coreos.com/v1/PrometheusRule": func() metav1.Object {
		return new(monitoringv1.PrometheusRule)
	},
	"monitoring.coreos.com/v1/ServiceMonitor": func() metav1.Object { return new(monitoringv1.ServiceMonitor) },
	"monitoring.coreos.com/v1alpha1/ScrapeConfig": func() metav1.Object {
		return new(monitoringv1alpha1.ScrapeConfig)
	},
	"networking.k8s.io/v1/NetworkPolicy": func() metav1.Object { return new(networkingv1.NetworkPolicy) },
	"policy/v1/PodDisruptionBudget":      func() metav1.Object { return new(policyv1.PodDisruptionBudget) },
	"v1/ConfigMap":                       func() metav1.Object { return new(corev1.ConfigMap) },
	"v1/Service":                         func() metav1.Object { return new(corev1.Service) },
	"v1/ServiceAccount":                  func() metav1.Object { return new(corev1.ServiceAccount) },
}

// A release is the objects that Helm renders, by kind and name, such as Service/shaker-exporter.
type release map[string]metav1.Object

// parseRelease decodes the objects as Kubernetes does, and checks their names and labels.
func parseRelease(text string) (release, error) {
	objects := make(release)
	var problems []error
	for _, document := range regexp.MustCompile(`(?m)^---$`).Split(text, -1) {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			return nil, fmt.Errorf("%w in\n%s", err, document)
		}
		if kind.Kind == "" {
			continue // only comments
		}
		empty := chartKinds[kind.APIVersion+"/"+kind.Kind]
		if empty == nil {
			problems = append(problems, fmt.Errorf("%s of %s is unknown", kind.Kind, kind.APIVersion))
			continue
		}
		object := empty()
		if err := decodeStrictly(document, object); err != nil {
			problems = append(problems, fmt.Errorf("%w in\n%s", err, document))
			continue
		}
		name := kind.Kind + "/" + object.GetName()
		if objects[name] != nil {
			problems = append(problems, fmt.Errorf("two objects are %s", name))
		}
		objects[name] = object
		// The names of Services have the strictest syntax.
		for _, err := range validation.ValidateObjectMetaAccessor(object, false,
			validation.NameIsDNS1035Label, field.NewPath("metadata")) {
			problems = append(problems, fmt.Errorf("metadata of %s: %w", name, err))
		}
	}
	return objects, errors.Join(problems...)
}

// render renders the chart with values, which are YAML.
func render(t *testing.T, chart, name, values string, args ...string) (release, error) {
	t.Helper()
	file := lab.Write(t, t.TempDir(), "values.yaml", values)
	text, err := helm(t, append([]string{
		"template", name, chart, "--namespace=monitoring", "--values=" + file,
	}, args...)...)
	if err != nil {
		return nil, err
	}
	return parseRelease(text)
}

// mustRender renders the chart with values and an image.
func mustRender(t *testing.T, chart, name, values string) release {
	t.Helper()
	r, err := render(t, chart, name, values, "--set=image.repository=registry.example.com/shaker_exporter")
	if err != nil {
		t.Fatalf("the chart with the values\n%s\nin release %s: %v", values, name, err)
	}
	return r
}

// only returns the object of a type, if there is exactly one.
func only[T metav1.Object](t *testing.T, r release) T {
	t.Helper()
	var found []T
	for _, object := range r {
		if o, ok := object.(T); ok {
			found = append(found, o)
		}
	}
	if len(found) != 1 {
		t.Fatalf("the release has %d objects of the type %T, want one: %s",
			len(found), *new(T), slices.Sorted(maps.Keys(r)))
	}
	return found[0]
}

// podTemplate returns the pods of the Deployment or DaemonSet.
func (r release) podTemplate(t *testing.T) corev1.PodTemplateSpec {
	t.Helper()
	for _, object := range r {
		switch o := object.(type) {
		case *appsv1.Deployment:
			return o.Spec.Template
		case *appsv1.DaemonSet:
			return o.Spec.Template
		}
	}
	t.Fatalf("the release has no pods: %s", slices.Sorted(maps.Keys(r)))
	return corev1.PodTemplateSpec{}
}

// selectors returns the selectors of pods, or of the Service with the labels of the pods, by the object.
func (r release) selectors() map[string]*metav1.LabelSelector {
	selectors := make(map[string]*metav1.LabelSelector)
	for name, object := range r {
		switch o := object.(type) {
		case *appsv1.Deployment:
			selectors[name] = o.Spec.Selector
			for _, constraint := range o.Spec.Template.Spec.TopologySpreadConstraints {
				if constraint.LabelSelector != nil {
					selectors[name+" spread"] = constraint.LabelSelector
				}
			}
		case *appsv1.DaemonSet:
			selectors[name] = o.Spec.Selector
		case *corev1.Service:
			selectors[name] = &metav1.LabelSelector{MatchLabels: o.Spec.Selector}
		case *networkingv1.NetworkPolicy:
			selectors[name] = &o.Spec.PodSelector
		case *policyv1.PodDisruptionBudget:
			selectors[name] = o.Spec.Selector
		case *monitoringv1.ServiceMonitor:
			selectors[name] = &o.Spec.Selector
		}
	}
	return selectors
}

// selects reports whether a selector matches labels.
func selects(t *testing.T, selector *metav1.LabelSelector, set map[string]string) bool {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatalf("the selector %v: %v", selector, err)
	}
	return s.Matches(labels.Set(set))
}

// checkReferences checks that the objects of a release refer to each other.
func checkReferences(t *testing.T, r release) {
	t.Helper()
	template, service := r.podTemplate(t), only[*corev1.Service](t, r)
	for name, selector := range r.selectors() {
		if !selects(t, selector, template.Labels) || !selects(t, selector, service.Labels) {
			t.Errorf("the selector %v of %s does not match the labels %v and %v",
				selector, name, template.Labels, service.Labels)
		}
	}
	address := fmt.Sprintf("%s.monitoring.svc:%d", service.Name, service.Spec.Ports[0].Port)
	for name, object := range r {
		switch o := object.(type) {
		case *monitoringv1.Probe:
			if o.Spec.ProberSpec.URL != address || o.Spec.Targets.Validate() != nil {
				t.Errorf("%s has the prober %s and the targets %+v, want the prober %s and one kind of targets",
					name, o.Spec.ProberSpec.URL, o.Spec.Targets, address)
			}
		case *monitoringv1alpha1.ScrapeConfig:
			if o.Spec.Params["target"] != nil { // by each pod
				sd := o.Spec.KubernetesSDConfigs[0]
				s, err := labels.Parse(*sd.Selectors[0].Label)
				if err != nil || s.Empty() || !s.Matches(labels.Set(template.Labels)) ||
					!slices.Equal(sd.Namespaces.Names, []string{"monitoring"}) {
					t.Errorf("%s discovers %+v, %v, want the pods with the labels %v", name, sd, err, template.Labels)
				}
				continue
			}
			steps := o.Spec.RelabelConfigs
			if last := steps[len(steps)-1]; *last.Replacement != address {
				t.Errorf("%s has the prober %s, want %s", name, *last.Replacement, address)
			}
		case *autoscalingv2.HorizontalPodAutoscaler:
			if ref := o.Spec.ScaleTargetRef; r[ref.Kind+"/"+ref.Name] == nil {
				t.Errorf("%s scales %+v, which is not in the release", name, ref)
			}
		}
	}
	for _, volume := range template.Spec.Volumes {
		if m := volume.ConfigMap; m != nil && r["ConfigMap/"+m.Name] == nil && m.Name != "mine" {
			t.Errorf("the volume %s is the ConfigMap %s, which is not in the release", volume.Name, m.Name)
		}
	}
	if account := template.Spec.ServiceAccountName; r["ServiceAccount/"+account] == nil &&
		account != "mine" && account != "default" {
		t.Errorf("the account of the pods is %s, which is not in the release", account)
	}
}
