//go:build aix || darwin || dragonfly || freebsd || linux || netbsd || solaris

package shaker

import (
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// getKeepAlive reads the options of the socket.
func getKeepAlive(c *net.TCPConn) (k KeepAlive, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return KeepAlive{}, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		get := func(level, option int) (value int) {
			if failed == nil {
				value, failed = unix.GetsockoptInt(int(fd), level, option)
			}
			return value
		}
		if get(unix.SOL_SOCKET, unix.SO_KEEPALIVE) == 0 {
			return
		}
		k.Idle = time.Duration(get(unix.IPPROTO_TCP, tcpKeepIdle)) * time.Second
		k.Interval = time.Duration(get(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL)) * time.Second
		k.Count = get(unix.IPPROTO_TCP, unix.TCP_KEEPCNT)
	})
	return k, errors.Join(err, failed)
}
