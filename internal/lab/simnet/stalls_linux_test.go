package simnet

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// After a stall, withoutStalls leaves out the ACK that is late because of it, and no other ACK. In place of a
// hypervisor, a program that the kernel prefers to the hearts takes a processor away.
func TestWatchStalls(t *testing.T) {
	lab.NeedRoot(t)
	w := NewWire(t, nil)
	w.WatchStalls()
	if w.hearts == nil {
		lab.Skip(t, "needs the privilege for SCHED_FIFO (CAP_SYS_NICE, and a cgroup with real-time run time)")
	}
	hog := process.Start(t, exec.Command(lab.Program(t, "sh", "dash"), "-c", "while :; do :; done"))
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
	late := timedACK{Segment: Segment{Seq: 1}, synack: from, at: to} // its SYN-ACK came before the stall
	other := timedACK{Segment: Segment{Seq: 2}, synack: to, at: to}  // its SYN-ACK came after the stall
	if acks := w.withoutStalls([]timedACK{late, other}); len(acks) != 1 || acks[0].Seq != 2 {
		t.Errorf("after a stall of %v, withoutStalls = %v, want only the ACK with sequence number 2", to-from, acks)
	}
}
