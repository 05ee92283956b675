package idle

import (
	"time"

	"golang.org/x/sys/unix"
)

// suspended returns for how long this host has been suspended since it was booted. The clock of package time, and that
// of the kernel's TCP, stand still meanwhile, unlike those of routers.
func suspended() time.Duration {
	var all, running unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &running) != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &all) != nil {
		return 0
	}
	return time.Duration(all.Nano() - running.Nano())
}
