package server

import "log/slog"

// logLeftOut logs which flows of a module are left out. It is for [probe.Options].
func logLeftOut(logger *slog.Logger, module, protocol string, ports []uint16) {
	if len(ports) == 0 {
		logger.Info("No flows left out any more", "module", module, "ip_protocol", protocol)
		return
	}
	logger.Warn("Flows left out, because other programs have their ports",
		"module", module, "ip_protocol", protocol, "source_ports", ports)
}
