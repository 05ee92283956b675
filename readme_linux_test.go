package main

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// README's transcript of a wrong configuration is what the exporter says of it.
func TestREADMEConfigCheck(t *testing.T) {
	lines := strings.SplitAfter(snippetWith(t, "README.md", "console", "$ cat wrong.yml"), "\n")
	text := strings.Join(lines[1:], "")
	wrong, rest, _ := strings.Cut(text, "$ shaker_exporter --config.check --config.file=wrong.yml\n")
	cmd := exporter(t, "--config.check", "--config.file=wrong.yml")
	cmd.Dir = t.TempDir()
	lab.Write(t, cmd.Dir, "wrong.yml", wrong)
	if out, _ := cmd.CombinedOutput(); string(out) != rest {
		t.Errorf("README.md says\n%swant\n%s", rest, out)
	}
}

// README's example of a configuration is one, and its transcript of a denied target true.
func TestREADMEPolicy(t *testing.T) {
	lab.Program(t, "curl", "curl")
	startExporter(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", snippetWith(t, "README.md", "yaml", "firewall_holds")))
	transcript := snippetWith(t, "README.md", "console", "169.254.169.254")
	command, want, _ := strings.Cut(strings.TrimPrefix(transcript, "$ "), "\n")
	if out, _ := exec.Command("sh", "-c", command).CombinedOutput(); string(out) != want {
		t.Errorf("README.md says\n%swant\n%s", want, out)
	}
}

// README's transcripts of the probe command have the form of what it prints.
func TestREADMEProbe(t *testing.T) {
	startExporter(t)
	transcript(t, "$ shaker_exporter probe --count")
}

func TestREADMEPath(t *testing.T) {
	nft := lab.Program(t, "nft", "nftables")
	kernel.NewChain(t).Run(2, nft, "table inet lab { chain forward { type filter hook forward priority 0; tcp flags syn / syn,ack drop; }; }")
	transcript(t, "$ shaker_exporter probe --path")
}

// transcript runs README's command that begins like this.
func transcript(t *testing.T, with string) {
	t.Helper()
	command, want, _ := strings.Cut(strings.TrimPrefix(snippetWith(t, "README.md", "console", with), "$ shaker_exporter "), "\n")
	out, _ := exporter(t, strings.Fields(command)...).Output()
	if got := steady(string(out)); got != steady(want) {
		t.Errorf("README.md says\n%swant\n%s", want, out)
	}
}
