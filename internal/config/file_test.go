package config

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// files returns the files of testdata that match, by their names.
func files(t testing.TB, pattern string) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("Glob(%s) = %q, %v, want at least one file", pattern, names, err)
	}
	texts := map[string][]byte{}
	for _, name := range names {
		if texts[name], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	return texts
}

// encode returns a configuration as YAML.
func encode(t testing.TB, c *Config) []byte {
	t.Helper()
	var text bytes.Buffer
	encoder := yaml.NewEncoder(&text)
	encoder.SetIndent(2)
	if err := encoder.Encode(c); err != nil {
		t.Fatal(err)
	}
	return text.Bytes()
}

// Each file ends with comments that have the expected errors: "# want: line: text".
func TestInvalid(t *testing.T) {
	want := regexp.MustCompile(`(?m)^# want: (.*)$`)
	for name, text := range files(t, "invalid/*.yml") {
		var wants []string
		for _, match := range want.FindAllSubmatch(text, -1) {
			wants = append(wants, name+":"+string(match[1]))
		}
		c, warnings, err := Load(name)
		if c != nil || warnings != nil || err == nil {
			t.Errorf("Load(%s) = %+v, %q, %v, want only an error", name, c, warnings, err)
		} else if want := strings.Join(wants, "\n"); err.Error() != want {
			t.Errorf("Load(%s):\n got %v\nwant %s", name, err, want)
		}
	}
}

// Each file of testdata/valid has the effective configuration, including defaults, of the file of
// the same name in testdata/effective, and that file means the same.
func TestValid(t *testing.T) {
	for name, text := range files(t, "valid/*.yml") {
		c, warnings, err := Parse(name, text)
		if warnings != nil || err != nil {
			t.Errorf("Parse(%s) = %q, %v, want no warnings and no error", name, warnings, err)
			continue
		}
		effective := filepath.Join("testdata", "effective", filepath.Base(name))
		want, err := os.ReadFile(effective)
		if err != nil {
			t.Error(err)
		}
		if got := encode(t, c); !bytes.Equal(got, want) {
			t.Errorf("Parse(%s), as YAML:\n got %s\nwant %s", name, got, want)
		}
		if again, warnings, err := Load(effective); !reflect.DeepEqual(again, c) || warnings != nil || err != nil {
			t.Errorf("Load(%s) = %+v, %q, %v, want %+v as of %s", effective, again, warnings, err, c, name)
		}
	}
}

func TestDefaultIsAFile(t *testing.T) {
	c, warnings, err := Parse("default.yml", encode(t, Default()))
	if err != nil || warnings != nil || !reflect.DeepEqual(c, Default()) {
		t.Errorf("Parse(Default() as YAML) = %+v, %q, %v, want %+v", c, warnings, err, Default())
	}
}

func TestLoadWithoutName(t *testing.T) {
	if c, warnings, err := Load(""); !reflect.DeepEqual(c, Default()) || warnings != nil || err != nil {
		t.Errorf(`Load("") = %+v, %q, %v, want %+v`, c, warnings, err, Default())
	}
}

func TestLoadNoFile(t *testing.T) {
	const name = "testdata/absent.yml"
	if c, _, err := Load(name); c != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load(%s) = %+v, %v, want %v", name, c, err, fs.ErrNotExist)
	}
}

// An accepted configuration, encoded as YAML, means the same. An error is one line for each
// mistake, which begins with the file and a line.
func FuzzParse(f *testing.F) {
	for _, text := range files(f, "*/*.yml") {
		f.Add(text)
	}
	mistake := regexp.MustCompile(`^fuzz\.yml:[1-9][0-9]*: .`)
	f.Fuzz(func(t *testing.T, text []byte) {
		c, _, err := Parse("fuzz.yml", text)
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !mistake.MatchString(line) {
					t.Errorf("Parse(%q): error line %q, want a match for %v", text, line, mistake)
				}
			}
			return
		}
		shown := encode(t, c)
		if again, _, err := Parse("fuzz.yml", shown); err != nil || !reflect.DeepEqual(again, c) {
			t.Errorf("Parse(%q) = %+v, as YAML\n%s\nwhich is %+v, %v, want the same", text, c, shown, again, err)
		}
	})
}
