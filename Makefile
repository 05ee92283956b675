# make build      builds shaker_exporter in this directory
# make test       runs all tests; a test that needs more than the machine has is skipped and says why
# make programs   builds the programs that tests run and Debian lacks, such as Prometheus 3, in the
#                 cache directory of the user; the first time, this takes minutes
# make lint       runs gofmt, go vet and staticcheck, checks the length of lines, and runs shellcheck if it is
#                 installed
# make release    builds the release archives in dist, one for each platform, and sha256sums.txt;
#                 an archive holds a static binary, licenses, README.md, CHANGELOG.md, docs and examples
# make chart      packages the Helm chart charts/shaker-exporter in dist, with the rules and dashboards of examples
# make help       prints this
#
# Variables of make release, as in `make release PLATFORMS="linux/amd64 linux/arm64"`. make chart has VERSION, OUT and
# SOURCE_DATE_EPOCH, too:
#
#   VERSION              the version; by default, what `git describe` prints
#   PLATFORMS            the platforms, as Go names them
#   OUT                  the directory; archives of the same version in it are replaced
#   ALLOW_DIRTY=1        includes uncommitted changes, to try things out
#   SOURCE_DATE_EPOCH    the time of all files; by default, the time of the commit
#
# The same commit, version and Go release (`go version`) give the same archives, byte by byte, on any Linux
# with GNU tar and gzip, whatever the settings of go, git and the shell are. To verify published archives, build them again and run `sha256sum -c` with the
# published sums.
#
# To release: give the top section of CHANGELOG.md its version and date, commit, tag the commit with
# the version, such as v1.2.3, run `make release`, and publish the tag and all files in dist.

PLATFORMS = linux/amd64 linux/arm64 linux/arm \
	darwin/amd64 darwin/arm64 freebsd/amd64 openbsd/amd64 windows/amd64
OUT = dist
export PLATFORMS OUT

STATICCHECK = go run honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: help build test programs lint release chart

help:
	@sed '/^#/!q; s/^# \{0,1\}//' Makefile

build:
	CGO_ENABLED=0 go build -o shaker_exporter .

test:
	go test ./... && go -C test test -count=1 ./...

# A program is built again if its build tags have changed.
programs:
	@grep -v '^#' internal/lab/programs.txt | while read -r program tags; do \
		directory="$${XDG_CACHE_HOME:-$$HOME/.cache}/shaker_exporter/programs/$$program"; \
		name=$${program##*/}; file="$$directory/$${name%@*}"; \
		built=$$(go version -m "$$file" 2>/dev/null | sed -n 's/^\tbuild\t-tags=//p'); \
		[ -x "$$file" ] && [ "$$built" = "$$tags" ] || { \
			echo "building $$program"; \
			CGO_ENABLED=0 GOBIN="$$directory" go install -trimpath -tags="$$tags" "$$program" || exit 1; \
		}; \
	done

lint:
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "not formatted with gofmt:" $$unformatted; exit 1; }
	@long=$$(git ls-files '*.go' | xargs awk '{ gsub("\t", "    ") } length > 120 { print FILENAME ":" FNR }'); \
		[ -z "$$long" ] || { printf 'longer than 120 columns:\n%s\n' "$$long"; exit 1; }
	go vet ./... && go -C test vet ./...
	$(STATICCHECK) ./... && cd test && $(STATICCHECK) ./...
	@! command -v shellcheck >/dev/null || shellcheck .ci/* scripts/*.sh

release:
	@sh scripts/release.sh

chart:
	@sh scripts/chart.sh
