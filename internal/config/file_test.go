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
		t.Fatalf("%s: %v, %v", pattern, names, err)
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

// The files end with what is to be said of them, in comments: "# want: line: text".
func TestInvalid(t *testing.T) {
	want := regexp.MustCompile(`(?m)^# want: (.*)$`)
	for name, text := range files(t, "invalid/*.yml") {
		var wants []string
		for _, match := range want.FindAllSubmatch(text, -1) {
			wants = append(wants, name+":"+string(match[1]))
		}
		c, warnings, err := Load(name)
		if c != nil || warnings != nil || err == nil {
			t.Errorf("%s: %+v, %q, %v", name, c, warnings, err)
		} else if want := strings.Join(wants, "\n"); err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %s", name, err, want)
		}
	}
}

// Each file is in force as the one of the same name in testdata/in_force says, and that is
// a configuration file for the same.
func TestValid(t *testing.T) {
	for name, text := range files(t, "valid/*.yml") {
		c, warnings, err := Parse(name, text)
		if warnings != nil || err != nil {
			t.Errorf("%q, %v", warnings, err)
			continue
		}
		inForce := filepath.Join("testdata", "in_force", filepath.Base(name))
		want, err := os.ReadFile(inForce)
		if err != nil {
			t.Error(err)
		}
		if got := encode(t, c); !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
		if again, warnings, err := Load(inForce); !reflect.DeepEqual(again, c) {
			t.Errorf("%s is %+v, which is %+v, %q, %v", name, c, again, warnings, err)
		}
	}
}

func TestDefaultIsAFile(t *testing.T) {
	c, warnings, err := Parse("default.yml", encode(t, Default()))
	if err != nil || warnings != nil || !reflect.DeepEqual(c, Default()) {
		t.Errorf("%+v, %q, %v", c, warnings, err)
	}
}

func TestLoadNoFile(t *testing.T) {
	if c, _, err := Load("testdata/absent.yml"); c != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%+v, %v", c, err)
	}
}

// What is accepted means the same after yaml.Marshal. What is wrong is said in one line for
// each, with the file and an existing line named.
func FuzzParse(f *testing.F) {
	for _, text := range files(f, "*/*.yml") {
		f.Add(text)
	}
	remark := regexp.MustCompile(`^fuzz\.yml:[1-9][0-9]*: .`)
	f.Fuzz(func(t *testing.T, text []byte) {
		c, _, err := Parse("fuzz.yml", text)
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !remark.MatchString(line) {
					t.Errorf("%q", line)
				}
			}
			return
		}
		shown := encode(t, c)
		if again, _, err := Parse("fuzz.yml", shown); err != nil || !reflect.DeepEqual(again, c) {
			t.Errorf("%s\nis shown as\n%s, which is\n%+v, %v", text, shown, again, err)
		}
	})
}
