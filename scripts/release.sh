#!/bin/sh
# Builds the archives, packages and SBOMs of a release. `make release` calls this script, and the Makefile documents the
# variables.
#
# The files do not depend on who builds them, where or when. They contain no file that git ignores, and do not
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
known=$(go tool dist list)
for platform; do
  printf '%s\n' "$known" | grep -Fqx -e "$platform" || case $platform in
  *,*) fail "invalid platform $platform in PLATFORMS, want spaces between platforms" ;;
  */armv7 | */armhf) fail "invalid platform $platform in PLATFORMS, want ${platform%/*}/arm, which is ARMv7" ;;
  *) fail "invalid platform $platform in PLATFORMS, want one that \`go tool dist list\` prints, such as linux/amd64" ;;
  esac
done

dirty=$(git status --porcelain --untracked-files=all)
if [ -n "$dirty" ]; then
  [ "${ALLOW_DIRTY:-}" = 1 ] || fail "uncommitted changes, the release would not be reproducible:
$dirty"
  revision=$revision-modified
fi

VERSION=${VERSION:-$(git describe --tags --always --abbrev=12)${dirty:+-dirty}}
. scripts/version.sh
date=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)

for format in $PACKAGES; do
  case $format in
  deb | rpm | apk) ;;
  *) fail "invalid format $format in PACKAGES, want only deb, rpm and apk" ;;
  esac
done
case $OUT in -*) OUT=./$OUT ;; esac # not an option
error=$(mkdir -p -- "$OUT" 2>&1) || fail "invalid directory OUT: $error"
[ -w "$OUT" ] || fail "invalid directory OUT: $OUT: no permission to write"
[ -z "$PACKAGES" ] || nfpm=$(sh scripts/programs.sh internal/lab/programs.txt nfpm)
[ -z "$SBOM" ] || syft=$(sh scripts/programs.sh packaging/programs.txt syft)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$work/source" "$work/tree" "$work/build" "$work/out"
tree=$(git rev-parse --verify HEAD)
if [ -n "$dirty" ]; then
  # A copy of the index, which also has files that git would ignore if it did not know them.
  cp "$(git rev-parse --git-path index)" "$work/index"
  tree=$(export GIT_INDEX_FILE="$work/index" && git add --all && git write-tree)
fi
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
  find LICENSE README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs examples -type f ! -name '*.go' \
    -exec cp --parents -t "$work/tree" {} +
)

home=https://github.com/shaker-exporter/shaker_exporter
# absolute_links DIRECTORY replaces links of the pages in it to files that it lacks, such as sources, by links to the
# repository.
absolute_links() (
  cd "$1"
  find . -name '*.md' -printf '%P\n' | while IFS= read -r page; do
    grep -Eo '\]\([^)#: ]+[)#]' "$page" | sed 's/^](//; s/.$//' | sort -u | while IFS= read -r link; do
      path=$(realpath -m -s --relative-to=. "$(dirname "$page")/$link")
      [ ! -e "$path" ] || continue
      case $path in
      *.png | *.svg) path=raw/main/$path ;;
      *) path=blob/main/$path ;;
      esac
      sed -i "s|](\($(printf '%s' "$link" | sed 's/[.]/\\./g')\)\([)#]\)|]($home/$path\2|g" "$page"
    done
  done
)
absolute_links "$work/tree"

# Settings that `go env -w` wrote count as far as they are about where modules and the Go release come from.
for name in GOAUTH GOCACHE GOINSECURE GOMODCACHE GONOPROXY GONOSUMDB GOPRIVATE GOPROXY GOSUMDB GOTOOLCHAIN GOVCS; do
  value=$(go env "$name")
  export "$name=$value"
done
export GOENV=off

echo "shaker_exporter $version, revision $revision, $date, with $(go env GOVERSION)"
info=github.com/prometheus/common/version

# target OS ARCH sets the variables of go build for a platform. Some of them are set only because the environment could
# have other values.
target() {
  export GOOS="$1" GOARCH="$2" GOAMD64=v1 GOARM64=v8.0 GOARM=7 CGO_ENABLED=0 GOWORK=off GOFLAGS=-trimpath
}

# build OS ARCH FILE builds the program.
#
# Go's VCS stamp depends on how much of the history the clone has, so the binary has none. Go's build ID does not
# depend on the clone, and stays: macOS denies a binary without a build ID access to the local network (Go issue
# 68678).
build() (
  cd "$work/source"
  target "$1" "$2"
  go build -buildvcs=false -o "$3" \
    -ldflags "-s -w -X $info.Version=$version -X $info.Revision=$revision -X $info.BuildDate=$date" .
)

# prepare_packages makes the files of the packages that are the same for all platforms, in build.
prepare_packages() {
  host=$work/host/shaker_exporter
  build "$(go env GOHOSTOS)" "$(go env GOHOSTARCH)" "$host"
  "$host" --help-man | gzip -n -9 >"$work/build/shaker_exporter.1.gz"
  for shell in bash zsh fish; do "$host" "--completion-script-$shell" >"$work/build/completion.$shell"; done
  {
    printf 'shaker-exporter (%s) stable; urgency=medium\n\n' "$(package_version deb | sed 's/-/~/')"
    sh scripts/release-notes.sh "$work/source/CHANGELOG.md" | sed 's/^- /* /; s/^./  &/'
    printf '\n -- %s  %s\n' "$(sed -n 's/^maintainer: //p' "$work/source/packaging/nfpm.yaml")" \
      "$(date -u -R -d "@$epoch")"
  } | gzip -n -9 >"$work/build/changelog.gz"
  # The documentation of a package has no pictures. The package has the unit, and the program in another directory.
  mkdir -p "$work/build/doc/docs"
  cp "$work/source/README.md" "$work/build/doc"
  cp "$work/source/docs"/*.md "$work/build/doc/docs"
  cp -R "$work/tree/examples" "$work/build/doc"
  (
    cd "$work/build/doc/examples/systemd"
    sed -e '1,/^$/d' -e 's,/usr/local/bin/,/usr/bin/,' shaker_exporter.service >"$work/build/shaker_exporter.service"
    rm shaker_exporter.service
    sed 's,examples/systemd/,/usr/share/doc/shaker-exporter/&,' raw.conf >raw
    mv raw raw.conf
  )
  absolute_links "$work/build/doc"
}

# package_version FORMAT prints the version of a package: a release candidate sorts before the release, and what git
# describes as commits after a release sorts after it. nfpm translates the semantic versions of deb and rpm. Alpine's
# versions contain only numbers and a few words, and what is not one of them is left out. A commit without a tag has its
# time instead of its hash.
package_version() {
  case $version in
  [0-9]*.[0-9]*) printf '%s\n' "$version" ;;
  *) if [ "$1" = apk ]; then echo "0.0.0+git.$epoch"; else echo "0.0.0+$version"; fi ;;
  esac | tr _ . | sed 's/-\([0-9]*\)-g\([0-9a-f]*\)/+\1.g\2/; s/\(+.*\)-dirty$/\1.dirty/; s/-dirty$/+dirty/' |
    case $1 in
    apk)
      sed -E -e 's/\+git\.([0-9]+)$/_git\1/; s/\+([0-9]+)(\..*)?$/_p\1/; s/\+.*//' \
        -e 's/-(alpha|beta|pre|rc)[.-]?([0-9]*)[^_]*/_\1\2/; s/-[^_]*/_pre/'
      ;;
    *) cat ;;
    esac
}

summary='Prometheus exporter that probes TCP ports'
details='It reports whether a TCP port answers, how fast, and, if it does not, exactly
why. The application of the server never sees the handshake, because the
exporter withholds its final ACK.'

# write_packages ARCH NAME writes the packages with the program in tree.
write_packages() (
  cd "$work"
  chmod -R u=rwX,go=rX tree build
  find tree build source -exec touch -d "@$epoch" {} + # nfpm gives some files their own times
  export PACKAGE_ARCH="$1" PACKAGE_VERSION PACKAGE_DESCRIPTION SOURCE_DATE_EPOCH="$epoch"
  [ "$1" != arm ] || PACKAGE_ARCH=arm7
  for format in $PACKAGES; do
    PACKAGE_VERSION=$(package_version "$format")
    case $format in # an rpm has its summary beside the description, and an apk has only one line
    deb) PACKAGE_DESCRIPTION="$summary
$details" ;;
    rpm) PACKAGE_DESCRIPTION=$details ;;
    apk) PACKAGE_DESCRIPTION=$summary ;;
    esac
    "$nfpm" package --config source/packaging/nfpm.yaml --packager "$format" --target "out/$2.$format" >nfpm.log 2>&1 ||
      { cat nfpm.log >&2; exit 1; }
    printf ' %s' "$format"
  done
)

# write_sbom FILE NAME writes the SBOM of a program, with a name and a time that do not differ from build to build. The
# binary does not contain the version of its main module.
write_sbom() (
  sum=$(sha256sum <"$1")
  tool=${syft%/*} tool=${tool##*@v}
  cd "$work/build" # which has no configuration of syft
  env -i PATH="$PATH" HOME="$work/build" SYFT_CHECK_FOR_APP_UPDATE=false \
    "$syft" scan --quiet "file:$1" --source-name shaker_exporter --source-version "$version" --output spdx-json |
    sed -e "s|\"documentNamespace\":\"[^\"]*\"|\"documentNamespace\":\"$home/sbom/$2-${sum%% *}\"|" \
      -e "s|\(\"name\":\"${home#https://}\",\"SPDXID\":\"[^\"]*\",\"versionInfo\":\"\)UNKNOWN|\1$version|" \
      -e "s|\"created\":\"[^\"]*\"|\"created\":\"$date\"|" -e "s|\"Tool: syft-[^\"]*\"|\"Tool: syft-$tool\"|" \
      >"$work/out/$2.spdx.json"
  printf ' %s' spdx.json
)

case " $*" in *' linux/'*) [ -z "$PACKAGES" ] || prepare_packages ;; esac
for platform; do
  os=${platform%/*} arch=${platform#*/} binary=shaker_exporter
  [ "$os" != windows ] || binary=shaker_exporter.exe
  name=shaker_exporter-$version.$os-$arch
  [ "$arch" != arm ] || name=${name}v7 # older ARM processors cannot run the binary
  printf '%-14s %s: ' "$platform" "$name"
  build "$os" "$arch" "$work/tree/$binary"
  (
    cd "$work/source"
    target "$os" "$arch"
    sh scripts/licenses.sh "$work/tree/licenses"
  )
  tar --create --file="$work/tar" --format=ustar --sort=name --mtime="@$epoch" \
    --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
    --directory="$work" --transform="s,^tree,$name," tree
  gzip -n -9 <"$work/tar" >"$work/out/$name.tar.gz"
  printf tar.gz
  [ "$os" != linux ] || write_packages "$arch" "$name"
  [ -z "$SBOM" ] || write_sbom "$work/tree/$binary" "$name"
  rm -rf "$work/tree/$binary" "$work/tree/licenses"
  echo
done

chart=$(cd "$work/source" && VERSION="$version" SOURCE_DATE_EPOCH="$epoch" OUT="$work/out" sh scripts/chart.sh)
printf '%-14s %s\n' chart "$chart"
(cd "$work/out" && sha256sum -- *) >"$work/sha256sums.txt"

# The checksums come last: without them a release is incomplete. The name of another version can begin with this
# version and a dot, but not with this version and a platform.
rm -f -- "$OUT/sha256sums.txt"
for os in $(printf '%s\n' "$known" | sed 's,/.*,,' | sort -u); do
  rm -f -- "$OUT/shaker_exporter-$version.$os"-*
done
mv -- "$work/out"/* "$OUT"
mv -- "$work/sha256sums.txt" "$OUT"
names=$(printf '%s\n' sha256sums.txt && sed 's/^[^ ]*  //' "$OUT/sha256sums.txt")
others=$(find "$OUT/." ! -name . -prune -printf '%f\n' | grep -Fvx -e "$names" | sort)
[ -z "$others" ] || echo "release: $OUT also has files that are not of this release, do not publish them with it:
$others" >&2
