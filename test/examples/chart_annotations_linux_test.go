package examples

import (
	"strings"
	"testing"

	monitoringv1alpha1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// discoveredObjects are what Prometheus discovers of a Kubernetes cluster, by the key of scrapeConfigs. The prefix of
// the labels is __meta_kubernetes_.
var discoveredObjects = map[string][]map[string]string{
	"services": {
		{"": "web.shop.svc:443", "service_annotation_shaker_probe": "true", "service_port_protocol": "TCP"},
		{"": "web.shop.svc:53", "service_annotation_shaker_probe": "true", "service_port_protocol": "UDP"},
		{
			"": "db.shop.svc:5432", "service_annotation_shaker_probe": "true", "service_port_protocol": "TCP",
			"service_annotation_shaker_port": "5432", "service_annotation_shaker_module": "tcp_watch",
			"namespace": "shop", "service_name": "db",
		},
		{
			"": "db.shop.svc:9187", "service_annotation_shaker_probe": "true", "service_port_protocol": "TCP",
			"service_annotation_shaker_port": "5432",
		},
		{
			"": "headless.shop.svc:80", "service_annotation_shaker_probe": "true", "service_port_protocol": "TCP",
			"service_cluster_ip": "None",
		},
		{"": "off.shop.svc:80", "service_annotation_shaker_probe": "false", "service_port_protocol": "TCP"},
		{"": "plain.shop.svc:80", "service_port_protocol": "TCP"},
	},
	"ingresses": {
		{
			"": "shop.example.com", "ingress_annotation_shaker_probe": "true", "ingress_scheme": "https",
			"ingress_annotation_shaker_module": "tcp_watch", "namespace": "shop", "ingress_name": "shop",
		},
		{"": "plain.example.com", "ingress_annotation_shaker_probe": "true", "ingress_scheme": "http"},
		{"": "*.example.com", "ingress_annotation_shaker_probe": "true", "ingress_scheme": "https"},
		{"": "no.example.com", "ingress_scheme": "https"},
	},
	"pods": {
		{
			"": "10.1.0.1:8080", "pod_annotation_shaker_probe": "true", "pod_phase": "Running",
			"pod_container_port_protocol": "TCP", "pod_container_port_number": "8080",
			"namespace": "shop", "pod_name": "web-0", "pod_node_name": "node1",
		},
		{
			"": "[2001:db8::7]:5432", "pod_annotation_shaker_probe": "true", "pod_phase": "Running",
			"pod_container_port_protocol": "TCP", "pod_container_port_number": "5432",
			"pod_annotation_shaker_port": "5432", "pod_annotation_shaker_module": "tcp_watch",
		},
		{
			"": "[2001:db8::7]:9187", "pod_annotation_shaker_probe": "true", "pod_phase": "Running",
			"pod_container_port_protocol": "TCP", "pod_container_port_number": "9187",
			"pod_annotation_shaker_port": "5432",
		},
		{
			"": "10.1.0.2:1111", "pod_annotation_shaker_probe": "true", "pod_phase": "Running",
			"pod_container_port_protocol": "TCP", "pod_container_port_number": "1111", "pod_container_init": "true",
		},
		{
			"": "10.1.0.3:80", "pod_annotation_shaker_probe": "true", "pod_phase": "Succeeded",
			"pod_container_port_protocol": "TCP", "pod_container_port_number": "80",
		},
		{"": "10.1.0.4", "pod_annotation_shaker_probe": "true", "pod_phase": "Running"},
		{
			"": "10.1.0.5:80", "pod_phase": "Running", "pod_container_port_protocol": "TCP",
			"pod_container_port_number": "80",
		},
	},
}

// The values for annotated objects of docs/kubernetes.md make the targets, with the labels, of the jobs of
// examples/discovery/kubernetes.yml. The number of the targets is the control.
func TestChartAnnotations(t *testing.T) {
	lab.SkipWithRace(t)
	var file struct {
		Jobs []struct {
			Name    string           `json:"job_name"`
			Relabel []map[string]any `json:"relabel_configs"`
		} `json:"scrape_configs"`
	}
	if err := yaml.Unmarshal([]byte(lab.Read(t, "discovery/kubernetes.yml")), &file); err != nil {
		t.Fatal(err)
	}
	r := mustRender(t, packageChart(t, "v1.2.3"), "shaker-exporter", pageSnippet(t, "yaml", "# annotations.yml"))
	if len(file.Jobs) != len(discoveredObjects) {
		t.Errorf("kubernetes.yml has %d jobs, want those of %d roles", len(file.Jobs), len(discoveredObjects))
	}
	for _, job := range file.Jobs {
		key := strings.TrimPrefix(job.Name, "shaker_")
		config, ok := r["ScrapeConfig/shaker-exporter-"+key].(*monitoringv1alpha1.ScrapeConfig)
		if !ok {
			t.Errorf("%s has no scrapeConfigs.%s, want one for the job %s", kubernetesPage, key, job.Name)
			continue
		}
		spec := config.Spec
		if sd := spec.KubernetesSDConfigs; len(sd) != 1 ||
			!strings.HasPrefix(key, strings.ToLower(string(sd[0].Role))) {
			t.Errorf("scrapeConfigs.%s discovers %+v, want the role of the %s", key, sd, key)
		}
		var static []map[string]any
		for _, object := range discoveredObjects[key] {
			labels := make(map[string]string)
			for name, value := range object {
				if name != "" {
					labels["__meta_kubernetes_"+name] = value
				}
			}
			static = append(static, map[string]any{"targets": []string{object[""]}, "labels": labels})
		}
		got := discovered(t, spec, static, relabelSteps(spec.RelabelConfigs))
		want := discovered(t, spec, static, job.Relabel)
		if got != want {
			t.Errorf("scrapeConfigs.%s makes the targets\n%s\nwant those of the job %s\n%s", key, got, job.Name, want)
		}
		if n := strings.Count(got, "\n") + 1; n != 2 || !strings.Contains(got, "__param_module:tcp_watch") {
			t.Errorf("scrapeConfigs.%s makes %d targets, want 2, one with the module tcp_watch\n%s", key, n, got)
		}
	}
}
