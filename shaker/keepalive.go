package shaker

import (
	"fmt"
	"net"
	"time"
)

// KeepAlive says how the kernel finds out whether an idle peer is still there (TCP keepalive, RFC 9293, section
// 3.8.4). It has the same meaning on every system: the kernel sends the first keepalive when the peer has been silent
// for Idle, and the next ones at each Interval. If Count of them in a row are not answered, the connection ends with
// ETIMEDOUT: Idle + Interval × Count after the peer was heard last. Its zero value disables keepalive.
type KeepAlive struct {
	Idle     time.Duration // 1 s to 32767 s, in whole seconds
	Interval time.Duration // 1 s to 32767 s, in whole seconds
	Count    int           // 1 to 127
}

// DeadAfter returns how long the peer is silent before the connection ends. It is 0 if keepalive is disabled.
func (k KeepAlive) DeadAfter() time.Duration { return k.Idle + time.Duration(k.Count)*k.Interval }

// String returns the keepalive in the form "15s/5s/3", or "off".
func (k KeepAlive) String() string {
	if k == (KeepAlive{}) {
		return "off"
	}
	return fmt.Sprintf("%v/%v/%d", k.Idle, k.Interval, k.Count)
}

// maxKeepAlive is the limit of the kernel for Idle and Interval (MAX_TCP_KEEPIDLE in net/tcp.h).
const maxKeepAlive = 32767 * time.Second

// maxKeepAliveCount is the limit of the kernel for Count (MAX_TCP_KEEPCNT in net/tcp.h).
const maxKeepAliveCount = 127

// Validate returns an error that wraps [os.ErrInvalid] for values that a kernel would reject or truncate.
func (k KeepAlive) Validate() error {
	if k == (KeepAlive{}) {
		return nil
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"idle", k.Idle}, {"interval", k.Interval}} {
		if d.value < time.Second || d.value > maxKeepAlive || d.value%time.Second != 0 {
			return invalid("keepalive %s %v, want whole seconds from 1s to %v", d.name, d.value, maxKeepAlive)
		}
	}
	if k.Count < 1 || k.Count > maxKeepAliveCount {
		return invalid("keepalive count %d, want 1 to %d", k.Count, maxKeepAliveCount)
	}
	return nil
}

// SetKeepAlive sets the keepalive of a connection. On systems that cannot set it for a single connection, OpenBSD and
// Plan 9, the error wraps [errors.ErrUnsupported].
func SetKeepAlive(c *net.TCPConn, k KeepAlive) error {
	err := k.Validate()
	switch {
	case err != nil:
	case k == KeepAlive{}:
		err = c.SetKeepAlive(false)
	default:
		err = setKeepAlive(c, k)
	}
	if err != nil {
		return fmt.Errorf("set keepalive %v: %w", k, err)
	}
	return nil
}

// GetKeepAlive returns the keepalive of a connection. On systems that do not report it, OpenBSD and Plan 9, the error
// wraps [errors.ErrUnsupported].
func GetKeepAlive(c *net.TCPConn) (KeepAlive, error) {
	k, err := getKeepAlive(c)
	if err != nil {
		return KeepAlive{}, fmt.Errorf("get keepalive: %w", err)
	}
	return k, nil
}
