package lab

import (
	"debug/buildinfo"
	"fmt"
	"io"
	"slices"
	"strings"
)

// LicenseComplaints compares license files with the modules in a Go program. The license files of a module
// are below the module's path. The complaints are the modules without a license file and the files that
// belong to no module.
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
			wrong = append(wrong, fmt.Sprintf("no license file for module %s", module.Path))
		}
	}
	for _, file := range rest {
		wrong = append(wrong, fmt.Sprintf("%s is of no module", file))
	}
	return wrong
}
