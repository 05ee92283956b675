# make release    makes the archives of a release in dist: for each platform one that holds a static
#                 binary, licenses, README.md, CHANGELOG.md, docs and examples; and sha256sums.txt
# make help       prints this
#
# What can be given, as in `make release PLATFORMS="linux/amd64 linux/arm64"`:
#
#   VERSION              the version, otherwise what `git describe` calls the commit
#   PLATFORMS            those of Go's platforms that archives are made for
#   OUT                  where they go, in place of those of the same version
#   ALLOW_DIRTY=1        also makes them of what is not committed, to try things out
#   SOURCE_DATE_EPOCH    the time of all that is in them, otherwise the commit's
#
# The same commit, version and Go make the same archives, byte by byte, on any Linux with GNU's tar
# and gzip. To check published ones, make them again and run `sha256sum -c` with the published sums.
#
# To release: give the top of CHANGELOG.md its version and date, commit, tag the commit with the
# version, as in v1.2.3, run `make release`, and publish the tag and all that is in dist.

PLATFORMS = linux/amd64 linux/arm64 linux/arm \
	darwin/amd64 darwin/arm64 freebsd/amd64 openbsd/amd64 windows/amd64
OUT = dist
export PLATFORMS OUT

.PHONY: help release

help:
	@sed '/^#/!q; s/^# \{0,1\}//' Makefile

release:
	@sh scripts/release.sh
