# shellcheck shell=sh
# Sets version, chart_version and epoch, the time of all files, from VERSION and SOURCE_DATE_EPOCH, by default from git.
# release.sh and chart.sh read this file, and define the functions fail and git.

version=${VERSION:-$(git describe --tags --always --abbrev=12 --dirty)} ||
  fail 'no version, want VERSION=1.2.3, or a git clone of the repository'
case $version in
  *[!0-9A-Za-z.+_-]*) fail "invalid version $version, want only letters, digits and .+_-" ;;
  v[0-9]*) version=${version#v} ;;
esac
# Helm accepts only semantic versions. What git describes as commits after a tag, or as a commit without one, need not
# be a semantic version.
chart_version=$(printf '%s' "$version" | tr _ -)
number='(0|[1-9][0-9]*)'
words='([0-9]*[A-Za-z-][0-9A-Za-z-]*|0|[1-9][0-9]*)'
if ! printf '%s' "$chart_version" |
  grep -Eqx "$number(\.$number){2}(-$words(\.$words)*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?"; then
  printf '%s' "$version" | grep -Eqx '(.+-[0-9]+-g)?[0-9a-f]{7,64}(-dirty)?' ||
    fail "invalid version $version, want a semantic version, such as VERSION=1.2.3 or VERSION=1.2.3-rc.1"
  chart_version=0.0.0-g$(printf '%s' "$chart_version" | tr -c 0-9A-Za-z -)
fi

epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --no-show-signature --format=%ct)} ||
  fail 'no time, want SOURCE_DATE_EPOCH=1767225600, or a git clone of the repository'
# The limit is that of tar's format.
case $epoch in
  *[!0-9]* | ???????????*) false ;;
  *) [ "$epoch" -le 8589934591 ] ;;
esac || fail "invalid SOURCE_DATE_EPOCH $epoch, want the seconds since 1970, at most 8589934591, such as 1767225600"
