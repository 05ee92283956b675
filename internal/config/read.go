package config

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// maxSize is how long a file may be, in bytes. /dev/zero has no end.
const maxSize = 16 << 20

// patience is how long the writer of a FIFO has to write it and close it.
const patience = 5 * time.Second

// read reads a file to its end, but none that is longer than maxSize. A FIFO that nobody has
// open to write is empty; one that somebody has is read until the deadline.
func read(name string, deadline time.Time) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // or it would wait for a writer
	if err != nil {
		return nil, err
	}
	defer f.Close()
	f.SetReadDeadline(deadline) // a file that never blocks has none
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxSize {
		return nil, fmt.Errorf("%s is longer than %d MiB", name, maxSize>>20)
	}
	return text, nil
}
