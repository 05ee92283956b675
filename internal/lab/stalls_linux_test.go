package lab

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A heart is late by as much as its processor stood still, within the time in question.
func TestStoodStill(t *testing.T) {
	const ms = time.Millisecond
	var beats []beat
	for at := time.Duration(0); at <= time.Second; at += beatEvery {
		beats = append(beats, beat{0, int64(at)})
		if at < 300*ms || at >= 500*ms && at < 600*ms || at >= 700*ms {
			beats = append(beats, beat{1, int64(at + ms)})
		}
	}
	for _, c := range []struct{ from, to, want time.Duration }{
		{0, 290 * ms, 0},
		{0, 400 * ms, 400*ms - 291*ms - 2*beatEvery},
		{0, 450 * ms, 450*ms - 291*ms - 2*beatEvery},
		{400 * ms, 550 * ms, 501*ms - 400*ms - 2*beatEvery},
		{0, time.Second, 501*ms - 291*ms + 701*ms - 591*ms - 4*beatEvery},
		{510 * ms, 580 * ms, 0},
		{400 * ms, 410 * ms, 0},
	} {
		if got := stoodStill(beats, c.from, c.to); got != c.want {
			t.Errorf("between %v and %v %v, want %v", c.from, c.to, got, c.want)
		}
	}
}

// What is preferred to the hearts themselves is to them what a hypervisor is: what is late by it
// is forgiven, and nothing else.
func TestWatchStalls(t *testing.T) {
	NeedRoot(t)
	w := NewWire(t, nil)
	w.WatchStalls()
	if w.hearts == nil {
		Skip(t, "needs SCHED_FIFO")
	}
	hog := Start(t, exec.Command("sh", "-c", "while :; do :; done"))
	pid := hog.cmd.Process.Pid
	var one unix.CPUSet
	one.Set(processors()[0])
	if err := unix.SchedSetaffinity(pid, &one); err != nil {
		t.Fatal(err)
	}
	preferred := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 2}
	if err := unix.SchedSetAttr(pid, &preferred, 0); err != nil {
		t.Fatal(err)
	}
	from := time.Since(w.record.began)
	time.Sleep(300 * time.Millisecond)
	to := time.Since(w.record.began)
	hog.Stop()
	// Of two ACKs at the end of that, one had its SYN-ACK before it, and one after it.
	forgiven, own := timedACK{Segment{Seq: 1}, from, to}, timedACK{Segment{Seq: 2}, to, to}
	if acks := w.withoutStalls([]timedACK{forgiven, own}); len(acks) != 1 || acks[0].Seq != 2 {
		t.Errorf("a processor was away for %v, and what is not that stall's is %v", to-from, acks)
	}
}
