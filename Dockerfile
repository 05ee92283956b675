# The exporter as a container image: a static binary, licenses, and nothing else.
#
#   docker build -t shaker_exporter .
#
# For other platforms, and with what --version and the image's labels tell about it:
#
#   docker buildx build --platform=linux/amd64,linux/arm64 \
#       --build-arg VERSION="$(git describe --tags | sed s/^v//)" \
#       --build-arg REVISION="$(git rev-parse HEAD)" \
#       --build-arg BUILD_DATE="$(TZ=UTC0 git log -1 --format=%cd --date=format-local:%FT%TZ)" \
#       --tag=registry.example.com/shaker_exporter --push .

# Go compiles for the image's platform on the builder's own: nothing is emulated.
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY . .
ARG TARGETOS TARGETARCH TARGETVARIANT VERSION REVISION BUILD_DATE
# The caches outlive the build. Of the modules only those of the program are fetched, not
# those of its tests.
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    if [ "$TARGETARCH" = arm ]; then export GOARM="${TARGETVARIANT#v}"; fi; \
    export CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH; \
    go build -trimpath -o /shaker_exporter -ldflags "-s -w \
    -X github.com/prometheus/common/version.Version=$VERSION \
    -X github.com/prometheus/common/version.Revision=$REVISION \
    -X github.com/prometheus/common/version.BuildDate=$BUILD_DATE" . && \
    sh scripts/licenses.sh /licenses

FROM scratch
COPY --from=build /shaker_exporter /shaker_exporter
COPY LICENSE /LICENSE
COPY --from=build /licenses /licenses
ARG VERSION REVISION BUILD_DATE
LABEL org.opencontainers.image.title="shaker_exporter" \
      org.opencontainers.image.description="A Prometheus exporter that reports whether a TCP port answers, how fast, and, if it does not, exactly why" \
      org.opencontainers.image.source="https://github.com/shaker-exporter/shaker_exporter" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$BUILD_DATE"
# nobody: the exporter needs no privilege and no capability.
USER 65534:65534
EXPOSE 10115
ENTRYPOINT ["/shaker_exporter"]
