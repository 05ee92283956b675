package server

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// follow looks at the RSTs of a raw engine until the context ends.
func (w *resetWatch) follow(ctx context.Context, engine *shaker.Shaker) {
	if engine.Ports() == (shaker.PortRange{}) {
		return
	}
	ticker := time.NewTicker(5 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			w.look(engine.Resets())
		}
	}
}

// A resetWatch logs when RSTs begin not to arrive, and when they arrive again.
type resetWatch struct {
	logger  *slog.Logger
	settled uint64        // handshakes for which it is known by now whether the RST is missing
	judged  shaker.Resets // as far as they have been judged
	bad     atomic.Bool   // the RSTs do not arrive
}

// look judges the handshakes that have ended before the previous look: a SYN-ACK is sent again only seconds later. A
// few RSTs are always lost in the network.
func (w *resetWatch) look(now shaker.Resets) {
	const enough = 10
	handshakes, missing := w.settled-w.judged.Checked, now.Missing-w.judged.Missing
	if handshakes >= enough {
		w.judged = shaker.Resets{Checked: w.settled, Missing: now.Missing}
		bad := missing > handshakes/4
		before := w.bad.Swap(bad)
		switch {
		case bad && !before:
			w.logger.Warn("The RSTs of this host do not arrive, so that targets keep half-open connections: "+
				"let RSTs pass the firewall of this host, or use --probe.engine=socket",
				"handshakes", handshakes, "missing", missing)
		case before && !bad:
			w.logger.Info("The RSTs of this host arrive again", "handshakes", handshakes, "missing", missing)
		}
	}
	w.settled = now.Checked
}
