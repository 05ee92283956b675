package documents

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

// The transcript of an invalid configuration is what the exporter prints about it.
func TestConfigurationCheck(t *testing.T) {
	lines := strings.SplitAfter(snippetWith(t, "docs/configuration.md", "console", "$ cat wrong.yml"), "\n")
	text := strings.Join(lines[1:], "")
	wrong, rest, _ := strings.Cut(text, "$ shaker_exporter --config.check --config.file=wrong.yml\n")
	cmd := exporter.Command(t, "--config.check", "--config.file=wrong.yml")
	cmd.Dir = t.TempDir()
	lab.Write(t, cmd.Dir, "wrong.yml", wrong)
	if out, _ := cmd.CombinedOutput(); string(out) != rest {
		t.Errorf("docs/configuration.md has\n%swant\n%s", rest, out)
	}
}

// The example of a configuration is valid, and the transcript of a denied target is what curl prints.
func TestConfigurationPolicy(t *testing.T) {
	lab.Program(t, "curl", "curl")
	exporter.Start(t, "--config.file="+lab.Write(t, t.TempDir(), "shaker.yml", snippetWith(t, "docs/configuration.md", "yaml", "firewall_holds")))
	transcript := snippetWith(t, "docs/configuration.md", "console", "169.254.169.254")
	command, want, _ := strings.Cut(strings.TrimPrefix(transcript, "$ "), "\n")
	if out, _ := exec.Command("sh", "-c", command).CombinedOutput(); string(out) != want {
		t.Errorf("docs/configuration.md has\n%swant\n%s", want, out)
	}
}

// The transcripts of the probe command have the form of what it prints.
func TestOperationProbe(t *testing.T) {
	exporter.Start(t)
	transcript(t, "docs/operation.md", "$ shaker_exporter probe --count")
}

func TestPathTranscript(t *testing.T) {
	nft := lab.Program(t, "nft", "nftables")
	kernel.NewChain(t).Run(2, nft, "table inet lab { chain forward { type filter hook forward priority 0; tcp flags syn / syn,ack drop; }; }")
	transcript(t, "docs/path.md", "$ shaker_exporter probe --path")
}

// transcript runs the command of a page that begins like this, and compares what it prints.
func transcript(t *testing.T, page, with string) {
	t.Helper()
	command, want, _ := strings.Cut(strings.TrimPrefix(snippetWith(t, page, "console", with), "$ shaker_exporter "), "\n")
	out, _ := exporter.Command(t, strings.Fields(command)...).Output()
	if got := exporter.Steady(string(out)); got != exporter.Steady(want) {
		t.Errorf("%s has\n%swant\n%s", page, want, out)
	}
}
