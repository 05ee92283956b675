package usage

import (
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kingpin/v2"
)

// newApp returns an application like the exporter's, with a default command.
func newApp() *kingpin.Application {
	app := kingpin.New("demo", "Reports things.")
	app.Flag("config.file", "A file.").String()
	app.Flag("level", "A level.").Enum("debug", "info", "warn")
	serve := app.Command("serve", "Serves.").Default()
	serve.Flag("check", "Checks.").Bool()
	serve.Flag("hidden", "Is hidden.").Hidden().Bool()
	probe := app.Command("probe", `Probes with "a\n", an 'apostrophe', and a .dot.`)
	probe.Flag("output", "The format.").Default("text").Enum("text", "json")
	probe.Arg("target", "The targets.").Required().Strings()
	app.Command("secret", "Is hidden.").Hidden()
	return app
}

func TestComplete(t *testing.T) {
	for _, c := range []struct {
		words string // separated by spaces
		want  string
	}{
		{words: "", want: "help serve probe"},
		{words: "pr", want: "probe"},
		{words: "x", want: ""},
		{words: "--check pr", want: "probe"},
		{words: "--config.file pr", want: ""}, // a file
		{words: "--config.file pr pr", want: "probe"},
		{words: "--config.file=a pr", want: "probe"},
		{words: "--config.file = a pr", want: "probe"}, // as bash splits it
		{words: "--config.file =: 1 pr", want: "probe"},
		{words: "--config.file = [ :: 1] : 1 --level = w", want: "warn"},
		{words: "--config.file a : 1 pr", want: "probe"},
		{words: "--config.file : 1 pr", want: "probe"},
		{words: "--c", want: "--check --config.file"},
		{words: "-", want: "--check --help --config.file --level --version"},
		{words: "--h", want: "--help"},
		{words: "--level ", want: "debug info warn"},
		{words: "--level w", want: "warn"},
		{words: "--level = w", want: "warn"},
		{words: "--level = ", want: "debug info warn"},
		{words: "--level=w", want: "--level=warn"},
		{words: "--level=x", want: ""},
		{words: "--check=x", want: ""},
		{words: "--nonsense=x", want: ""},
		{words: "probe ", want: ""}, // a target
		{words: "probe pr", want: ""},
		{words: "probe --o", want: "--output"},
		{words: "probe --che", want: ""}, // a flag of serve
		{words: "probe --output ", want: "text json"},
		{words: "probe a:1 --output j", want: "json"},
		{words: "probe a : 1 --output j", want: "json"},
		{words: "probe --level --o", want: ""}, // the value of --level
		{words: "probe -- --o", want: ""},
		{words: "absent --o", want: ""},
		{words: "help ", want: "help serve probe"},
		{words: "help p", want: "probe"},
	} {
		app := newApp()
		app.Version("1")
		if got := strings.Join(complete(app, strings.Split(c.words, " ")), " "); got != c.want {
			t.Errorf("complete(%q) = %q, want %q", c.words, got, c.want)
		}
	}
	if got, want := complete(newApp(), nil), []string{"help", "serve", "probe"}; !slices.Equal(got, want) {
		t.Errorf("complete without a word = %q, want %q", got, want)
	}
}

func TestManPage(t *testing.T) {
	page := manPage(newApp())
	for _, want := range []string{
		".SH NAME\ndemo \\- reports things\n",
		".B demo\n[\\fIflags\\fR] \\fB[serve]\\fR [\\fIflags\\fR]\n",
		".SS \\fBprobe\\fR [\\fIflags\\fR] \\fItarget\\fR ...\n",
		"Probes with \"a\\en\", an \\(aqapostrophe\\(aq, and a .dot.\n",
		".TP\n\\fB\\-\\-output\\fR=\\fItext\\fR\nThe format.\n",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	if strings.Contains(page, "hidden") {
		t.Errorf("the page has a hidden flag or command:\n%s", page)
	}
}

func TestParagraph(t *testing.T) {
	long := strings.Repeat("x", 77)
	for _, c := range []struct{ text, want string }{
		{text: "One. Two.", want: "One.\nTwo.\n"},
		{text: "with-hyphen", want: "with\\-hyphen\n"},
		{text: long + " y", want: long + " y\n"},
		{text: long + " yyy", want: long + "\nyyy\n"},
		{text: long + " .yy", want: long + "\n\\&.yy\n"},
		{text: ".so", want: "\\&.so\n"},
	} {
		if got := paragraph(c.text); got != c.want {
			t.Errorf("paragraph(%q) = %q, want %q", c.text, got, c.want)
		}
	}
}

// Print leaves all other command lines to kingpin.
func TestPrint(t *testing.T) {
	for _, c := range []struct {
		args string
		want string // the beginning of the output
	}{
		{args: "--help-man", want: ".TH DEMO 1"},
		{args: "probe --help-man", want: ".TH DEMO 1"},
		{args: "--completion-script-bash", want: "# bash"},
		{args: "--completion-script-zsh", want: "#compdef"},
		{args: "--completion-script-fish", want: "# fish"},
		{args: "--completion-bash pr", want: "probe"},
		{args: "--completion-bash --help-m", want: ""},
	} {
		var out strings.Builder
		printed, err := Print(&out, newApp(), strings.Fields(c.args))
		if !printed || err != nil || !strings.HasPrefix(out.String(), c.want) {
			t.Errorf("Print(%q) = %v, %v and prints %q, want true and %q", c.args, printed, err, out.String(), c.want)
		}
	}
	for _, args := range []string{"", "--help", "probe a:1", "--check"} {
		var out strings.Builder
		if printed, err := Print(&out, newApp(), strings.Fields(args)); printed || err != nil || out.Len() > 0 {
			t.Errorf("Print(%q) = %v, %v and prints %q, want false and nothing", args, printed, err, out.String())
		}
	}
}
