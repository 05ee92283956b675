package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

func TestChoose(t *testing.T) {
	four, other4 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	six, other6 := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	for _, c := range []struct {
		addrs     []netip.Addr
		preferred string
		want      netip.Addr
	}{
		{[]netip.Addr{six, other6, four, other4}, config.IP6, six},
		{[]netip.Addr{six, other6, four, other4}, config.IP4, four},
		{[]netip.Addr{four, six}, config.IP6, six},
		{[]netip.Addr{four, other4}, config.IP6, four},
		{[]netip.Addr{six, other6}, config.IP4, six},
	} {
		if got := choose(c.addrs, c.preferred); got != c.want {
			t.Errorf("%v of %v: %v, want %v", c.preferred, c.addrs, got, c.want)
		}
	}
}

// A query that is given up at the resolver's own deadline ends with a timeout, and not
// because its socket was closed: that would not be told from a broken answer. It takes many
// queries for one to lose that race.
func TestQueriesTimeOut(t *testing.T) {
	resolver := newResolver(simnet.NewDNS(t, nil))
	var queries sync.WaitGroup
	for range 300 {
		queries.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			conn, err := resolver.Dial(ctx, "udp", "")
			if err == nil {
				deadline, _ := ctx.Deadline()
				conn.SetDeadline(deadline) // as the resolver does
				_, err = conn.Read(make([]byte, 512))
				conn.Close()
			}
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Error(err)
			}
		})
	}
	queries.Wait()
}

// The resolver's errors have no more than the text of their cause.
func TestFaultOf(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EAGAIN} {
		if got := faultOf(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)}); got != errno {
			t.Errorf("%v, dialling: %v", errno, got)
		}
		err := &net.DNSError{Err: "dial udp 192.0.2.53:53: " + os.NewSyscallError("socket", errno).Error(), Name: "x"}
		if got := faultOf(err); got != errno {
			t.Errorf("%v: %v", err, got)
		}
	}
	for _, err := range []error{nil, errors.New("too many open files"), context.DeadlineExceeded, os.ErrDeadlineExceeded, &net.DNSError{Err: "no such host", IsNotFound: true},
		&net.DNSError{Err: "read udp: connection refused"}} {
		if got := faultOf(err); got != 0 {
			t.Errorf("%v: %v", err, got)
		}
	}
}
