package capture

import (
	"net"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
)

func TestMain(m *testing.M) { lab.Main(m) }

// A capture of a connection to a neighbour begins with the SYN and the SYN-ACK, each with the time at which
// the kernel captured it.
func TestNeighbour(t *testing.T) {
	n := kernel.NewNeighbour(t)
	capture := Interface(t, n.Interface(), n.Target.Addr())
	began := time.Now()
	conn, err := net.DialTimeout("tcp", n.Target.String(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
	segments := capture.Segments()
	if len(segments) < 3 {
		t.Fatalf("captured %v, want at least SYN, SYN-ACK and ACK", segments)
	}
	syn, synack := segments[0], segments[1]
	if !syn.SYN || syn.ACK || syn.Dst != n.Target || !synack.SYN || !synack.ACK || synack.Src != n.Target {
		t.Errorf("captured first %v and %v, want a SYN to %v and a SYN-ACK from it", syn, synack, n.Target)
	}
	if !syn.Time.After(began) || !synack.Time.After(syn.Time) || !time.Now().After(synack.Time) {
		t.Errorf("captured the SYN at %v and the SYN-ACK at %v, want both after %v and in this order",
			syn.Time, synack.Time, began)
	}
}
