package alerts

import (
	"maps"
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

// scalePageArguments returns the arguments with which docs/scale.md starts a program.
func scalePageArguments(t *testing.T, program string) (args []string) {
	t.Helper()
	const page = "../docs/scale.md"
	command := regexp.MustCompile(`(?m)^\$ ` + program + `((?:.*\\\n)*.*)$`).FindStringSubmatch(lab.Read(t, page))
	if command == nil {
		t.Fatalf("%s has no command that starts %s", page, program)
	}
	return strings.Fields(strings.ReplaceAll(command[1], "\\\n", " "))
}

// startVictoriaMetrics starts VictoriaMetrics, vmagent and vmalert with the commands of docs/scale.md and the files in
// a directory, which are so many times as fast as the examples. It returns VictoriaMetrics, whose API is Prometheus'.
func startVictoriaMetrics(t *testing.T, dir string, times int) *process.Prometheus {
	t.Helper()
	lab.Need(t)
	command := func(name string, more ...string) *exec.Cmd {
		t.Helper()
		var args []string
		for _, arg := range scalePageArguments(t, name) {
			switch flag, value, _ := strings.Cut(arg, "="); {
			case flag == "-storageDataPath":
				arg = flag + "=" + t.TempDir()
			case flag == "-evaluationInterval":
				arg = lab.Faster(arg, times)
			case value == "examples/rules/slo.yml":
				continue // writeFastExample has no objectives either
			default:
				arg = strings.Replace(arg, "=examples/", "="+dir+"/", 1)
			}
			args = append(args, arg)
		}
		return exec.Command(lab.GoProgram(t, name), append(args, more...)...)
	}
	// The results of queries contain data after a second instead of 30 s.
	storage := process.ServePrometheus(t,
		command("victoria-metrics", "-search.latencyOffset=1s", "-memory.allowedBytes=256MB"), "localhost:8428")
	process.Start(t, command("vmagent",
		"-remoteWrite.tmpDataPath="+t.TempDir(), "-remoteWrite.flushInterval=100ms")).Listening(8429)
	process.Start(t, command("vmalert", "-rule.evalDelay=1s", "-remoteWrite.flushInterval=100ms")).Listening(8880)
	return storage
}

// vmagent scrapes with the configuration of the example, and vmalert evaluates the rules as Prometheus does: the
// reasons of the alerts are right, and they keep firing when the exporter is stopped.
func TestVictoriaMetrics(t *testing.T) {
	if lab.Race {
		t.Skip("runs the exporter as TestAlerts does; the race detector does not affect the other programs")
	}
	if lab.Apart(t) {
		return
	}
	for _, program := range []string{"victoria-metrics", "vmagent", "vmalert"} {
		lab.GoProgram(t, program)
	}
	const (
		times     = 15 // the timestamps of vmalert are whole seconds
		refused   = "203.0.113.1:22"
		forbidden = "203.0.113.2:23"
		closedJob = `
  - job_name: closed
    metrics_path: /probe
    params: {module: [closed]}
    static_configs: [{targets: ["` + forbidden + `"]}]
    relabel_configs:
      - {source_labels: [__address__], target_label: __param_target}
      - {source_labels: [__param_target], target_label: instance}
      - {target_label: __address__, replacement: "localhost:10115"}
`
		modules = `modules:
  tcp_connect: {prober: tcp, tcp: {path: on_failure}}
  closed: {prober: tcp, tcp: {valid_results: [refused]}}
`
	)
	cutOff := []string{"192.0.2.1:443", "192.0.2.2:443", "192.0.2.3:443"}
	want := map[string]string{ // the reason of each alert
		"TargetDown " + refused:          "refused (ECONNREFUSED)",
		"ForbiddenPortOpen " + forbidden: "",
	}
	for _, target := range cutOff {
		want["TargetCutOff "+target+" 198.51.100.1"] =
			"timeout (ETIMEDOUT), the last hop that answers is 1, 198.51.100.1"
	}

	pager := newPager(t, times, "group_interval: 20s", "group_interval: 1s")
	network := simnet.NewNetwork(t)
	repair := func() {
		network.At(refused, simnet.SYNACK())
		network.At(forbidden, simnet.RST())
		for _, target := range cutOff {
			network.At(target, simnet.SYNACK()).Behind("198.51.100.1", "198.51.100.2")
		}
	}
	repair()
	config := lab.Write(t, t.TempDir(), "shaker.yml", modules)
	start := func() *process.Process {
		return exporter.StartOn(t, exporter.Port, "--config.file="+config, "--timeout-offset=0.1")
	}
	shaker := start()
	dir := writeFastExample(t, times, append(cutOff, refused)...)
	lab.Write(t, dir, "prometheus.yml", lab.Read(t, filepath.Join(dir, "prometheus.yml"))+closedJob)
	storage := startVictoriaMetrics(t, dir, times)
	lab.Eventually(t, "all targets give the valid results", func() bool {
		return len(storage.Query("probe_success == 1")) == len(want)
	})
	pager.settle()
	pager.forget()

	network.At(refused, simnet.RST())
	network.At(forbidden, simnet.SYNACK())
	for _, target := range cutOff {
		network.At(target).Behind("198.51.100.1", "") // the second router and the target do not answer
	}
	for name, reason := range want {
		var annotations map[string]string
		lab.Eventually(t, "there is a page for "+name, func() (ok bool) {
			annotations, ok = pager.notified("/page", "firing", name)
			return ok
		})
		if got := annotations["reason"]; got != reason {
			t.Errorf("%s: annotation reason = %q, want %q", name, got, reason)
		}
	}
	// A new series takes some seconds to be in the results of queries.
	lab.Eventually(t, "vmalert can see its firing alerts", func() bool {
		unseen := maps.Clone(want)
		for _, sample := range storage.Query(`ALERTS{alertstate="firing"}`) {
			delete(unseen, alert{Labels: sample.Labels}.String())
		}
		return len(unseen) == 0
	})

	shaker.Stop()
	lab.Eventually(t, "there is a page for ExporterDown", func() bool {
		_, ok := pager.notified("/page", "firing", "ExporterDown localhost:10115")
		return ok
	})
	for name := range want {
		fields := strings.Fields(name)
		if state := pager.states(fields[0])[fields[1]]; state != "active" {
			t.Errorf("%s is %q in Alertmanager after the exporter was stopped, want active", name, state)
		}
		if _, ok := pager.notified("/page", "resolved", name); ok {
			t.Errorf("%s was reported as resolved after the exporter was stopped, want that it keeps firing", name)
		}
	}

	repair()
	start()
	for name := range want {
		lab.Eventually(t, name+" is reported as resolved", func() bool {
			_, ok := pager.notified("/page", "resolved", name)
			return ok
		})
	}
}

// vmalert accepts all rules. vmagent accepts prometheus.yml, and rejects it without the flag that docs/scale.md
// explains.
func TestVictoriaMetricsFiles(t *testing.T) {
	vmalert, vmagent := lab.GoProgram(t, "vmalert"), lab.GoProgram(t, "vmagent")
	args := []string{"-dryRun"}
	for _, file := range lab.Files(t, "rules/*.yml") {
		args = append(args, "-rule="+file)
	}
	if out, err := exec.Command(vmalert, args...).CombinedOutput(); err != nil {
		t.Errorf("vmalert %s: %v, want no error\n%s", strings.Join(args, " "), err, out)
	}
	strict := []string{"-dryRun", "-promscrape.config=prometheus.yml"}
	if out, err := exec.Command(vmagent, strict...).CombinedOutput(); err == nil {
		t.Errorf("vmagent %s succeeds, want an error\n%s", strings.Join(strict, " "), out)
	}
	const lenient = "-promscrape.config.strictParse=false"
	if !slices.Contains(scalePageArguments(t, "vmagent"), lenient) {
		t.Errorf("docs/scale.md starts vmagent without %s", lenient)
	}
	if out, err := exec.Command(vmagent, append(strict, lenient)...).CombinedOutput(); err != nil {
		t.Errorf("vmagent %s %s: %v, want no error\n%s", strings.Join(strict, " "), lenient, err, out)
	}
}
