package shaker

import (
	"errors"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/windows"
)

// getKeepAlive reads the options of the socket, whose units are seconds. They exist since Windows 10, version 1709.
func getKeepAlive(c *net.TCPConn) (k KeepAlive, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return KeepAlive{}, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		get := func(level, option int) (value int) {
			if failed == nil {
				value, failed = syscall.GetsockoptInt(syscall.Handle(fd), level, option)
			}
			return value
		}
		if get(windows.SOL_SOCKET, windows.SO_KEEPALIVE) == 0 {
			return
		}
		k.Idle = time.Duration(get(windows.IPPROTO_TCP, windows.TCP_KEEPIDLE)) * time.Second
		k.Interval = time.Duration(get(windows.IPPROTO_TCP, windows.TCP_KEEPINTVL)) * time.Second
		k.Count = get(windows.IPPROTO_TCP, windows.TCP_KEEPCNT)
	})
	return k, errors.Join(err, failed)
}
