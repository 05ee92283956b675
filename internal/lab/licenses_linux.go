package lab

import (
	"debug/buildinfo"
	"fmt"
	"io"
	"slices"
	"strings"
)

// LicenseComplaints says what licenses of the modules in a Go program are missing among files,
// and which files are of none of them. Those of a module are below its path.
func LicenseComplaints(program io.ReaderAt, files []string) (wrong []string) {
	info, err := buildinfo.Read(program)
	if err != nil {
		return []string{err.Error()}
	}
	rest := slices.Clone(files)
	for _, module := range info.Deps {
		before := len(rest)
		rest = slices.DeleteFunc(rest, func(file string) bool { return strings.HasPrefix(file, module.Path+"/") })
		if len(rest) == before {
			wrong = append(wrong, fmt.Sprintf("there is no license of %s", module.Path))
		}
	}
	for _, file := range rest {
		wrong = append(wrong, fmt.Sprintf("%s is of no module", file))
	}
	return wrong
}
