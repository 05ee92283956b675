package kernel

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A socket whose line the kernel repeats is counted once. Sockets that differ in one port are not the same.
func TestParseSockets(t *testing.T) {
	const tables = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2783 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1 0 100 0 0 10 0
   1: 0100007F:C350 0100007F:0051 01 0000000C:00000000 00:00000000 00000000     0        0 8 1 0 20 4 30 10 -1
   2: 0100007F:C351 0100007F:0051 01 00000000:00000000 00:00000000 00000000     0        0 9 1 0 20 4 30 10 -1
   2: 0100007F:C350 0100007F:0051 01 0000000C:00000000 00:00000000 00000000     0        0 8 1 0 20 4 30 10 -1
`
	got, err := parseSockets(tables)
	want := []Socket{
		{State: unix.BPF_TCP_LISTEN, Near: 10115},
		{State: unix.BPF_TCP_ESTABLISHED, Near: 50000, Far: 81, Unacked: 12},
		{State: unix.BPF_TCP_ESTABLISHED, Near: 50001, Far: 81},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("parseSockets(%s) = %+v, error %v, want %+v", tables, got, err, want)
	}
}
