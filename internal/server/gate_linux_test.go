package server

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// As many requests as permitted render one at a time. One more is rejected at once.
func TestGateRendersOneAtATime(t *testing.T) {
	render := make(chan struct{})
	var rendering, most atomic.Int64
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		most.Store(max(most.Load(), rendering.Add(1)))
		<-render
		rendering.Add(-1)
		io.WriteString(w, "page")
	})
	for _, c := range []struct {
		name string
		page http.Handler
		most int64
	}{
		{name: "behind the gate", page: newGate().handler(page), most: 1},
		{name: "the control, without a gate", page: page, most: maxViews},
	} {
		t.Run(c.name, func(t *testing.T) {
			most.Store(0)
			var requests sync.WaitGroup
			responses := make([]*httptest.ResponseRecorder, maxViews)
			for i := range responses {
				responses[i] = httptest.NewRecorder()
				requests.Go(func() { c.page.ServeHTTP(responses[i], httptest.NewRequest("GET", "/", nil)) })
			}
			lab.Eventually(t, "requests render", func() bool { return rendering.Load() == c.most })
			if c.most == 1 {
				lab.Eventually(t, "one more request is rejected", func() bool {
					ctx, cancel := context.WithCancel(t.Context())
					cancel() // it need not wait for the others
					w := httptest.NewRecorder()
					c.page.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
					return w.Code == 503 && w.Header().Get("Retry-After") == "1" &&
						w.Body.String() == "too many requests for this page at once, try again later\n"
				})
			}
			for range responses {
				render <- struct{}{}
			}
			requests.Wait()
			if got := most.Load(); got != c.most {
				t.Errorf("%d of %d requests rendered at once, want %d", got, maxViews, c.most)
			}
			for i, w := range responses {
				if w.Code != 200 || w.Body.String() != "page" {
					t.Errorf("request %d of %d: %d %q, want 200 \"page\"", i, maxViews, w.Code, w.Body)
				}
			}
		})
	}
}

// A request whose client disconnects while another one renders is not rendered.
func TestGateDropsRequestsOfDisconnectedClients(t *testing.T) {
	began, render := make(chan struct{}), make(chan struct{})
	var rendered atomic.Int64
	page := newGate().handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		rendered.Add(1)
		began <- struct{}{}
		<-render
	}))
	var first sync.WaitGroup
	first.Go(func() { page.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)) })
	<-began
	for range 100 {
		ctx, disconnect := context.WithCancel(t.Context())
		disconnect()
		page.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/", nil))
	}
	close(render)
	first.Wait()
	for range 100 { // the gate is free, so that both cases of its select are ready
		ctx, disconnect := context.WithCancel(t.Context())
		disconnect()
		page.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/", nil))
	}
	if got := rendered.Load(); got != 1 {
		t.Errorf("%d requests rendered, want 1: the clients of the others have disconnected", got)
	}
}

// A client that does not read its response does not keep others from getting theirs. A page that fails leaves its
// place in the gate.
func TestGateDoesNotWaitForReaders(t *testing.T) {
	writing, read := make(chan struct{}), make(chan struct{})
	gate := newGate()
	slow := gate.handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "page")
		writing <- struct{}{}
		<-read
	}))
	page := gate.handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "page") }))
	broken := gate.handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("broken") }))
	var reader sync.WaitGroup
	reader.Go(func() { slow.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)) })
	<-writing
	for range 2 * maxViews {
		func() {
			defer func() { recover() }()
			broken.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		}()
		w := httptest.NewRecorder()
		page.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		if w.Code != 200 || w.Body.String() != "page" {
			t.Errorf("a page while another client does not read: %d %q, want 200 \"page\"", w.Code, w.Body)
		}
	}
	close(read)
	reader.Wait()
}

// A deadlineRecorder records the deadline for writing.
type deadlineRecorder struct {
	*httptest.ResponseRecorder
	deadline time.Time
}

func (r *deadlineRecorder) SetWriteDeadline(deadline time.Time) error {
	r.deadline = deadline
	return nil
}

// However long a request waits and renders, its client has the whole time to read the response.
func TestGateGivesClientsTimeToRead(t *testing.T) {
	w := &deadlineRecorder{ResponseRecorder: httptest.NewRecorder()}
	var rendered time.Time
	newGate().handler(http.HandlerFunc(func(view http.ResponseWriter, _ *http.Request) {
		if !w.deadline.IsZero() {
			t.Errorf("while the page is rendered, the deadline for writing is %v, want none", w.deadline)
		}
		rendered = time.Now()
		io.WriteString(view, "page")
	})).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if want := rendered.Add(requestLimit); w.deadline.Before(want) {
		t.Errorf("a page rendered at %v has the deadline %v, want %v or later", rendered, w.deadline, want)
	}
}
