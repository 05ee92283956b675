#!/bin/sh
# Copies the licenses and notices of the modules in the binary to a directory, as in
#
#   CGO_ENABLED=0 GOOS=linux GOARCH=amd64 sh scripts/licenses.sh DIRECTORY
#
# Most of them ask to be given to whoever is given the binary. That of Go itself is the one of
# golang.org/x/sys.
set -eu

tab=$(printf '\t')
modules=$(go list -deps -f "{{with .Module}}{{if not .Main}}{{.Path}}$tab{{.Dir}}{{end}}{{end}}" .)
printf '%s\n' "$modules" | sort -u | while IFS=$tab read -r module dir; do
  mkdir -p "$1/$module"
  to=$(cd "$1/$module" && pwd)
  # Some have another's code within, with a license beside it.
  (cd "$dir" && find . \( -name 'LICENSE*' -o -name 'NOTICE*' -o -name 'COPYING*' \) -type f -exec cp --parents -t "$to" {} +)
done
