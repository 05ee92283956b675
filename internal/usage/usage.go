// Package usage explains the command line to other programs: it prints the man page, completes words for shells, and
// prints the scripts with which shells ask for that. All of it comes from the flags and commands of the application.
package usage

import (
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kingpin/v2"
)

// Print prints what the arguments of the program ask for if that is the man page (--help-man), words for a shell
// (--completion-bash), or a script for a shell (--completion-script-bash and others). It reports whether they do. Print
// replaces kingpin's own implementation of these flags.
func Print(w io.Writer, app *kingpin.Application, args []string) (printed bool, err error) {
	text := ""
	switch {
	case len(args) > 0 && args[0] == "--completion-bash":
		text = strings.Join(complete(app, args[1:]), "\n")
	case slices.Contains(args, "--completion-script-bash"):
		text = bashScript
	case slices.Contains(args, "--completion-script-zsh"):
		text = zshScript
	case slices.Contains(args, "--completion-script-fish"):
		text = fishScript
	case slices.Contains(args, "--help-man"):
		text = manPage(app)
	default:
		return false, nil
	}
	_, err = io.WriteString(w, text)
	return true, err
}
