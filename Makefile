# make build      builds shaker_exporter in this directory
# make test       runs all tests; a test that needs more than the machine has is skipped and says why
# make programs   builds the programs that tests run and Debian lacks, such as Prometheus 3, in the
#                 cache directory of the user; the first time, this takes minutes
# make lint       runs gofmt, go vet and staticcheck, checks the length of lines, and runs shellcheck if it is
#                 installed
# make release    builds a release in dist: for each platform an archive (.tar.gz) and an SBOM (.spdx.json), for Linux
#                 packages (.deb, .rpm, .apk), the Helm chart, and sha256sums.txt over all of them. An archive holds a
#                 static binary, licenses, README.md, CHANGELOG.md, docs and examples. The first time, the build of syft
#                 takes minutes
# make release-notes   prints the top section of CHANGELOG.md: the text of the release
# make packages-test   installs, upgrades and removes the packages in a booted Debian, runs lintian, and compares SBOMs,
#                 unless SBOM is empty; as root, with the Debian packages debootstrap, systemd-container and
#                 lintian. The first time, this takes a minute, and minutes more for the SBOMs
# make chart      packages the Helm chart charts/shaker-exporter in dist, with the rules and dashboards of examples
# make help       prints this
#
# Variables of make release, as in `make release PLATFORMS="linux/amd64 linux/arm64"`. make chart has VERSION, OUT and
# SOURCE_DATE_EPOCH, too:
#
#   VERSION              the version, such as 1.2.3 or 1.2.3-rc.1; by default, what `git describe` prints, without the v
#                        of the tag
#   PLATFORMS            the platforms, as `go tool dist list` prints them, separated by spaces; linux/arm is ARMv7
#   PACKAGES             the formats of the packages; empty for none
#   SBOM                 empty for no SBOMs
#   OUT                  the directory; files of the same version in it are replaced, and other files are named
#   ALLOW_DIRTY=1        includes uncommitted changes, to try things out
#   SOURCE_DATE_EPOCH    the time of all files, in seconds since 1970; by default, the time of the commit
#
# The same commit, version and Go release (`go version`) give the same files, byte by byte, on any Linux
# with GNU tar and gzip, whatever the settings of go, git and the shell are. To verify published files, build them
# again and run `sha256sum -c` with the published sums.
#
# To release: give the top section of CHANGELOG.md its version and date, commit, tag the commit with
# the version, such as v1.2.3, run `make release` and `make packages-test`, and publish the tag with the output of
# `make release-notes` as its text, and all files in dist: `make -s release-notes | gh release create v1.2.3
# --notes-file - dist/*`.

PLATFORMS = linux/amd64 linux/arm64 linux/arm \
	darwin/amd64 darwin/arm64 freebsd/amd64 openbsd/amd64 windows/amd64
OUT = dist
PACKAGES = deb rpm apk
SBOM = 1
export PLATFORMS OUT PACKAGES SBOM

STATICCHECK = go run honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: help build test programs lint release release-notes packages-test chart

help:
	@sed '/^#/!q; s/^# \{0,1\}//' Makefile

build:
	CGO_ENABLED=0 go build -o shaker_exporter .

test:
	go test ./... && go -C test test -count=1 ./...

programs:
	@sh scripts/programs.sh internal/lab/programs.txt >/dev/null

lint:
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "not formatted with gofmt:" $$unformatted; exit 1; }
	@long=$$(git ls-files '*.go' | xargs awk '{ gsub("\t", "    ") } length > 120 { print FILENAME ":" FNR }'); \
		[ -z "$$long" ] || { printf 'longer than 120 columns:\n%s\n' "$$long"; exit 1; }
	go vet ./... && go -C test vet ./...
	$(STATICCHECK) ./... && cd test && $(STATICCHECK) ./...
	@! command -v shellcheck >/dev/null || shellcheck .ci/* scripts/*.sh packaging/deb/p* packaging/apk/p*
	@! command -v shellcheck >/dev/null || shellcheck --shell=sh --exclude=SC2034 packaging/rpm/p* packaging/apk/init

release:
	@sh scripts/release.sh

chart:
	@sh scripts/chart.sh

# The tests have no network.
packages-test:
	@sh scripts/programs.sh internal/lab/programs.txt nfpm >/dev/null
	@[ -z "$$SBOM" ] || sh scripts/programs.sh packaging/programs.txt >/dev/null
	@sh scripts/debian.sh
	SHAKER_TEST_ALL=1 go -C test test -count=1 -v ./release -slow \
		-run "TestPackages$${SBOM:+|TestSBOM}"

release-notes:
	@sh scripts/release-notes.sh CHANGELOG.md
