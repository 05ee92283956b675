#!/bin/sh
# Installs a minimal Debian in the cache directory of the user, unless it is there: `make packages-test` boots it.
set -eu

debian=${XDG_CACHE_HOME:-$HOME/.cache}/shaker_exporter/debian-bookworm
packages=systemd-sysv,dbus,curl,rpm,openrc
[ "$(cat "$debian/packages" 2>/dev/null)" != "$packages" ] || exit 0
echo "installing $debian" >&2
rm -rf "$debian.new"
if ! log=$(debootstrap --variant=minbase --include="$packages" bookworm "$debian.new" 2>&1); then
  printf '%s\n' "$log" | tail -n 5 >&2
  exit 1
fi
echo "$packages" >"$debian.new/packages"
rm -rf "$debian"
mv "$debian.new" "$debian"
