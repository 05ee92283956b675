FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /shaker_exporter .

FROM scratch
COPY --from=build /shaker_exporter /shaker_exporter
COPY LICENSE /LICENSE
# nobody: the exporter needs no privilege and no capability.
USER 65534:65534
EXPOSE 10115
ENTRYPOINT ["/shaker_exporter"]
