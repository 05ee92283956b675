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

// For every network condition, /probe reports the same finding as the library does.
func TestConditions(t *testing.T) {
	network := simnet.NewNetwork(t)
	exporter.Start(t, "--timeout-offset=0")
	conditions := network.Conditions()
	findings := make([]simnet.Finding, len(conditions))
	var group sync.WaitGroup
	for i, condition := range conditions {
		group.Go(func() {
			path, timeout := "/probe?target="+condition.Target.String(), fmt.Sprint(condition.Timeout.Seconds())
			_, body := exporter.Scrape(t, exporter.Port, path, timeout)
			findings[i] = finding(t, strings.NewReader(body))
		})
	}
	group.Wait()
	simnet.CompareConditions(t, conditions, findings, nil)
}

// finding converts a response of /probe to a row of the condition matrix.
func finding(t *testing.T, body io.Reader) simnet.Finding {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(body)
	if err != nil {
		t.Errorf("parse the response of /probe: %v", err)
	}
	var f simnet.Finding
	for name, family := range families {
		metric := family.Metric[0]
		value := metric.Gauge.GetValue()
		number := strconv.FormatFloat(value, 'g', -1, 64)
		switch name {
		case "probe_success":
			if result := label(families["probe_result_info"].Metric[0], "result"); (value == 1) != (result == "open") {
				t.Errorf("probe_success = %v with the result %s, want 1 for open and 0 otherwise", value, result)
			}
		case "probe_result_info":
			f.Result, f.Errno = label(metric, "result"), label(metric, "errno")
		case "probe_icmp_info":
			f.ICMP = fmt.Sprintf("%s/%s %s from %s", label(metric, "icmp_type"), label(metric, "icmp_code"),
				label(metric, "icmp"), label(metric, "from"))
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
				t.Errorf("/probe has the metric %s, want only metrics of the condition matrix", name)
			}
		}
	}
	return f
}

// label returns the value of a label, "" if there is none.
func label(metric *dto.Metric, name string) string {
	for _, pair := range metric.Label {
		if pair.GetName() == name {
			return pair.GetValue()
		}
	}
	return ""
}
