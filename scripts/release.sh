#!/bin/sh
# Makes the archives of a release. `make release` calls it, and the Makefile says with what.
#
# Nothing gets into them that depends on who makes them, where or when: no file that git ignores,
# no path, no user, no clock, no time zone, no umask, no order of a directory, and of the
# environment none of these:
set -eu
unset GOEXPERIMENT GOFIPS140 GO386 GOMIPS GOMIPS64 GOPPC64 GORISCV64 GZIP TAR_OPTIONS

fail() {
  echo "release: $*" >&2
  exit 1
}

# git does not look at a clone that is someone else's, for fear of what that one has configured.
# Who runs this script trusts the clone already.
git() { command git -c safe.directory='*' "$@"; }

if ! top=$(git rev-parse --show-toplevel) || ! revision=$(git rev-parse --verify HEAD) || [ "$top" != "$(pwd -P)" ]; then
  fail 'there is no commit here to release: it takes git, and a clone of the repository'
fi

# shellcheck disable=SC2086 # a list of words
set -- $PLATFORMS
[ $# -gt 0 ] || fail 'PLATFORMS names none'

dirty=$(git status --porcelain --untracked-files=all)
if [ -n "$dirty" ]; then
  [ "${ALLOW_DIRTY:-}" = 1 ] || fail "nobody could make this release again, for these are not committed:
$dirty"
  revision=$revision-modified
fi

version=${VERSION:-$(git describe --tags --always --abbrev=12)${dirty:+-dirty}}
case $version in
  *[!0-9A-Za-z.+_-]*) fail "the version is $version, want letters, digits and .+_- only" ;;
esac
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --no-show-signature --format=%ct)}
date=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$work/source" "$work/tree" "$work/out"
tree=HEAD
[ -z "$dirty" ] || tree=$(export GIT_INDEX_FILE="$work/index" && git add --all && git write-tree)
git archive --format=tar "$tree" >"$work/tar"
tar --extract --file="$work/tar" --directory="$work/source"
(
  cd "$work/source"
  find LICENSE README.md CHANGELOG.md docs examples -type f ! -name '*.go' -exec cp --parents -t "$work/tree" {} +
)

echo "shaker_exporter $version, revision $revision, $date, with $(go env GOVERSION)"
info=github.com/prometheus/common/version
for platform; do
  os=${platform%/*} arch=${platform#*/} binary=shaker_exporter
  [ "$os" != windows ] || binary=shaker_exporter.exe
  name=shaker_exporter-$version.$os-$arch
  [ "$arch" != arm ] || name=${name}v7 # which those with an older ARM should know
  printf '%-14s ' "$platform"
  # Go's VCS stamp depends on how much of the history a clone has, and is left out. Its build
  # ID does not, and stays: macOS keeps a binary without one off the local network (Go issue
  # 68678). The environment could have other values for the rest.
  (
    cd "$work/source"
    export GOOS="$os" GOARCH="$arch" GOAMD64=v1 GOARM64=v8.0 GOARM=7 CGO_ENABLED=0 GOWORK=off GOFLAGS=-trimpath
    go build -buildvcs=false -o "$work/tree/$binary" \
      -ldflags "-s -w -X $info.Version=$version -X $info.Revision=$revision -X $info.BuildDate=$date" .
    sh scripts/licenses.sh "$work/tree/licenses"
  )
  tar --create --file="$work/tar" --format=ustar --sort=name --mtime="@$epoch" \
    --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
    --directory="$work" --transform="s,^tree,$name," tree
  gzip -n -9 <"$work/tar" >"$work/out/$name.tar.gz"
  rm -rf "$work/tree/$binary" "$work/tree/licenses"
  echo "$name.tar.gz"
done

# The sums come last: without them a release is not complete.
mkdir -p "$OUT"
rm -f "$OUT/shaker_exporter-$version".*.tar.gz "$OUT/sha256sums.txt"
mv "$work/out"/* "$OUT"
cd "$OUT"
sha256sum "shaker_exporter-$version".*.tar.gz >sha256sums.txt
