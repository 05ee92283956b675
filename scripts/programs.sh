#!/bin/sh
# Builds programs in the cache directory of the user, unless they are there, and prints their paths:
#
#   sh scripts/programs.sh LIST [NAME]
#
# A line of LIST is the package of a program with its version, and build tags if it has any. With NAME, only the program
# of that name is built. A program is built again if its build tags have changed.
set -eu

cache=${XDG_CACHE_HOME:-$HOME/.cache}/shaker_exporter/programs
grep -v '^#' "$1" | while read -r program tags; do
  name=${program##*/} name=${name%@*}
  [ "${2:-$name}" = "$name" ] || continue
  file=$cache/$program/$name
  built=$(go version -m "$file" 2>/dev/null | sed -n 's/^\tbuild\t-tags=//p')
  if [ ! -x "$file" ] || [ "$built" != "$tags" ]; then
    echo "building $program" >&2
    env -u GOOS -u GOARCH CGO_ENABLED=0 GOBIN="$cache/$program" go install -trimpath -tags="$tags" "$program"
  fi
  printf '%s\n' "$file"
done
