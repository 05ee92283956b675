package server

import (
	"bytes"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// With --config.enable-auto-reload, the exporter reloads its file when the content has changed, however that came
// about, and logs the reason why a file is rejected once.
func TestReloadIfChanged(t *testing.T) {
	lab.Need(t)
	const first, second = "modules: {first: {prober: tcp}}\n", "modules: {second: {prober: tcp}}\n"
	const invalid = "modules: {third: {prober: tcp, tcp: {dscp: 64}}}\n"
	dir := t.TempDir()
	// As in the volume of a ConfigMap, the file is a link into a directory, which is a link that is replaced.
	publish := func(version, text string) {
		if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil {
			t.Fatal(err)
		}
		lab.Write(t, filepath.Join(dir, version), "shaker.yml", text)
		if err := os.Symlink(version, filepath.Join(dir, "next")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "next"), filepath.Join(dir, "data")); err != nil {
			t.Fatal(err)
		}
	}
	publish("1", first)
	file := filepath.Join(dir, "shaker.yml")
	if err := os.Symlink(filepath.Join("data", "shaker.yml"), file); err != nil {
		t.Fatal(err)
	}

	loaded := read(file)
	conf, _, err := loaded.load(file)
	if err != nil {
		t.Fatal(err)
	}
	engine, err := shaker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	prober := probe.New(probe.Options{Shaker: engine, Config: conf})
	var log bytes.Buffer
	r := newReloader(file, loaded, prober.Configure, slog.New(slog.NewTextHandler(&log, nil)))
	const reloaded, rejected = "Configuration reloaded", "Configuration rejected"
	check := func(when, module, message string, successful float64) {
		t.Helper()
		log.Reset()
		r.reloadIfChanged()
		modules := slices.Collect(maps.Keys(prober.Config().Modules))
		if !slices.Equal(modules, []string{module}) || testutil.ToFloat64(r.successful) != successful {
			t.Errorf("%s: modules %q, last reload successful %v, want [%q] and %v",
				when, modules, testutil.ToFloat64(r.successful), module, successful)
		}
		if got := log.String(); strings.Count(got, "\n") != min(1, len(message)) || !strings.Contains(got, message) {
			t.Errorf("%s: the log is %q, want %q", when, got, message)
		}
	}
	check("nothing has changed", "first", "", 1)
	publish("2", first)
	check("another file has the same content", "first", "", 1)
	publish("3", second)
	check("the link is replaced", "second", reloaded, 1)
	publish("4", invalid)
	check("the file is invalid", "second", rejected, 0)
	check("the file is still invalid", "second", "", 0)
	if err := r.reload(); err == nil {
		t.Error("reload() of an invalid file = nil, want its error, as it is requested")
	}
	check("a reload of the invalid file was requested", "second", "", 0)
	publish("5", second)
	check("the file has its previous content again", "second", reloaded, 1)
	if err := os.Remove(filepath.Join(dir, "data")); err != nil {
		t.Fatal(err)
	}
	check("there is no file", "second", rejected, 0)
	check("there is still no file", "second", "", 0)
	publish("6", first)
	check("the file is back", "first", reloaded, 1)
	lab.Write(t, filepath.Join(dir, "6"), "shaker.yml", second)
	check("the file is written in place", "second", reloaded, 1)
	lab.Write(t, filepath.Join(dir, "6"), "shaker.yml", first)
	if err := r.reload(); err != nil {
		t.Fatal(err)
	}
	check("a reload was requested before", "first", "", 1)
}
