package main

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// block returns the first block of the README of that language that has a text in it.
func block(t *testing.T, language, with string) string {
	t.Helper()
	for _, found := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(readme(t), -1) {
		if strings.Contains(found[1], with) {
			return found[1]
		}
	}
	t.Fatalf("README.md has no %s block with %q", language, with)
	return ""
}

// README's transcript of a wrong configuration is what the exporter says of it.
func TestREADMEConfigCheck(t *testing.T) {
	lines := strings.SplitAfter(block(t, "console", "$ cat wrong.yml"), "\n")
	text := strings.Join(lines[1:], "")
	wrong, rest, _ := strings.Cut(text, "$ shaker_exporter --config.check --config.file=wrong.yml\n")
	cmd := exporter(t, "--config.check", "--config.file=wrong.yml")
	cmd.Dir = t.TempDir()
	writeFile(t, cmd.Dir, "wrong.yml", wrong)
	if out, _ := cmd.CombinedOutput(); string(out) != rest {
		t.Errorf("README.md says\n%swant\n%s", rest, out)
	}
}

// README's example of a configuration is one, and its transcript of a denied target true.
func TestREADMEPolicy(t *testing.T) {
	lab.Program(t, "curl", "curl")
	startExporter(t, "--config.file="+writeFile(t, t.TempDir(), "shaker.yml", block(t, "yaml", "firewall_holds")))
	transcript := block(t, "console", "169.254.169.254")
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
	lab.NewChain(t).Run(2, nft, "table inet lab { chain forward { type filter hook forward priority 0; tcp flags syn / syn,ack drop; }; }")
	transcript(t, "$ shaker_exporter probe --path")
}

// transcript runs README's command that begins like this.
func transcript(t *testing.T, with string) {
	t.Helper()
	command, want, _ := strings.Cut(strings.TrimPrefix(block(t, "console", with), "$ shaker_exporter "), "\n")
	out, _ := exporter(t, strings.Fields(command)...).Output()
	if got := steady(string(out)); got != steady(want) {
		t.Errorf("README.md says\n%swant\n%s", want, out)
	}
}
