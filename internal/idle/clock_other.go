//go:build !linux

package idle

import "time"

// suspended returns for how long this host has been suspended, which is not known.
func suspended() time.Duration { return 0 }
