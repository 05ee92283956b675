package endtoend

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// Everything that a network may do with a SYN, and what /probe says of it: the same as the
// library.
func TestFaults(t *testing.T) {
	network := simnet.NewNetwork(t)
	exporter.Start(t, "--timeout-offset=0")
	faults := network.Conditions()
	findings := make([]simnet.Finding, len(faults))
	var group sync.WaitGroup
	for i, fault := range faults {
		group.Go(func() {
			_, body := exporter.Scrape(t, 10115, "/probe?target="+fault.Target.String(), fmt.Sprint(fault.Timeout.Seconds()))
			findings[i] = finding(t, strings.NewReader(body))
		})
	}
	group.Wait()
	simnet.CompareConditions(t, faults, findings)
}

// finding is what an answer of /probe says, as the fault matrix has it.
func finding(t *testing.T, body io.Reader) simnet.Finding {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(body)
	if err != nil {
		t.Error(err)
	}
	var f simnet.Finding
	for name, family := range families {
		metric := family.Metric[0]
		value := metric.Gauge.GetValue()
		number := strconv.FormatFloat(value, 'g', -1, 64)
		switch name {
		case "probe_success":
			if (value == 1) != (label(families["probe_result_info"].Metric[0], "result") == "open") {
				t.Errorf("probe_success is %v: %v", value, families)
			}
		case "probe_result_info":
			f.Result, f.Errno = label(metric, "result"), label(metric, "errno")
		case "probe_icmp_info":
			f.ICMP = fmt.Sprintf("%s/%s %s from %s", label(metric, "icmp_type"), label(metric, "icmp_code"), label(metric, "icmp"), label(metric, "from"))
		case "probe_tcp_syn_retransmits":
			f.SYNRetransmits = number
		case "probe_tcp_handshake_seconds":
			f.Handshake = "yes"
		case "probe_tcp_rtt_seconds":
			f.RTT = "yes"
		case "probe_tcp_mss_bytes":
			f.MSS = number
		case "probe_tcp_ack_sent":
			f.ACKSent = map[float64]string{0: "no", 1: "yes"}[value]
		default:
			if !strings.HasPrefix(name, "probe_duration") && !strings.HasPrefix(name, "probe_timeout") &&
				!strings.HasPrefix(name, "probe_dns") && !strings.HasPrefix(name, "probe_ip_") {
				t.Errorf("%s is not in the fault matrix", name)
			}
		}
	}
	return f
}

func label(metric *dto.Metric, name string) string {
	for _, pair := range metric.Label {
		if pair.GetName() == name {
			return pair.GetValue()
		}
	}
	return ""
}
