package usage

import (
	"fmt"
	"strings"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/version"
)

// afterCommands are the sections of the man page that do not come from the flags.
const afterCommands = `.SH SIGNALS
.TP
SIGHUP
Reload the configuration file.
An invalid file is rejected, and the current configuration stays active.
.TP
SIGTERM, SIGINT
Wait for the running probes and end.
A second signal ends the process at once.
.SH EXIT STATUS
.TP
0
A signal has stopped the exporter, all results of the command
.B probe
are valid, or all connections of the command
.B hold
are well at the end.
.TP
1
A result is not valid, a connection is not well, or the exporter cannot start,
for example because its configuration file is invalid.
.TP
2
The command line is wrong, or a command cannot use the configuration file.
.SH FILES
The service that the packages install uses these files:
.TP
.I /etc/shaker_exporter/shaker.yml
The configuration.
The file that the packages install describes every key.
.TP
.I /etc/default/shaker_exporter
More flags for the service (on Alpine Linux:
.IR /etc/conf.d/shaker_exporter ).
.PP
The packages also install the documentation:
.TP
.I /usr/share/doc/shaker\-exporter/docs
The pages that errors and hints name, such as docs/raw.md.
.TP
.I /usr/share/doc/shaker\-exporter/examples
Examples: a drop\-in for systemd, rules, dashboards.
.SH EXAMPLES
Probe a port from the command line, with the routers on the path:
.PP
.RS
.EX
shaker_exporter probe \-\-path example.com:443
.EE
.RE
.PP
Probe a port through a running exporter, step by step:
.PP
.RS
.EX
curl \(aqhttp://localhost:10115/probe?target=example.com:443&debug=true\(aq
.EE
.RE
.SH SEE ALSO
https://github.com/shaker\-exporter/shaker_exporter
`

// manPage returns the man page in the man macros of troff. kingpin's own has no description in the section NAME, which
// whatis(1) and apropos(1) need, and does not escape backslashes.
func manPage(app *kingpin.Application) string {
	var page strings.Builder
	model := app.Model()
	day, _, _ := strings.Cut(version.BuildDate, "T")
	fmt.Fprintf(&page, ".TH %s 1 %q %q %q\n", strings.ToUpper(model.Name), day,
		strings.TrimSpace(model.Name+" "+version.Version), "User Commands")
	page.WriteString(".SH NAME\n" + paragraph(model.Name+" - "+
		strings.TrimSuffix(strings.ToLower(model.Help[:1])+model.Help[1:], ".")))
	page.WriteString(".SH SYNOPSIS\n")
	for i, command := range model.Commands {
		if i > 0 {
			page.WriteString(".br\n")
		}
		name := roff(command.Name)
		if command.Default {
			name = "[" + name + "]"
		}
		fmt.Fprintf(&page, ".B %s\n[\\fIflags\\fR] \\fB%s\\fR%s\n", model.Name, name, arguments(command))
	}
	page.WriteString(".SH DESCRIPTION\n" + paragraph(model.Help) + ".PP\n")
	page.WriteString(paragraph("Prometheus asks for a probe with /probe?target=HOST:PORT, by default on port 10115. " +
		"A probe is a TCP handshake whose final ACK is withheld, so that the application of the target does not see " +
		"it. / is the status page, and /metrics has the metrics of the exporter itself."))
	page.WriteString(".SH OPTIONS\n")
	writeFlags(&page, model.Flags)
	page.WriteString(".SH COMMANDS\n")
	for _, command := range model.Commands {
		if command.Hidden {
			continue
		}
		fmt.Fprintf(&page, ".SS \\fB%s\\fR%s\n%s", roff(command.Name), arguments(command), paragraph(command.Help))
		writeFlags(&page, command.Flags)
	}
	page.WriteString(afterCommands)
	return page.String()
}

// arguments returns the flags and arguments of a command, as they follow its name.
func arguments(command *kingpin.CmdModel) (text string) {
	if len(command.Flags) > 0 {
		text = " [\\fIflags\\fR]"
	}
	for _, arg := range command.Args {
		if name := "\\fI" + roff(arg.Name) + "\\fR ..."; arg.Required {
			text += " " + name
		} else {
			text += " [" + name + "]"
		}
	}
	return text
}

func writeFlags(page *strings.Builder, flags []*kingpin.FlagModel) {
	for _, flag := range flags {
		if flag.Hidden {
			continue
		}
		page.WriteString(".TP\n")
		if flag.Short != 0 {
			fmt.Fprintf(page, "\\fB\\-%c\\fR, ", flag.Short)
		}
		fmt.Fprintf(page, "\\fB\\-\\-%s\\fR", roff(flag.Name))
		if !flag.IsBoolFlag() {
			fmt.Fprintf(page, "=\\fI%s\\fR", roff(flag.FormatPlaceHolder()))
		}
		fmt.Fprintf(page, "\n%s", paragraph(flag.HelpWithEnvar()))
	}
}

// paragraph returns a text as lines of at most 80 bytes, if its words permit it. A sentence begins a new line.
func paragraph(text string) string {
	var lines strings.Builder
	column := 0
	for _, word := range strings.Fields(roff(text)) {
		switch {
		case column == 0:
		case column+1+len(word) > 80:
			lines.WriteByte('\n')
			column = 0
		default:
			lines.WriteByte(' ')
			column++
		}
		if column == 0 && word[0] == '.' { // it is not a request
			word = `\&` + word
		}
		lines.WriteString(word)
		column += len(word)
		if strings.HasSuffix(word, ".") {
			lines.WriteByte('\n')
			column = 0
		}
	}
	return strings.TrimSuffix(lines.String(), "\n") + "\n"
}

// roff escapes a text for troff.
func roff(text string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "~", `\(ti`, "^", `\(ha`).Replace(text)
}
