#!/bin/sh
# Packages the Helm chart, with the rules and dashboards of examples. `make chart` calls this script, and the Makefile
# documents the variables. The package depends on nothing but them and the files.
set -eu
unset POSIXLY_CORRECT TAR_OPTIONS GZIP
export LC_ALL=C TZ=UTC
umask 022

version=${VERSION:-$(git describe --tags --always --abbrev=12 --dirty)}
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --no-show-signature --format=%ct)}
case $version in
  *[!0-9A-Za-z.+_-]*)
    echo "chart: invalid version $version, want only letters, digits and .+_-" >&2
    exit 1
    ;;
esac
# Helm accepts only versions such as 1.2.3 and 1.2.3-rc.1. A clone without tags has only the commit.
case $version in v[0-9]*) version=${version#v} ;; esac
chart=$(printf '%s' "$version" | tr _ -)
number='(0|[1-9][0-9]*)'
words='([0-9]*[A-Za-z-][0-9A-Za-z-]*|0|[1-9][0-9]*)'
if ! printf '%s' "$chart" |
  grep -Eqx "$number(\.$number){2}(-$words(\.$words)*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?"; then
  chart=0.0.0-g$(printf '%s' "$chart" | tr -c 0-9A-Za-z -)
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
name=shaker-exporter
cp -r "charts/$name" "$work/$name"
sed -e '/^#/d' -e "s/^version: .*/version: $chart/" -e "s/^appVersion: .*/appVersion: \"$version\"/" \
  "charts/$name/Chart.yaml" >"$work/$name/Chart.yaml"
mkdir "$work/$name/rules" "$work/$name/dashboards"
cp examples/rules/*.yml "$work/$name/rules"
cp examples/grafana/*.json "$work/$name/dashboards"
cp LICENSE "$work/$name"

tar --create --file="$work/tar" --format=ustar --sort=name --mtime="@$epoch" \
  --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --directory="$work" "$name"
mkdir -p "$OUT"
gzip -n -9 <"$work/tar" >"$OUT/$name-$chart.tgz"
echo "$name-$chart.tgz"
