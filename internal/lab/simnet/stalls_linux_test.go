package simnet

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// A program that the kernel prefers to the hearts themselves is to them what a hypervisor is. The
// ACK that is late because of it is left out, and no other ACK.
func TestWatchStalls(t *testing.T) {
	lab.NeedRoot(t)
	w := NewWire(t, nil)
	w.WatchStalls()
	if w.hearts == nil {
		lab.Skip(t, "needs SCHED_FIFO")
	}
	hog := process.Start(t, exec.Command("sh", "-c", "while :; do :; done"))
	var allowed, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if allowed.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(hog.PID(), &one); err != nil {
		t.Fatal(err)
	}
	preferred := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 2}
	if err := unix.SchedSetAttr(hog.PID(), &preferred, 0); err != nil {
		t.Fatal(err)
	}
	from := time.Since(w.record.began)
	time.Sleep(300 * time.Millisecond)
	to := time.Since(w.record.began)
	hog.Stop()
	// The SYN-ACK of the one came before that time, the SYN-ACK of the other at its end.
	stallsOwn, other := timedACK{Segment{Seq: 1}, from, to}, timedACK{Segment{Seq: 2}, to, to}
	if acks := w.withoutStalls([]timedACK{stallsOwn, other}); len(acks) != 1 || acks[0].Seq != 2 {
		t.Errorf("after a stall of %v, withoutStalls = %v, want only the ACK with sequence number 2", to-from, acks)
	}
}
