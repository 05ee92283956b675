FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
RUN CGO_ENABLED=0 go build -trimpath -o /shaker_exporter \
    -ldflags="-s -w -X github.com/prometheus/common/version.Version=${VERSION}" .

FROM scratch
COPY --from=build /shaker_exporter /shaker_exporter
COPY LICENSE /LICENSE
# nobody: the exporter needs no privilege and no capability.
USER 65534:65534
EXPOSE 10115
ENTRYPOINT ["/shaker_exporter"]
