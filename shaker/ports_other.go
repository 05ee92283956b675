//go:build !linux

package shaker

import (
	"errors"
	"fmt"
	"runtime"
)

type reservation struct{}

func (p *Ports) reserve(int) error {
	return fmt.Errorf("%w on %s", errors.ErrUnsupported, runtime.GOOS)
}

// Close releases the ports. The error is always nil.
func (p *Ports) Close() error { return nil }

func (r PortRange) ephemeral() (all PortRange, ok bool) { return PortRange{}, false }
