package usage

import (
	"slices"
	"strings"

	"github.com/alecthomas/kingpin/v2"
)

// The scripts ask the program for all words that fit, and offer files if there are none, as for --config.file.
//
// Bash splits words at = and :, so that --log.level=de is three words, and replaces only the last of them. Zsh takes
// the whole word for the name of a file, unless the script tells it where the name begins.
const (
	bashScript = `# bash completion for shaker_exporter
_shaker_exporter() {
    local words=("${COMP_WORDS[@]:1:COMP_CWORD}")
    [[ ${words[-1]} == *[=:] ]] && words+=("")
    mapfile -t COMPREPLY < <("${COMP_WORDS[0]}" --completion-bash "${words[@]}" 2>/dev/null)
}
complete -o default -F _shaker_exporter shaker_exporter
`
	zshScript = `#compdef shaker_exporter
_shaker_exporter() {
    local -a matches=("${(f)$("${words[1]}" --completion-bash "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n $matches ]]; then
        compadd -a matches
    else
        [[ $PREFIX == --*=* ]] && compset -P 1 '*='
        _files
    fi
}
if [[ $funcstack[1] == _shaker_exporter ]]; then
    _shaker_exporter
else
    compdef _shaker_exporter shaker_exporter
fi
`
	fishScript = `# fish completion for shaker_exporter
complete -c shaker_exporter -l config.file -l web.config.file -r -F
complete -c shaker_exporter -f \
    -a '(shaker_exporter --completion-bash (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
`
)

// complete returns what may replace the last word of a command line: commands, flags, or values of a flag. kingpin's
// own completion offers no commands when one of them is the default.
func complete(app *kingpin.Application, words []string) []string {
	if len(words) == 0 {
		words = []string{""}
	}
	app.ParseContext(nil) // kingpin creates the command help before it parses
	words, kept := unsplit(words)
	before, current := words[:len(words)-1], words[len(words)-1]
	var command *kingpin.CmdClause
	var open string // the flag before the current word, if it lacks its value
	for _, word := range before {
		switch {
		case open != "":
			open = ""
		case word == "--":
			return nil // only targets follow
		case strings.HasPrefix(word, "--"):
			if !strings.Contains(word, "=") && takesValue(app, command, word) {
				open = word
			}
		case strings.HasPrefix(word, "-"):
		case command == nil:
			if command = app.GetCommand(word); command == nil {
				return nil
			}
		}
	}

	prefix := ""
	flag, value, joined := strings.Cut(current, "=")
	if joined && open == "" && takesValue(app, command, flag) {
		prefix, open, current = flag+"=", flag, value
	}
	var offers []string
	switch {
	case open != "":
		for _, flags := range flagSets(app, command) {
			if choices, found, _ := flags.FlagCompletion(strings.TrimPrefix(open, "--"), current); found {
				offers = slices.Clone(choices)
			}
		}
	case strings.HasPrefix(current, "-"):
		for _, flags := range flagSets(app, command) {
			choices, _, _ := flags.FlagCompletion("", "")
			offers = append(offers, choices...)
		}
	case command == nil, command.Model().Name == "help":
		for _, c := range app.Model().Commands {
			if !c.Hidden {
				offers = append(offers, c.Name)
			}
		}
	}
	offers = slices.DeleteFunc(offers, func(offer string) bool { return !strings.HasPrefix(offer, current) })
	for i := range offers {
		offers[i] = (prefix + offers[i])[kept:]
	}
	return offers
}

// unsplit joins the words that bash has split. kept is the number of bytes at the start of the last word that the shell
// keeps, because it has split them off.
func unsplit(split []string) (words []string, kept int) {
	glue := false
	for _, part := range split {
		separator := part != "" && strings.Trim(part, "=:") == ""
		last := len(words) - 1
		if last >= 0 && (glue || separator) {
			kept = len(words[last])
			words[last] += part
		} else {
			kept = 0
			words = append(words, part)
		}
		glue = separator
	}
	return words, kept
}

// A flagSet is an application or one of its commands.
type flagSet interface {
	FlagCompletion(name, value string) (choices []string, found, complete bool)
	GetFlag(name string) *kingpin.FlagClause
}

// flagSets returns what defines the flags of a command line. Without a command, it has those of the default command.
func flagSets(app *kingpin.Application, command *kingpin.CmdClause) []flagSet {
	if command == nil {
		for _, c := range app.Model().Commands {
			if c.Default {
				command = app.GetCommand(c.Name)
			}
		}
	}
	if command == nil {
		return []flagSet{app}
	}
	return []flagSet{command, app}
}

// takesValue reports whether a word is a flag that needs a value.
func takesValue(app *kingpin.Application, command *kingpin.CmdClause, word string) bool {
	for _, flags := range flagSets(app, command) {
		if flag := flags.GetFlag(strings.TrimPrefix(word, "--")); flag != nil {
			return !flag.Model().IsBoolFlag()
		}
	}
	return false
}
