//go:build aix || dragonfly || freebsd || linux || netbsd || solaris

package shaker

import "golang.org/x/sys/unix"

const tcpKeepIdle = unix.TCP_KEEPIDLE
