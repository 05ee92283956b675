package shaker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// Shake returns the right verdict under every network condition of the matrix, with sockets and without.
func TestNetworkConditions(t *testing.T) {
	if lab.Apart(t) {
		return
	}
	var conditions []simnet.Condition
	var sockets, raw []simnet.Finding
	t.Run("sockets", func(t *testing.T) { conditions, sockets = findings(t) })
	t.Run("raw", func(t *testing.T) { withoutSocketsIn(t); _, raw = findings(t) })
	if sockets == nil || raw == nil {
		return // skipped
	}
	simnet.CompareConditions(t, conditions, sockets, raw)

	// Two conditions with the same errno differ in their ICMP error.
	for _, all := range [][]simnet.Finding{sockets, raw} {
		names := make(map[simnet.Finding]string)
		for i, f := range all {
			name := conditions[i].Name
			if f.ICMP != "" && strings.HasPrefix(name, "ICMP") && strings.Count(name, ",") == 1 {
				if other, ok := names[f]; ok {
					t.Errorf("%s and %s have the same result, want different ones: %+v", other, name, f)
				}
				names[f] = name
			}
		}
	}
}

// findings shakes hands under every network condition.
func findings(t *testing.T) ([]simnet.Condition, []simnet.Finding) {
	network := simnet.NewNetwork(t)
	s := start(t)
	conditions := network.Conditions()
	findings := make([]simnet.Finding, len(conditions))
	var group sync.WaitGroup
	for i, condition := range conditions {
		group.Go(func() {
			began := time.Now()
			r, err := s.Shake(context.Background(), condition.Target, &Options{Timeout: condition.Timeout})
			if err == nil {
				err = checkCondition(network, condition, r, time.Since(began))
			}
			if err != nil {
				t.Errorf("%s: Shake(%v) = %+v: %v\n%s", condition.Name, condition.Target, r, err,
					network.Trace(condition.Target.Addr()))
			}
			findings[i] = finding(r)
		})
	}
	group.Wait()
	return conditions, findings
}

// checkCondition compares a result, and how long it took, with what was on the wire.
func checkCondition(network *simnet.Network, condition simnet.Condition, r Result, took time.Duration) error {
	syns, acks := 0, 0
	for segment := range network.SentTo(condition.Target) {
		switch {
		case segment.SYN && segment.ACK && acks == 0: // a simultaneous open
			acks++
		case segment.SYN:
			syns++
		case segment.ACK && !segment.RST:
			acks++
		}
	}
	switch {
	case r.Peer != condition.Target:
		return fmt.Errorf("the peer is %v, want %v", r.Peer, condition.Target)
	case (r.Outcome == Open) != (r.Err() == nil) || r.Errno != 0 && !errors.Is(r.Err(), r.Errno):
		return fmt.Errorf("Err() is %w, want nil if Open, and otherwise an error that wraps %v", r.Err(), r.Errno)
	case r.SYNs != syns:
		return fmt.Errorf("SYNs is %d, want %d as on the wire", r.SYNs, syns)
	case r.Outcome == Open &&
		(r.Handshake < condition.Delay || r.Handshake > condition.Timeout || r.RTT > r.Handshake):
		return fmt.Errorf("the handshake took %v with an RTT of %v, want %v to %v and at least the RTT",
			r.Handshake, r.RTT, condition.Delay, condition.Timeout)
	case (r.Outcome == Timeout) != (took >= condition.Timeout):
		return fmt.Errorf("%v after %v, want Timeout if that is %v or more, and only then",
			r.Outcome, took, condition.Timeout)
	case r.Outcome == Open && r.ACKSent != (acks > 0):
		return fmt.Errorf("ACKSent is %t, want %t: %d ACKs were sent", r.ACKSent, acks > 0, acks)
	case r.ACKWithheld != ((r.Outcome == Open || r.Outcome == Reset) && !r.ACKSent && r.ResetLag < ackDelay):
		return fmt.Errorf("ACKWithheld is %t, ACKSent %t, want one of them after a SYN-ACK, and only then",
			r.ACKWithheld, r.ACKSent)
	}
	return nil
}

// finding returns the result in the form of the matrix of network conditions.
func finding(r Result) simnet.Finding {
	f := simnet.Finding{Result: r.Outcome.String(), Errno: ErrnoName(r.Errno)}
	if r.ICMP.From.IsValid() {
		f.ICMP = fmt.Sprintf("%d/%d %v from %v", r.ICMP.Type, r.ICMP.Code, r.ICMP, r.ICMP.From)
	}
	if r.SYNs > 0 {
		f.SYNRetransmits = strconv.Itoa(r.SYNs - 1)
	}
	measured := func(d time.Duration) string {
		if d > 0 {
			return "yes"
		}
		return ""
	}
	f.Handshake, f.RTT = measured(r.Handshake), measured(r.RTT)
	if r.MSS > 0 {
		f.MSS = strconv.Itoa(r.MSS)
	}
	if r.TTL > 0 {
		f.TTL = strconv.Itoa(int(r.TTL))
	}
	if r.Outcome == Open || r.Outcome == Reset {
		f.ACKSent = map[bool]string{false: "no", true: "yes"}[r.ACKSent]
	}
	return f
}
