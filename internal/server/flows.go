package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/probe"
)

// whenListening lets a server call a function once it listens on all of its addresses, before it serves requests.
func whenListening(server *http.Server, call func()) {
	var once sync.Once
	server.BaseContext = func(net.Listener) context.Context {
		once.Do(call)
		return context.Background()
	}
}

// reserveFlowPorts reserves the ports of the flows of all modules, and logs them, because other modules, or programs
// that have ports now, change them.
func reserveFlowPorts(prober *probe.Prober, logger *slog.Logger) {
	all, err := prober.ReserveFlowPorts()
	if err != nil {
		logger.Warn("Cannot reserve the ports of flows: probes with flows may be answered with status 503", "err", err)
	}
	var reserved, sockets, shared []string
	for _, flows := range all {
		text := fmt.Sprintf("%s %v", flows.Module, flows.Ports)
		switch {
		case !flows.Fixed:
			reserved = append(reserved, text)
		case flows.Raw:
			shared = append(shared, text)
		}
		if !flows.Raw {
			sockets = append(sockets, flows.Module)
		}
	}
	if len(reserved) > 0 {
		logger.Info("Ports of flows", "reserved", strings.Join(reserved, ", "))
	}
	if len(shared) > 0 {
		logger.Warn("The tcp.source_ports of flows are among the ports of the raw engine, from which other probes are "+
			"sent, too: while another one has a handshake with the same address, a probe is answered with status 503. "+
			"Want ports outside of --probe.raw-ports", "modules", strings.Join(shared, ", "))
	}
	if prober.IsRaw() && len(sockets) > 0 {
		logger.Info("Flows use sockets although the engine is raw, because their ports are not those of the engine",
			"modules", strings.Join(sockets, ", "))
	}
}

// warnListening logs which flows of a configuration will be left out because the exporter itself listens on their
// ports. The check of the configuration does not find that, because the exporter does not listen yet.
func warnListening(logger *slog.Logger, conf *config.Config, addresses []string) {
	for _, address := range addresses {
		_, text, err := net.SplitHostPort(address)
		if err != nil {
			continue // the server reports it
		}
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			continue // vsock, or the name of a service
		}
		if modules := conf.FlowsFrom(uint16(port)); len(modules) > 0 {
			logger.Warn("The exporter itself listens on a port of flows (--web.listen-address), which are left out: "+
				"want other tcp.source_ports", "source_port", port, "modules", strings.Join(modules, ", "))
		}
	}
}

// logLeftOut logs which flows of a module are left out. It is for [probe.Options].
func logLeftOut(logger *slog.Logger, module, protocol string, ports []uint16) {
	if len(ports) == 0 {
		logger.Info("No flows left out any more", "module", module, "ip_protocol", protocol)
		return
	}
	logger.Warn("Flows left out, because other programs have their ports",
		"module", module, "ip_protocol", protocol, "source_ports", ports)
}
