package server

import (
	"net/http"
	"sync"
	"time"
)

// maxViews is how many requests may be in a gate: one is rendered, and the others wait for that, or their responses
// wait in memory for clients to read them.
const maxViews = 8

// A gate limits what the requests for pages cost, so that no number of them, however large the pages are, delays an
// RST or fills the memory. It lets them render one at a time.
type gate struct {
	views     chan struct{} // holds one value for each request in the gate
	rendering chan struct{} // holds a value while a request renders
}

func newGate() *gate {
	return &gate{views: make(chan struct{}, maxViews), rendering: make(chan struct{}, 1)}
}

// handler returns next behind the gate. What next does before it writes the first byte of its response is called
// rendering. A request whose client disconnects while it waits is not rendered.
func (g *gate) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case g.views <- struct{}{}:
			defer func() { <-g.views }()
		default:
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too many requests for this page at once, try again later", http.StatusServiceUnavailable)
			return
		}
		select {
		case g.rendering <- struct{}{}:
		case <-r.Context().Done():
			return
		}
		view := &view{ResponseWriter: w, rendered: sync.OnceFunc(func() {
			<-g.rendering
			// The client had to wait, but has all of the time to read. An error means that there is no deadline.
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(requestLimit))
		})}
		defer view.rendered()
		if r.Context().Err() == nil {
			next.ServeHTTP(view, r)
		}
	})
}

// A view is the response of a request in a gate.
type view struct {
	http.ResponseWriter
	rendered func() // may be called more than once
}

func (v *view) Write(p []byte) (int, error) {
	v.rendered()
	return v.ResponseWriter.Write(p)
}

// Unwrap returns the response for http.ResponseController.
func (v *view) Unwrap() http.ResponseWriter { return v.ResponseWriter }
