package examples

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

const rawDirectory = "kubernetes-raw/"

// An overlay is the content of a kustomization.yml that changes the objects of another directory, with the fields that
// it may have here.
type overlay struct {
	metav1.TypeMeta
	Resources []string `json:"resources"`
	Patches   []struct {
		Path string `json:"path"`
	} `json:"patches"`
}

// A deploymentPatch is a patch of the Deployment, with the fields that it may have here.
type deploymentPatch struct {
	metav1.TypeMeta
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		Template struct {
			Spec struct {
				SecurityContext corev1.PodSecurityContext `json:"securityContext"`
				Containers      []struct {
					Name            string                 `json:"name"`
					Args            []string               `json:"args"`
					SecurityContext corev1.SecurityContext `json:"securityContext"`
				} `json:"containers"`
			} `json:"spec"`
		} `json:"template"`
	} `json:"spec"`
}

// patched returns the Deployment with a patch. In a patch, a field replaces the field of that name, except those that
// are objects, and containers have the same name.
func patched(plain appsv1.Deployment, patch string) (d appsv1.Deployment, err error) {
	var p deploymentPatch
	if err := decodeStrictly(patch, &p); err != nil {
		return d, err
	}
	d = *plain.DeepCopy()
	pod := &d.Spec.Template.Spec
	if p.APIVersion != d.APIVersion || p.Kind != d.Kind || p.Metadata.Name != d.Name ||
		len(p.Spec.Template.Spec.Containers) != 1 || p.Spec.Template.Spec.Containers[0].Name != pod.Containers[0].Name {
		return d, errors.New("the patch is not for the Deployment and its container")
	}
	container := p.Spec.Template.Spec.Containers[0]
	pod.Containers[0].Args = container.Args
	for _, change := range []struct{ from, into any }{
		{from: p.Spec.Template.Spec.SecurityContext, into: pod.SecurityContext},
		{from: container.SecurityContext, into: pod.Containers[0].SecurityContext},
	} {
		text, err := json.Marshal(change.from)
		if err == nil {
			err = json.Unmarshal(text, change.into) // keeps the other fields
		}
		if err != nil {
			return d, err
		}
	}
	return d, nil
}

// rawProblems returns what is wrong with the patch: a difference from the Deployment that sending SYNs without sockets
// does not need.
func rawProblems(deployment, patch string) (problems []string) {
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	var plain appsv1.Deployment
	if err := decodeStrictly(deployment, &plain); err != nil {
		return []string{err.Error()}
	}
	raw, err := patched(plain, patch)
	if err != nil {
		return []string{err.Error()}
	}
	template := raw.Spec.Template
	reasons := forbidden(template)
	want := []string{"runAsNonRoot != true", "runAsUser=0", "unrestricted capabilities"}
	if !slices.Equal(reasons, want) {
		complain("forbidden by the level restricted: %q, want %q", reasons, want)
	}
	container, before := template.Spec.Containers[0], plain.Spec.Template.Spec.Containers[0]
	if c := container.SecurityContext.Capabilities; !slices.Equal(c.Add, []corev1.Capability{"NET_RAW"}) ||
		!slices.Equal(c.Drop, []corev1.Capability{"ALL"}) {
		complain("capabilities are %+v, want only NET_RAW", c)
	}
	if want := append(slices.Clone(before.Args), "--probe.engine=raw"); !slices.Equal(container.Args, want) {
		complain("arguments are %q, want %q", container.Args, want)
	}
	return problems
}

// The overlay gives the pods one capability, root to use it, and one argument, and changes nothing else. The controls
// are mistakes in the patch.
func TestKubernetesRaw(t *testing.T) {
	var o overlay
	if err := decodeStrictly(lab.Read(t, rawDirectory+kustomizationFile), &o); err != nil {
		t.Fatal(err)
	}
	if o.APIVersion != "kustomize.config.k8s.io/v1beta1" || o.Kind != "Kustomization" ||
		!slices.Equal(o.Resources, []string{"../kubernetes"}) ||
		len(o.Patches) != 1 || o.Patches[0].Path != "deployment.yml" {
		t.Errorf("%s%s is %+v, want a patch of ../kubernetes", rawDirectory, kustomizationFile, o)
	}
	deployment, patch := lab.Read(t, "kubernetes/deployment.yml"), lab.Read(t, rawDirectory+"deployment.yml")
	for _, problem := range rawProblems(deployment, patch) {
		t.Errorf("%sdeployment.yml has a problem: %s", rawDirectory, problem)
	}
	controls := map[string][2]string{
		`unknown field "spec.template.spec.securityContext.runAsRoot"`: {"runAsNonRoot: false", "runAsRoot: true"},
		`unknown field "spec.template.spec.hostNetwork"`: {
			"      containers:", "      hostNetwork: true\n      containers:",
		},
		"arguments are":    {"            - --config.enable-auto-reload\n", ""},
		"capabilities are": {"[NET_RAW]", "[NET_RAW, NET_ADMIN]"},
		"forbidden by the level restricted": {
			"            capabilities:", "            privileged: true\n            capabilities:",
		},
		"the patch is not for the Deployment": {"- name: shaker-exporter", "- name: shaker"},
	}
	for _, want := range slices.Sorted(maps.Keys(controls)) {
		change := controls[want]
		got := rawProblems(deployment, lab.Replace(t, "the patch", patch, change[0], change[1]))
		if !slices.ContainsFunc(got, func(problem string) bool { return strings.Contains(problem, want) }) {
			t.Errorf("with %q, the problems are %q, want %q", change[1], got, want)
		}
	}
}
