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

	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// Everything that a network may do with a SYN, and what Shake says of it.
func TestFaults(t *testing.T) {
	network := simnet.NewNetwork(t)
	s := start(t)
	faults := network.Conditions()
	findings := make([]simnet.Finding, len(faults))
	var group sync.WaitGroup
	for i, fault := range faults {
		group.Go(func() {
			began := time.Now()
			r, err := s.Shake(context.Background(), fault.Target, &Options{Timeout: fault.Timeout})
			if err == nil {
				err = checkFault(network, fault, r, time.Since(began))
			}
			if err != nil {
				t.Errorf("%s: %v\n%+v\n%s", fault.Name, err, r, network.Trace(fault.Target.Addr()))
			}
			findings[i] = finding(r)
		})
	}
	group.Wait()
	simnet.CompareConditions(t, faults, findings)

	// Where two causes have one errno, the ICMP error tells them apart.
	names := make(map[simnet.Finding]string)
	for i, f := range findings {
		if f.ICMP != "" && strings.HasPrefix(faults[i].Name, "ICMP") && strings.Count(faults[i].Name, ",") == 1 {
			if name, ok := names[f]; ok {
				t.Errorf("%s and %s look the same: %+v", name, faults[i].Name, f)
			}
			names[f] = faults[i].Name
		}
	}
}

// checkFault compares a result, and how long it took, with what was on the wire.
func checkFault(network *simnet.Network, fault simnet.Condition, r Result, took time.Duration) error {
	syns, acks := 0, 0
	for segment := range network.SentTo(fault.Target) {
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
	case r.Peer != fault.Target:
		return errors.New("it is about another target")
	case (r.Outcome == Open) != (r.Err() == nil) || r.Errno != 0 && !errors.Is(r.Err(), r.Errno):
		return fmt.Errorf("its error is %w", r.Err())
	case r.SYNRetransmits != syns-1:
		return fmt.Errorf("%d SYNs were sent", syns)
	case r.Outcome == Open && (r.Handshake < fault.Delay || r.Handshake > fault.Timeout || r.RTT > r.Handshake):
		return fmt.Errorf("the SYN-ACK took %v or more", fault.Delay)
	case (r.Outcome == Timeout) != (took >= fault.Timeout):
		return fmt.Errorf("it took %v of %v", took, fault.Timeout)
	case r.Outcome == Open && r.ACKSent != (acks > 0):
		return fmt.Errorf("%d ACKs were sent", acks)
	}
	return nil
}

// finding is what the result says, as the fault matrix has it.
func finding(r Result) simnet.Finding {
	f := simnet.Finding{Result: r.Outcome.String(), Errno: ErrnoName(r.Errno)}
	if r.ICMP.From.IsValid() {
		f.ICMP = fmt.Sprintf("%d/%d %v from %v", r.ICMP.Type, r.ICMP.Code, r.ICMP, r.ICMP.From)
	}
	if r.Local.IsValid() {
		f.SYNRetransmits = strconv.Itoa(r.SYNRetransmits)
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
	if r.Outcome == Open || r.Outcome == Reset {
		f.ACKSent = map[bool]string{false: "no", true: "yes"}[r.ACKSent]
	}
	return f
}
