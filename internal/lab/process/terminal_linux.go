package process

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// OpenTerminal returns the two ends of a pseudoterminal. The slave end is the program's terminal; a read of
// the master end returns what the program prints there.
func OpenTerminal(t testing.TB) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		lab.Skip(t, "needs a pseudoterminal (/dev/ptmx and /dev/pts): %v", err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatalf("TIOCGPTN: %v", err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		lab.Skip(t, "needs a pseudoterminal (/dev/ptmx and /dev/pts): %v", err)
	}
	return master, slave
}

// ReadTerminal returns everything printed on a pseudoterminal until its slave end is closed.
func ReadTerminal(master *os.File) string {
	var out strings.Builder
	for buffer := make([]byte, 4096); ; {
		n, err := master.Read(buffer) // EIO once the slave end is closed
		out.Write(buffer[:n])
		if err != nil {
			return out.String()
		}
	}
}
