package pages

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/history"
)

// flowsOf returns flows from port 20000 on: o is open, t is a timeout and r is refused.
func flowsOf(results string) *history.Flows {
	f := &history.Flows{}
	for i, c := range results {
		flow := history.Flow{Port: 20000 + uint16(i)}
		switch c {
		case 'o':
			flow.Success, flow.Result, flow.Latency = true, "open", time.Duration(i+1)*time.Millisecond
		case 't':
			flow.Result, flow.Errno = "timeout", "ETIMEDOUT"
		case 'r':
			flow.Result, flow.Errno = "refused", "ECONNREFUSED"
		}
		f.Add(flow)
	}
	return f
}

// partedFlows returns flows whose paths part after the shared hop. "" is a hop that is not known.
func partedFlows(results, shared, failed string) *history.Flows {
	f := flowsOf(results)
	f.Traced = true
	f.Shared.Address, _ = netip.ParseAddr(shared)
	f.Parted.Address, _ = netip.ParseAddr(failed)
	f.Shared.TTL, f.Parted.TTL = 3, 4
	return f
}

// The page has a cell for each flow of a target, and says where their paths part.
func TestFlows(t *testing.T) {
	broken := track("broken:1", "t", 0)
	broken.Records[0].Flows = partedFlows("otro", "192.0.2.7", "192.0.2.9")
	body := home(t, newPages(broken, track("plain:1", "t", 0)))
	const want = `
          <div class="flows"><span role="img" aria-label="2 of 4 flows failed: ports 20001, 20002">` +
		`<i class="good" title="port 20000: open, RTT 1.00 ms"></i>` +
		`<i class="lost" title="port 20001: timeout (ETIMEDOUT)"></i>` +
		`<i class="bad" title="port 20002: refused (ECONNREFUSED)"></i>` +
		`<i class="good" title="port 20003: open, RTT 4.00 ms"></i></span> 2 of 4 flows failed</div>` +
		`<span class="why">paths part after 192.0.2.7 (hop 3): flows fail at or behind 192.0.2.9 (hop 4)</span>`
	if !strings.Contains(body, want) {
		t.Errorf("the page does not contain%s\nIt is:\n%s", want, body)
	}
	if n := strings.Count(body, `class="flows"`); n != 1 {
		t.Errorf("the page has %d strips of flows, want 1", n)
	}
	good := track("good:1", "o", 0)
	good.Records[0].Flows = flowsOf("oo")
	good.Records[0].Flows.LeftOut = []uint16{20002, 20003}
	body = home(t, newPages(good))
	const leftOut = "both flows succeeded; 2 left out, because other programs have their ports: 20002, 20003</div>"
	if !strings.Contains(body, leftOut) {
		t.Errorf("the page does not contain %s:\n%s", leftOut, body)
	}
	good.Records[0].Flows.LeftOut = nil
	body = home(t, newPages(good))
	if !strings.Contains(body, "both flows succeeded</div>") || strings.Contains(body, "paths part") {
		t.Errorf("the page of a target without failing flows does not say so, or says that paths part:\n%s", body)
	}
}

// The page and /logs also say how many flows to other addresses of a name failed.
func TestFlowsToOtherAddresses(t *testing.T) {
	const others = "192.0.2.1: 1 of 4 flows failed"
	name := track("name:1", "t", 0)
	name.Records[0].Flows = flowsOf("otto")
	name.Records[0].Flows.Others = others
	if body, want := home(t, newPages(name)), "2 of 4 flows failed; "+others+"</div>"; !strings.Contains(body, want) {
		t.Errorf("the page does not contain %q:\n%s", want, body)
	}
	if got, want := failedFlows(&name.Records[0]), "2 of 4 flows failed: ports 20001, 20002; "+others; got != want {
		t.Errorf("/logs says %q, want %q", got, want)
	}
}

// /logs says which flows failed, and where their paths part.
func TestLogsOfFlows(t *testing.T) {
	tr := track("a:1", "ottt", 0)
	for i, flows := range []*history.Flows{
		flowsOf("oooo"), flowsOf("oxot"), partedFlows("tttoo", "192.0.2.7", ""), flowsOf("tttt"),
	} {
		flows.Each = nil // as in the history
		tr.Records[i].Flows = flows
	}
	tr.Records[0].Flows.LeftOut = []uint16{20004}
	tr.Records[1].Reason = "a reason"
	p := newPages(tr)
	const parted = "3 of 5 flows failed: ports 20000 to 20002; " +
		"flows fail behind 192.0.2.7 (hop 3), which others pass"
	text := get(p.Logs, "").Body.String()
	for _, want := range []string{
		"  all 4 flows failed\n", "  " + parted + "\n",
		"  a reason; 2 of 4 flows failed: ports 20001, 20003\n",
		"  1 left out, because another program has its port: 20004\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("/logs has no line that ends in %q:\n%s", want, text)
		}
	}
	html := browse(p, "").Body.String()
	for _, want := range []string{
		`<span class="why">all 4 flows failed</span>`, `<span class="why">` + parted + `</span>`,
		`<span class="why">2 of 4 flows failed: ports 20001, 20003</span>`,
	} {
		if !strings.Contains(html, want) {
			t.Errorf("/logs for a browser does not contain %s:\n%s", want, html)
		}
	}
	if strings.Contains(text+html, "succeeded") {
		t.Errorf("/logs says that flows succeeded, want only those that failed:\n%s", text)
	}
}
