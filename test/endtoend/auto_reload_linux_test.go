package endtoend

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// With --config.enable-auto-reload, a changed file is reloaded without a request. Without the flag it is not.
func TestAutoReload(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "shaker.yml")
	write := func(text string) {
		// Replace the file as a whole: the exporter may be reading it.
		if err := os.Rename(lab.Write(t, dir, "new.yml", text), file); err != nil {
			t.Fatal(err)
		}
	}
	write(goodConfig)
	control := process.Start(t, exporter.Command(t, "--config.file="+file, "--web.listen-address=:10116"))
	control.Listening(10116)
	p := exporter.Start(t, "--config.file="+file, "--config.enable-auto-reload", "--config.auto-reload-interval=1")
	write(otherConfig)
	lab.Eventually(t, "the exporter reloads the changed file", func() bool { return activeModules(t) == "second" })
	write(badConfig)
	lab.Eventually(t, "the metrics report that the file is invalid", func() bool {
		return exporter.Metrics(t)["shaker_exporter_config_last_reload_successful"] == "0"
	})
	write(goodConfig)
	lab.Eventually(t, "the exporter reloads the repaired file", func() bool { return activeModules(t) == "first" })
	if n := strings.Count(p.Output(), "Configuration rejected"); n != 1 {
		t.Errorf("the exporter has logged %d times that the file is invalid, want once", n)
	}
	if log := control.Output(); strings.Contains(log, "Configuration reloaded") {
		t.Errorf("without --config.enable-auto-reload the exporter has reloaded the file:\n%s", log)
	}
}
