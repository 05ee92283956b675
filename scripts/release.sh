#!/bin/sh
# Builds the archives of a release. `make release` calls this script, and the Makefile documents the variables.
#
# The archives do not depend on who builds them, where or when. They contain no file that git ignores, and do not
# depend on paths, users, the clock, the time zone, the locale, the umask, the order of directory entries, what
# `go env -w` wrote, the configuration of git, or these variables of the environment:
set -eu
unset GO111MODULE GO386 GODEBUG GOEXPERIMENT GOFIPS140 GOMIPS GOMIPS64 GOPPC64 GORISCV64 GO_EXTLINK_ENABLED \
  CDPATH GZIP POSIXLY_CORRECT TAR_OPTIONS
export LC_ALL=C TZ=UTC
umask 022

fail() {
  echo "release: $*" >&2
  exit 1
}

# git refuses to read a clone of another user, because the clone's configuration can run programs. Running this
# script runs the clone's programs anyway.
git() { command git -c safe.directory='*' "$@"; }

if ! top=$(git rev-parse --show-toplevel) || ! revision=$(git rev-parse --verify HEAD) ||
  [ "$top" != "$(pwd -P)" ]; then
  fail 'no commit to release, want the root directory of a git clone of the repository'
fi

# shellcheck disable=SC2086 # a list of words
set -- $PLATFORMS
[ $# -gt 0 ] || fail 'PLATFORMS is empty, want at least one platform, such as linux/amd64'

dirty=$(git status --porcelain --untracked-files=all)
if [ -n "$dirty" ]; then
  [ "${ALLOW_DIRTY:-}" = 1 ] || fail "uncommitted changes, the release would not be reproducible:
$dirty"
  revision=$revision-modified
fi

version=${VERSION:-$(git describe --tags --always --abbrev=12)${dirty:+-dirty}}
case $version in
  *[!0-9A-Za-z.+_-]*) fail "invalid version $version, want only letters, digits and .+_-" ;;
esac
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --no-show-signature --format=%ct)}
date=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$work/source" "$work/tree" "$work/out"
tree=$(git rev-parse --verify HEAD)
[ -z "$dirty" ] || tree=$(export GIT_INDEX_FILE="$work/index" && git add --all && git write-tree)
# Both attributes and settings of the user could change the files of an archive, such as the ends of their lines. So
# git makes the archive in a repository that has no settings of its own, and only borrows the clone's objects.
clean_git() {
  env -i PATH="$PATH" GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_ATTR_NOSYSTEM=1 \
    git -c core.attributesFile=/dev/null -c safe.directory='*' "$@"
}
objects=$(git rev-parse --path-format=absolute --git-path objects)
clean_git init --quiet --bare --template= --object-format="$(git rev-parse --show-object-format)" "$work/git"
mkdir -p "$work/git/objects/info"
printf '%s\n' "$objects" >"$work/git/objects/info/alternates"
clean_git --git-dir="$work/git" archive --format=tar "$tree" >"$work/tar"
tar --extract --file="$work/tar" --directory="$work/source"
(
  cd "$work/source"
  find LICENSE README.md CHANGELOG.md docs examples -type f ! -name '*.go' -exec cp --parents -t "$work/tree" {} +
)

# Settings that `go env -w` wrote count as far as they are about where modules and the Go release come from.
for name in GOAUTH GOCACHE GOINSECURE GOMODCACHE GONOPROXY GONOSUMDB GOPRIVATE GOPROXY GOSUMDB GOTOOLCHAIN GOVCS; do
  value=$(go env "$name")
  export "$name=$value"
done
export GOENV=off

echo "shaker_exporter $version, revision $revision, $date, with $(go env GOVERSION)"
info=github.com/prometheus/common/version
for platform; do
  os=${platform%/*} arch=${platform#*/} binary=shaker_exporter
  [ "$os" != windows ] || binary=shaker_exporter.exe
  name=shaker_exporter-$version.$os-$arch
  [ "$arch" != arm ] || name=${name}v7 # older ARM processors cannot run the binary
  printf '%-14s ' "$platform"
  # Go's VCS stamp depends on how much of the history the clone has, so the binary has none. Go's build ID does not
  # depend on the clone, and stays: macOS denies a binary without a build ID access to the local network (Go issue
  # 68678). The other variables are set because the environment could have other values.
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

# The checksums come last: without them a release is incomplete.
mkdir -p "$OUT"
rm -f "$OUT/shaker_exporter-$version".*.tar.gz "$OUT/sha256sums.txt"
mv "$work/out"/* "$OUT"
cd "$OUT"
sha256sum "shaker_exporter-$version".*.tar.gz >sha256sums.txt
