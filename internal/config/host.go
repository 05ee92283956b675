package config

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// checkHost refuses a value if this process may not use its options on this host. If the host may
// support them later, there is only a warning.
func (v value) checkHost(options shaker.Options) { v.judge(options.Check()) }

func (v value) judge(err error) {
	switch {
	case err == nil:
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.EADDRNOTAVAIL):
		v.warn("is %s, which this host does not have: until it does, probes with this module are answered with 503",
			v.quote())
	case errors.Is(err, syscall.EPERM):
		v.refuse("needs CAP_NET_ADMIN or CAP_NET_RAW, which this process lacks: " +
			"use setcap cap_net_raw+ep, or AmbientCapabilities=CAP_NET_RAW in the systemd unit")
	case errors.Is(err, syscall.ENOPROTOOPT):
		v.refuse("is not supported by this kernel: Linux 6.3 or later supports every key")
	case errors.Is(err, errors.ErrUnsupported):
		v.refuse("is not supported on %s", runtime.GOOS)
	default:
		v.refuse("cannot be used: %v", err)
	}
}

func (v value) warn(format string, args ...any) {
	text := fmt.Sprintf("%s "+format, append([]any{v.path}, args...)...)
	v.file.warnings = append(v.file.warnings, problem{line: v.line, text: text})
}

// sourceOptions returns the options that show whether this host has the source address. If the
// address is one of a VRF, this host has it only with the interface, so the interface is included
// unless it has a problem of its own.
func sourceOptions(t *TCP) shaker.Options {
	options := shaker.Options{Interface: t.Interface}
	if options.Check() != nil {
		options.Interface = ""
	}
	options.Source = t.SourceIPAddress
	return options
}
