package server

import (
	"log/slog"
	"testing"

	"golang.org/x/sys/unix"
)

// Held connections and probes share the open files, whatever the flags are, and some are always left for probes.
func TestHeldConnections(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 4000, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	const engine = 2
	derived := defaultMaxInFlight(engine)
	files := 3 * derived
	for _, c := range []struct {
		name           string
		memory         memoryLimit
		flag, inFlight int
		most, spare    int
	}{
		{name: "default", memory: noMemoryLimit, inFlight: derived, most: files / 3},
		{name: "few probes", memory: noMemoryLimit, inFlight: 10, most: files - 30, spare: files - 30},
		{name: "more probes than files", memory: noMemoryLimit, inFlight: 2 * derived, most: files / 3},
		{name: "flag", memory: noMemoryLimit, flag: 7, inFlight: derived, most: 7},
		{name: "flag beyond the files", memory: noMemoryLimit, flag: 100_000, inFlight: derived,
			most: files - files/32},
		{name: "little memory", memory: 64 << 20, inFlight: derived, most: min(files/3, 2048)},
		{name: "less memory", memory: 16 << 20, inFlight: derived, most: 512},
		{name: "flag beyond the memory", memory: 16 << 20, flag: 1000, inFlight: derived, most: 512},
	} {
		most, spare := c.memory.heldConnections(c.flag, c.inFlight, engine, slog.New(slog.DiscardHandler))
		if most != c.most || spare != c.spare {
			t.Errorf("%s: %d held connections with the flag %d and %d probes in flight, %d of them spare, want %d, %d",
				c.name, most, c.flag, c.inFlight, spare, c.most, c.spare)
		}
	}
}
