package lab

import (
	"net"
	"os"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

// Tests that call Apart can use the same port, because each has a network namespace of its own.
func TestApart(t *testing.T) {
	for _, name := range []string{"one", "another"} {
		t.Run(name, func(t *testing.T) {
			if Apart(t) {
				return
			}
			if own := os.Getenv(apartEnv); own != t.Name() {
				t.Errorf("the process runs for %q, want %q", own, t.Name())
			}
			if links, err := net.Interfaces(); err != nil || len(links) != 1 {
				t.Errorf("the interfaces are %v, %v, want lo only", links, err)
			}
			l, err := net.Listen("tcp", "127.0.0.1:7000")
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
		})
	}
}

// A part of a test that calls Apart can call it, too. It runs in a process of its own, which runs only that part.
func TestApartWithinApart(t *testing.T) {
	if Apart(t) {
		return
	}
	for _, name := range []string{"one", "another"} {
		t.Run(name, func(t *testing.T) {
			if Apart(t) {
				return
			}
			if own := os.Getenv(apartEnv); own != t.Name() {
				t.Errorf("the process runs for %q, want %q", own, t.Name())
			}
		})
	}
}
