package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/shaker-exporter/shaker_exporter/collector"
)

// requestLimit is how long a client may take to send a request, and how long it may take to read the
// response. The response to a probe may take longer, by the probe's own timeout.
const requestLimit = 2 * collector.AnswerTime

// newServer returns a server on which no client can hold a connection forever, no matter what
// the client fails to send or read. The limit applies to each request.
func newServer(handler http.Handler, limit time.Duration, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:        handler,
		ReadTimeout:    limit,           // from the first byte of the header to the last byte of the body
		WriteTimeout:   limit,           // from the end of the header to the end of the response
		IdleTimeout:    5 * time.Minute, // longer than the usual scrape intervals
		MaxHeaderBytes: 12 << 10,        // net/http adds 4 kB: 16 kB are enough for the cookies and tokens of a proxy
		// With HTTP/2, a client can also stop the server from writing anything at the end of a request.
		HTTP2:    &http.HTTP2Config{WriteByteTimeout: limit},
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
}

// drain stops listening and waits for the running requests, but no longer than the limit.
func drain(server *http.Server, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err := server.Shutdown(ctx)
	return errors.Join(err, server.Close())
}
