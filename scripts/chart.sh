#!/bin/sh
# Packages the Helm chart, with the rules and dashboards of examples. `make chart` calls this script, and the Makefile
# documents the variables. The package depends on nothing but them and the files.
set -eu
unset POSIXLY_CORRECT TAR_OPTIONS GZIP
export LC_ALL=C TZ=UTC
umask 022

fail() {
  echo "chart: $*" >&2
  exit 1
}
# As in release.sh: git refuses to read a clone of another user.
git() { command git -c safe.directory='*' "$@"; }
. scripts/version.sh
error=$(mkdir -p -- "$OUT" 2>&1) || fail "invalid directory OUT: $error"
[ -w "$OUT" ] || fail "invalid directory OUT: $OUT: no permission to write"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
name=shaker-exporter
cp -r "charts/$name" "$work/$name"
sed -e '/^#/d' -e "s/^version: .*/version: $chart_version/" -e "s/^appVersion: .*/appVersion: \"$version\"/" \
  "charts/$name/Chart.yaml" >"$work/$name/Chart.yaml"
mkdir "$work/$name/rules" "$work/$name/dashboards"
cp examples/rules/*.yml "$work/$name/rules"
cp examples/grafana/*.json "$work/$name/dashboards"
cp LICENSE "$work/$name"

# Helm would render an editor's backup of a template, too.
tar --create --file="$work/tar" --exclude-backups --format=ustar --sort=name --mtime="@$epoch" \
  --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --directory="$work" "$name"
gzip -n -9 <"$work/tar" >"$OUT/$name-$chart_version.tgz"
echo "$name-$chart_version.tgz"
