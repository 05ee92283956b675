package cli

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/term"
)

// A terminal is the output of the command. On a real terminal, results are coloured, and a temporary last
// line shows for what the command is waiting. In a pipe or a file there are only the results. A
// terminal is safe for use by any number of goroutines.
type terminal struct {
	file     *os.File
	colour   bool
	progress bool

	mu      sync.Mutex
	waiting []*waiting
	shown   bool  // whether the last line is visible
	err     error // the first error of writing
	closed  chan struct{}
	ended   sync.WaitGroup
}

// waiting is a probe or a connection that has not ended yet.
type waiting struct {
	what, state string
	since       time.Time
}

const (
	green     = "\x1b[32m"
	red       = "\x1b[31m"
	plain     = "\x1b[0m"
	eraseLine = "\r\x1b[K"
)

// newTerminal returns a terminal that writes to the file. It shows progress only if the output is text.
func newTerminal(file *os.File, text bool) *terminal {
	real := term.IsTerminal(int(file.Fd())) && os.Getenv("TERM") != "dumb"
	t := &terminal{
		file:     file,
		colour:   real && os.Getenv("NO_COLOR") == "", // https://no-color.org
		progress: real && text,
		closed:   make(chan struct{}),
	}
	if t.progress {
		t.ended.Go(t.follow)
	}
	return t
}

// close erases the last line and returns the first error of writing.
func (t *terminal) close() error {
	close(t.closed)
	t.ended.Wait()
	return t.err
}

// Write writes whole lines.
func (t *terminal) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.erase()
	n, err := t.file.Write(p)
	t.err = cmp.Or(t.err, err)
	return n, err
}

// note writes whole lines to stderr, where they do not mix with the results. On a terminal they replace the last line,
// and what the terminal has echoed there, such as ^\.
func (t *terminal) note(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.erase()
	if term.IsTerminal(int(os.Stderr.Fd())) && os.Getenv("TERM") != "dumb" {
		text = eraseLine + text
	}
	os.Stderr.WriteString(text)
}

// line writes a line: the target, the coloured result, and the rest.
func (t *terminal) line(about, result string, good bool, rest string) {
	if t.colour {
		colour := red
		if good {
			colour = green
		}
		result = colour + result + plain
	}
	fmt.Fprintf(t, "%s %s%s\n", about, result, rest)
}

// wait makes the last line show that the command is waiting for a probe, until done is called.
func (t *terminal) wait(what string) (done func()) { return t.show(what, "waiting") }

// track is like wait. Until done is called, progress replaces the state that the last line shows.
func (t *terminal) track(what string) (progress func(state string), done func()) {
	w := t.begin(what, "waiting")
	return func(state string) {
		t.mu.Lock()
		defer t.mu.Unlock()
		w.state = state
	}, func() { t.end(w) }
}

// show makes the last line show since when something is in a state, until done is called.
func (t *terminal) show(what, state string) (done func()) {
	w := t.begin(what, state)
	return func() { t.end(w) }
}

func (t *terminal) begin(what, state string) *waiting {
	w := &waiting{what: what, state: state, since: time.Now()}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting = append(t.waiting, w)
	return w
}

func (t *terminal) end(w *waiting) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.waiting, w)
	t.waiting = slices.Delete(t.waiting, i, i+1)
}

// width returns the number of columns of the terminal, 80 if that is not known.
func (t *terminal) width() int {
	if width, _, err := term.GetSize(int(t.file.Fd())); err == nil && width > 0 {
		return width
	}
	return 80
}

// follow keeps the last line up to date.
func (t *terminal) follow() {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			t.mu.Lock()
			t.draw(time.Now())
			t.mu.Unlock()
		case <-t.closed:
			t.mu.Lock()
			t.erase()
			t.mu.Unlock()
			return
		}
	}
}

// draw draws the last line if the oldest probe takes longer than 300 ms.
func (t *terminal) draw(now time.Time) {
	t.erase()
	if len(t.waiting) == 0 || now.Sub(t.waiting[0].since) < 300*time.Millisecond {
		return
	}
	first := t.waiting[0] // the oldest
	text := fmt.Sprintf("%s: %s, %.1f s", first.what, first.state, now.Sub(first.since).Seconds())
	if others := len(t.waiting) - 1; others > 0 {
		text += fmt.Sprintf(" (and %d more)", others)
	}
	if width, _, err := term.GetSize(int(t.file.Fd())); err == nil && 0 < width && width <= len(text) {
		text = text[:width-1] // a wrapped line could not be erased
	}
	t.file.WriteString(text)
	t.shown = true
}

// erase erases the last line.
func (t *terminal) erase() {
	if t.shown {
		t.file.WriteString(eraseLine)
		t.shown = false
	}
}
