package examples

import (
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// An ingress is a rule of an Ingress as Prometheus discovers it.
type ingress struct{ scheme, host, path string }

// The relabelling in the comment of probe.yml makes a target of each Ingress that has one, after the steps of the
// Prometheus Operator. The control is a Prometheus with the steps of the Operator alone.
func TestKubernetesIngresses(t *testing.T) {
	lab.SkipWithRace(t)
	text := manifests(t)["probe.yml"]
	static := regexp.MustCompile(`(?s)\n    staticConfig:.*`)
	comment := regexp.MustCompile(`(?m)^    #(ingress:\n(?:    #.*\n)+)`).FindStringSubmatch(text)
	if comment == nil {
		t.Fatal("probe.yml has no comment with ingress:")
	}
	targets := "\n    " + strings.ReplaceAll(comment[1], "    #", "    ")
	var probe monitoringv1.Probe
	if err := decodeStrictly(static.ReplaceAllLiteralString(text, targets), &probe); err != nil {
		t.Fatalf("probe.yml with the comment as its targets: %v", err)
	}
	if err := probe.Spec.Targets.Validate(); err != nil || probe.Spec.Targets.Ingress == nil {
		t.Fatalf("the targets of probe.yml with the comment: %v, %+v, want Ingresses", err, probe.Spec.Targets)
	}

	ingresses := []ingress{
		{scheme: "https", host: "secure.example.com", path: "/"},
		{scheme: "https", host: "secure.example.com", path: "/path"},
		{scheme: "http", host: "plain.example.com", path: "/path/http://x"},
		{scheme: "http", host: "*", path: "/"},
		{scheme: "https", host: "*.example.com", path: "/"},
	}
	got := scrapedIngresses(t, 9090, probe, ingresses)
	want := map[string]string{
		"secure.example.com:443": "secure.example.com:443", "plain.example.com:80": "plain.example.com:80",
	}
	if !maps.Equal(got, want) {
		t.Errorf("the targets of %+v are, by instance, %v, want %v", ingresses, got, want)
	}
	probe.Spec.Targets.Ingress.RelabelConfigs = nil
	const wrong = "https://secure.example.com/path"
	if got := scrapedIngresses(t, 9091, probe, ingresses); got[wrong] != wrong {
		t.Errorf("without the relabelling, the targets of %+v are %v, want %s", ingresses, got, wrong)
	}
}

// scrapedIngresses starts a Prometheus with the job that the Operator makes of the Probe, and returns the parameter
// target of the requests for some Ingresses, by the label instance.
func scrapedIngresses(
	t *testing.T, port int, probe monitoringv1.Probe, ingresses []ingress,
) map[string]string {
	t.Helper()
	const scheme, path = "__meta_kubernetes_ingress_scheme", "__meta_kubernetes_ingress_path"
	type step = map[string]any
	steps := []step{
		{
			"source_labels": []string{scheme, "__address__", path},
			"regex":         "(.+);(.+);(.+)", "replacement": "${1}://${2}${3}", "target_label": "__param_target",
		},
		{"source_labels": []string{"__param_target"}, "target_label": "instance"},
		{"replacement": probe.Spec.ProberSpec.URL, "target_label": "__address__"},
	}
	steps = append(steps, relabelSteps(probe.Spec.Targets.Ingress.RelabelConfigs)...)
	var static []step
	for _, i := range ingresses {
		static = append(static, step{"targets": []string{i.host}, "labels": step{scheme: i.scheme, path: i.path}})
	}
	config, err := yaml.Marshal(step{"scrape_configs": []step{{
		"job_name": probe.Spec.JobName, "metrics_path": probe.Spec.ProberSpec.Path,
		"relabel_configs": steps, "static_configs": static,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	prometheus := process.StartPrometheus(t, port, lab.Write(t, t.TempDir(), "prometheus.yml", string(config)))
	var data struct {
		ActiveTargets []struct {
			Labels    map[string]string
			ScrapeURL string
		}
	}
	lab.Eventually(t, fmt.Sprintf("the Prometheus at port %d has targets", port), func() bool {
		prometheus.API("targets?state=active", &data)
		return len(data.ActiveTargets) > 0
	})
	targets := make(map[string]string)
	for _, target := range data.ActiveTargets {
		scraped, err := url.Parse(target.ScrapeURL)
		if err != nil {
			t.Fatal(err)
		}
		targets[target.Labels["instance"]] = scraped.Query().Get("target")
	}
	return targets
}

// relabelSteps returns the steps in the format of prometheus.yml.
func relabelSteps(configs []monitoringv1.RelabelConfig) (steps []map[string]any) {
	for _, r := range configs {
		s := map[string]any{"source_labels": r.SourceLabels}
		if r.Regex != "" {
			s["regex"] = r.Regex
		}
		if r.TargetLabel != "" {
			s["target_label"] = r.TargetLabel
		}
		if r.Replacement != nil {
			s["replacement"] = *r.Replacement
		}
		if r.Action != "" {
			s["action"] = r.Action
		}
		steps = append(steps, s)
	}
	return steps
}
