// Package engine starts the engine that performs handshakes, package shaker, as the flags --probe.engine and
// --probe.raw-ports of a command say. If this host cannot do what they say, the error says what would help.
package engine

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/alecthomas/kingpin/v2"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// The values of --probe.engine.
const (
	socket = "socket"
	raw    = "raw"
)

// portsFlag is the name of the flag for the ports of SYNs without a socket.
const portsFlag = "--probe.raw-ports"

// engineVariable is an environment variable with the default of --probe.engine. A drop-in of systemd can set it,
// whatever the path of the program is, and whether or not the service already has the flag.
const engineVariable = "SHAKER_PROBE_ENGINE"

// An engineName is a value of --probe.engine, valid or not: an error of Set would not contain the name of the variable.
type engineName string

func (n *engineName) Set(text string) error {
	*n = engineName(text)
	return nil
}

func (n *engineName) String() string { return string(*n) }

// Flags are the flags about the engine, which several commands have.
type Flags struct {
	engine engineName
	ports  portRange
}

// Register adds the flags to a command.
func (f *Flags) Register(cmd *kingpin.CmdClause) {
	cmd.Flag("probe.engine",
		"How to send SYNs: through sockets, which needs no privilege, or without them, which needs CAP_NET_RAW and "+
			"never sends a final ACK. One of: [socket, raw]").
		Default(socket).Envar(engineVariable).SetValue(&f.engine)
	cmd.Flag("probe.raw-ports", fmt.Sprintf("The %d ports from which SYNs without a socket are sent, with "+
		"--probe.engine=raw. By default, free ports below net.ipv4.ip_local_port_range.", shaker.RawPorts)).
		PlaceHolder("<ports>").SetValue(&f.ports)
}

// Validate returns a usage error if a value is invalid, or the flags contradict each other.
func (f *Flags) Validate() error {
	if f.engine != socket && f.engine != raw {
		name := "--probe.engine"
		if value := os.Getenv(engineVariable); value != "" && value == string(f.engine) {
			name = engineVariable
		}
		return fmt.Errorf("%s is %q, want one of %s, %s", name, f.engine, socket, raw)
	}
	if f.ports != (portRange{}) && f.engine != raw {
		return errors.New(portsFlag + " requires --probe.engine=raw")
	}
	return nil
}

// Engine returns the name of the engine: socket or raw.
func (f *Flags) Engine() string { return string(f.engine) }

// Attributes returns what the log says about the engine.
func (f *Flags) Attributes(s *shaker.Shaker) []any {
	if f.engine == raw {
		return []any{"engine", raw, "raw_ports", s.Ports()}
	}
	return []any{"engine", f.Engine()}
}

// Descriptors returns how many descriptors the engine holds at most, without those of handshakes: one for each
// processor, and those of raw sockets and their ports.
func (f *Flags) Descriptors() int {
	n := runtime.GOMAXPROCS(0)
	if f.engine == raw {
		n += shaker.RawDescriptors
	}
	return n
}

// A portRange is the value of a flag such as 20000-20127.
type portRange shaker.PortRange

func (r *portRange) String() string {
	if *r == (portRange{}) {
		return ""
	}
	return shaker.PortRange(*r).String()
}

// Set implements kingpin.Value.
func (r *portRange) Set(text string) error {
	first, last, _ := strings.Cut(text, "-")
	from, err1 := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	ports := shaker.PortRange{First: uint16(from), Last: uint16(to)}
	if errors.Join(err1, err2) != nil || ports.String() != text || (&shaker.Raw{Ports: ports}).Validate() != nil {
		return fmt.Errorf("want FIRST-LAST, %d ports from 1024 on, such as 20000-%d", shaker.RawPorts,
			20000+shaker.RawPorts-1)
	}
	*r = portRange(ports)
	return nil
}
