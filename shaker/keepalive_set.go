//go:build aix || darwin || dragonfly || freebsd || linux || netbsd || solaris || windows

package shaker

import "net"

func setKeepAlive(c *net.TCPConn, k KeepAlive) error {
	return c.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: k.Idle, Interval: k.Interval, Count: k.Count,
	})
}
