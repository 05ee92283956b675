#!/bin/sh
# Builds programs in the cache directory of the user, unless they are there, and prints their paths:
#
#   sh scripts/programs.sh LIST [NAME]
#
# A line of LIST is the package of a program with its version, and build tags if it has any. With NAME, only the program
# of that name is built. A program is built again if its build tags or the Go release, such as 1.26, have changed: what
# nfpm writes depends on the compression in Go's standard library.
set -eu

cache=${XDG_CACHE_HOME:-$HOME/.cache}/shaker_exporter/programs
go=$(go env GOVERSION | sed 's/^\(go1\.[0-9]*\).*/\1/')
grep -v '^#' "$1" | while read -r program tags; do
  name=${program##*/} name=${name%@*}
  [ "${2:-$name}" = "$name" ] || continue
  file=$cache/$program/$name
  built=$(go version -m "$file" 2>/dev/null |
    sed -n -e '1s/.*: \(go1\.[0-9]*\).*/\1/p' -e 's/^\tbuild\t-tags=\(.\)/ \1/p' | tr -d '\n')
  if [ ! -x "$file" ] || [ "$built" != "$go${tags:+ $tags}" ]; then
    echo "building $program" >&2
    env -u GOOS -u GOARCH CGO_ENABLED=0 GOBIN="$cache/$program" go install -trimpath -tags="$tags" "$program"
  fi
  printf '%s\n' "$file"
done
