package config

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// maxSize limits the size of a file, in bytes: /dev/zero never ends.
const maxSize = 1 << 20

// fifoTimeout is how long the writer of a FIFO has to write the file and close the FIFO.
const fifoTimeout = 5 * time.Second

// Load reads the configuration file of that name, as [Parse] does. Without a name, it returns the
// built-in configuration. A file of more than 1 MiB is an error, and so is a FIFO whose writer
// does not close it within 5 s.
func Load(name string) (c *Config, warnings []string, err error) {
	if name == "" {
		return Default(), nil, nil
	}
	text, err := Read(name)
	if err != nil {
		return nil, nil, err
	}
	return Parse(name, text)
}

// Read returns the text of the configuration file of that name, for [Parse]. The limits of [Load] apply.
func Read(name string) ([]byte, error) { return read(name, time.Now().Add(fifoTimeout)) }

// read returns the content of a file of at most maxSize bytes. A FIFO without a writer is empty. A
// FIFO with a writer is read until the writer closes it, but not past the deadline.
func read(name string, deadline time.Time) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // do not wait for the writer of a FIFO
	if err != nil {
		return nil, err
	}
	defer f.Close()
	f.SetReadDeadline(deadline) // an error means that the file never blocks
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxSize {
		return nil, fmt.Errorf("%s is larger than the limit of %d MiB", name, maxSize>>20)
	}
	return text, nil
}
