package probe

import (
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/config"
	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
	"github.com/shaker-exporter/shaker_exporter/shaker"
)

func TestMain(m *testing.M) { lab.Main(m) }

// Each address has the time of its own verdict, not that of the slowest.
func TestAddressesHaveTheirOwnTimes(t *testing.T) {
	network := simnet.NewNetwork(t)
	network.At("192.0.2.2", simnet.RST())
	conf, _, err := config.Parse("test.yml", []byte(`modules: {all: {prober: tcp, timeout: 400ms, tcp: {addresses: all}}}`))
	if err != nil {
		t.Fatal(err)
	}
	engine, err := shaker.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	p := New(Options{
		Shaker:  engine,
		Config:  conf,
		DialDNS: simnet.NewDNS(t, simnet.Names{"two.example": {"192.0.2.2", "192.0.2.9"}}),
	})
	req, err := NewRequest(conf, "two.example:80", "all")
	if err != nil {
		t.Fatal(err)
	}
	report, err := p.Probe(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	records := report.Records()
	if len(records) != 2 || records[0].Duration >= records[1].Duration/2 || records[1].Duration < 400*time.Millisecond {
		t.Errorf("records = %+v, want the first in less than half of the time of the second, and that after 400 ms", records)
	}
}
