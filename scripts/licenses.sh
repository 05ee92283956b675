#!/bin/sh
# Copies the licenses and notices of all modules in the binary to a directory:
#
#   CGO_ENABLED=0 GOOS=linux GOARCH=amd64 sh scripts/licenses.sh DIRECTORY
#
# Most licenses must accompany the binary. Go's own license is the same text as that of golang.org/x/sys.
set -eu

tab=$(printf '\t')
modules=$(go list -deps -f "{{with .Module}}{{if not .Main}}{{.Path}}$tab{{.Dir}}{{end}}{{end}}" .)
printf '%s\n' "$modules" | sort -u | while IFS=$tab read -r module dir; do
  mkdir -p "$1/$module"
  to=$(cd "$1/$module" && pwd)
  # Some modules contain code of other authors, with the license in its directory.
  (
    cd "$dir"
    find . \( -name 'LICENSE*' -o -name 'NOTICE*' -o -name 'COPYING*' \) -type f -exec cp --parents -t "$to" {} +
  )
done
