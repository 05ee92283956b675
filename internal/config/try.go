package config

import (
	"errors"
	"runtime"
	"syscall"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// try finds out whether this process may use an option on this host. What this host may
// come to have is only worth a warning.
func (v value) try(options shaker.Options) { v.judge(options.Check()) }

func (v value) judge(err error) {
	switch {
	case err == nil:
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.EADDRNOTAVAIL):
		v.warn("is %s, which this host does not have: until it does, the module's probes are faults", v.quote())
	case errors.Is(err, syscall.EPERM):
		v.refuse("needs CAP_NET_ADMIN or CAP_NET_RAW, which this process lacks: setcap cap_net_raw+ep, or AmbientCapabilities=CAP_NET_RAW in the systemd unit")
	case errors.Is(err, syscall.ENOPROTOOPT):
		v.refuse("is more than this kernel knows, want a newer one: Linux 6.3 knows all")
	case errors.Is(err, errors.ErrUnsupported):
		v.refuse("cannot be had on %s", runtime.GOOS)
	default:
		v.refuse("cannot be used: %v", err)
	}
}
