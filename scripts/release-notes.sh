#!/bin/sh
# Prints the top section of a changelog without its title: the text of the release.
#
#   sh scripts/release-notes.sh CHANGELOG.md
set -eu
awk '/^## / { sections++; next } sections == 1 && (text || NF) { text = 1; print }' "$1"
