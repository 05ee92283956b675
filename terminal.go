package main

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/term"
)

// A terminal is where lines for people go. On a real one verdicts have their colour, and a
// last line that comes and goes tells what is being waited for; in a pipe or a file there are
// just the lines. It is safe for use by any number of goroutines.
type terminal struct {
	file     *os.File
	colour   bool
	progress bool

	mu      sync.Mutex
	waiting []waiting
	shown   bool  // the last line
	err     error // the first one of writing
	closed  chan struct{}
	ended   sync.WaitGroup
}

// waiting is what is waited for.
type waiting struct {
	what  string
	since time.Time
}

const (
	green     = "\x1b[32m"
	red       = "\x1b[31m"
	plain     = "\x1b[0m"
	eraseLine = "\r\x1b[K"
)

// newTerminal returns a terminal on the file, with progress only if what is printed is text.
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

// close takes the last line away. It returns the first error that there was.
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

// line writes a line: what it is about, the verdict, and the rest.
func (t *terminal) line(about, verdict string, good bool, rest string) {
	if t.colour {
		colour := red
		if good {
			colour = green
		}
		verdict = colour + verdict + plain
	}
	fmt.Fprintf(t, "%s %s%s\n", about, verdict, rest)
}

// wait tells that something is waited for, until done is called.
func (t *terminal) wait(what string) (done func()) {
	w := waiting{what, time.Now()}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting = append(t.waiting, w)
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		i := slices.Index(t.waiting, w)
		t.waiting = slices.Delete(t.waiting, i, i+1)
	}
}

// follow draws the last line again and again.
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

// draw draws the last line if something has been waited for longer than a blink.
func (t *terminal) draw(now time.Time) {
	t.erase()
	if len(t.waiting) == 0 || now.Sub(t.waiting[0].since) < 300*time.Millisecond {
		return
	}
	first := t.waiting[0] // the longest
	text := fmt.Sprintf("%s: waiting, %.1f s", first.what, now.Sub(first.since).Seconds())
	if others := len(t.waiting) - 1; others > 0 {
		text += fmt.Sprintf(" (and %d more)", others)
	}
	if width, _, err := term.GetSize(int(t.file.Fd())); err == nil && 0 < width && width <= len(text) {
		text = text[:width-1] // or it could not be erased
	}
	t.file.WriteString(text)
	t.shown = true
}

func (t *terminal) erase() {
	if t.shown {
		t.file.WriteString(eraseLine)
		t.shown = false
	}
}
