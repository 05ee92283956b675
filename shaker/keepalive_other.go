//go:build !aix && !darwin && !dragonfly && !freebsd && !linux && !netbsd && !solaris && !windows

package shaker

import (
	"errors"
	"fmt"
	"net"
	"runtime"
)

var errNoKeepAlive = fmt.Errorf("%w on %s", errors.ErrUnsupported, runtime.GOOS)

// setKeepAlive returns an error: OpenBSD and Plan 9 have one keepalive for all connections.
func setKeepAlive(*net.TCPConn, KeepAlive) error { return errNoKeepAlive }

func getKeepAlive(*net.TCPConn) (KeepAlive, error) { return KeepAlive{}, errNoKeepAlive }
