package history

import (
	"fmt"
	"testing"
	"time"
)

// flowsOf returns flows from a first port on: o succeeded, x failed, and the one of a space was left out.
func flowsOf(first uint16, results string) *Flows {
	f := &Flows{}
	for i, c := range results {
		if c != ' ' {
			f.Add(Flow{Port: first + uint16(i), Success: c == 'o'})
		}
	}
	return f
}

func TestFlows(t *testing.T) {
	last := fmt.Sprintf("%63s", "x") // the highest of 64 ports
	for _, c := range []struct {
		results     string
		len, failed int
		ports       string
	}{
		{results: "", len: 0, failed: 0, ports: "[]"},
		{results: "oooo", len: 4, failed: 0, ports: "[]"},
		{results: "xoxo", len: 4, failed: 2, ports: "[20000 20002]"},
		{results: "xxx", len: 3, failed: 3, ports: "[20000 20001 20002]"},
		{results: "  x ox", len: 3, failed: 2, ports: "[20002 20005]"}, // ports in use are left out
		{results: "o" + last, len: 2, failed: 1, ports: "[20063]"},
	} {
		f := flowsOf(20000, c.results)
		if f.Len() != c.len || f.Failed() != c.failed || fmt.Sprint(f.FailedPorts()) != c.ports {
			t.Errorf("flows %q: Len() = %d, Failed() = %d, FailedPorts() = %v, want %d, %d, %s",
				c.results, f.Len(), f.Failed(), f.FailedPorts(), c.len, c.failed, c.ports)
		}
	}
}

// The history keeps the results of single flows only for the latest probe of a target, and which failed for all.
func TestFlowsAreBounded(t *testing.T) {
	h := New(1000)
	for i := range 3 {
		flows := flowsOf(20000, "oxoo")
		flows.Traced = true
		h.Add("a:1", "m", Record{Time: time.Unix(int64(i), 0), Flows: flows}, nil)
		if flows.Each == nil {
			t.Errorf("Add has changed the flows of its caller")
		}
	}
	before := h.Tracks("a:1", "m")[0].Last().Flows
	h.Add("a:1", "m", Record{Time: time.Unix(3, 0), Flows: flowsOf(20000, "oxxo")}, nil)
	if len(before.Each) != 4 {
		t.Errorf("a track that was read before the next probe has %d flows, want 4", len(before.Each))
	}
	records := h.Tracks("a:1", "m")[0].Records
	for i, r := range records {
		each, failed := 0, 1
		if i == len(records)-1 {
			each, failed = 4, 2
		}
		if len(r.Flows.Each) != each || r.Flows.Failed() != failed || r.Flows.Traced != (i < 3) {
			t.Errorf("record %d of %d has %d flows, %d failed, traced %t; want %d, %d, %t",
				i, len(records), len(r.Flows.Each), r.Flows.Failed(), r.Flows.Traced, each, failed, i < 3)
		}
	}
}
