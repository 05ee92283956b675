package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Start starts the engine. The text of an error may have further lines, which begin with "hint: ". The warnings are
// about what may not work later, or not for all targets.
func (f *Flags) Start() (s *shaker.Shaker, warnings []string, err error) {
	if f.engine != raw {
		s, err = shaker.New(nil)
		return s, nil, err
	}
	s, err = shaker.New(&shaker.Config{Raw: &shaker.Raw{Ports: shaker.PortRange(f.ports)}})
	if err == nil {
		if err = try(s); err == nil {
			return s, f.warnings(), nil
		}
		s.Close()
	}
	return nil, nil, explained("--probe.engine=raw", err, f.hints(err))
}

// trial is how long a handshake with this host may take.
const trial = 100 * time.Millisecond

// try performs a handshake with this host, to find out at start, and not from the first probe, if it lacks something.
// Any verdict is fine, because a firewall may treat the loopback interface in any way.
func try(s *shaker.Shaker) error {
	own := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), s.Ports().First)
	_, err := s.Shake(context.Background(), own, &shaker.Options{Timeout: trial})
	for _, lacking := range []error{
		syscall.ENOPROTOOPT, syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EINVAL, syscall.EACCES, syscall.EMFILE,
		syscall.ENFILE,
	} {
		if errors.Is(err, lacking) && errors.Is(err, shaker.ErrLocal) {
			return err
		}
	}
	return nil
}

// explained returns an error about a flag, with hints in lines of their own.
func explained(flag string, err error, hints []string) error {
	var text strings.Builder
	for _, hint := range hints {
		fmt.Fprintf(&text, "\nhint: %s", hint)
	}
	return fmt.Errorf("%s: %w%s", flag, err, &text)
}

// hints returns what would help against an error of a Shaker without sockets.
func (f *Flags) hints(err error) []string {
	switch {
	case errors.Is(err, syscall.EPERM):
		return capabilityHints()
	case errors.Is(err, syscall.EADDRINUSE) && f.ports == portRange{}:
		return []string{"give free ports with " + portsFlag +
			"; ss --tcp --all --numeric shows those that are in use, and " +
			"net.ipv4.ip_local_reserved_ports keeps ports from ordinary connections"}
	case errors.Is(err, syscall.EADDRINUSE):
		hints := []string{fmt.Sprintf("ss --tcp --all --numeric --processes 'sport >= :%d and sport <= :%d' shows "+
			"what uses the ports, unless another shaker_exporter has reserved them", f.ports.First, f.ports.Last)}
		if free := freePorts(); free != (shaker.PortRange{}) {
			hints = append(hints, fmt.Sprintf("these ports are free: %s=%v", portsFlag, free))
		}
		return hints
	case errors.Is(err, syscall.EACCES):
		return []string{"ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE; " +
			"give other ports with " + portsFlag}
	case errors.Is(err, syscall.EMFILE):
		return []string{fmt.Sprintf("raise the open file limit (ulimit -n, LimitNOFILE= of systemd): "+
			"the ports and raw sockets take up to %d descriptors", shaker.RawDescriptors)}
	case errors.Is(err, errors.ErrUnsupported), errors.Is(err, syscall.ENOPROTOOPT), errors.Is(err, syscall.EINVAL):
		return []string{"raw requires Linux 5.1 or newer; the default, --probe.engine=socket, works everywhere"}
	}
	return nil
}

// capabilityHints returns how to give CAP_NET_RAW to the exporter alone.
func capabilityHints() []string {
	program, err := os.Executable()
	if err != nil {
		program = "shaker_exporter"
	}
	return []string{
		"systemd: add AmbientCapabilities=CAP_NET_RAW to the unit, for example with the drop-in " +
			"examples/systemd/raw.conf",
		"containers: docker run --user=0 --cap-drop=ALL --cap-add=NET_RAW; " +
			"--cap-add alone has no effect, because the user of the image is not root",
		"Kubernetes: securityContext {runAsUser: 0, runAsNonRoot: false, capabilities: {drop: [ALL], " +
			"add: [NET_RAW]}}; a user other than root would need a file capability, too",
		"elsewhere: setcap cap_net_raw=ep " + program + " (without effect under no_new_privs)",
		"docs/raw.md describes each of them; a package has docs and examples in /usr/share/doc/shaker-exporter",
	}
}

// freePorts returns ports that are free now, the zero range if there are none.
func freePorts() shaker.PortRange {
	ports, err := shaker.ReservePorts(shaker.RawPorts)
	if err != nil {
		return shaker.PortRange{}
	}
	defer ports.Close()
	return ports.PortRange
}

// warnings returns what may not work although the engine has started.
func (f *Flags) warnings() (all []string) {
	if ports := shaker.PortRange(f.ports); f.ports != (portRange{}) {
		if ephemeral, given := ports.Ephemeral(); given {
			all = append(all, fmt.Sprintf("%s is %v, and the kernel gives the ports %v to connections "+
				"(net.ipv4.ip_local_port_range): at the next start, one of the ports may be in use. "+
				"Want other ports, or %[2]v in net.ipv4.ip_local_reserved_ports", portsFlag, ports, ephemeral))
		}
	}
	// Older kernels, and those without VRFs, do not have it.
	if accept, err := os.ReadFile("/proc/sys/net/ipv4/raw_l3mdev_accept"); err == nil &&
		strings.TrimSpace(string(accept)) == "0" {
		all = append(all, "net.ipv4.raw_l3mdev_accept is 0, so that raw sockets get no answers that arrive through "+
			"a VRF: targets behind a VRF have the result timeout. Want 1")
	}
	return all
}
