package lab

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// A hypervisor may take its processors away from a machine for longer than the 200 ms for
// which the kernel holds the last ACK of a handshake back. The machine's clock goes on
// meanwhile, and when the machine does, the ACK's timer is due: no program can be in time.
// Hearts tell such a stall from a program that is late by itself: they are threads that the
// kernel prefers to every thread of an ordinary program, so that only a processor that
// stands still keeps its heart from beating.

const (
	beatEvery = 10 * time.Millisecond

	// stalled is for how long a processor has stood still before an ACK, since its
	// SYN-ACK, if the ACK is that stall's: half of the 200 ms.
	stalled = 100 * time.Millisecond

	// heartsEnv marks the process in which the hearts are.
	heartsEnv = "SHAKER_LAB_HEARTS"

	// heartsFile is that process's descriptor of the record.
	heartsFile = 3
)

// A beat is written to the record by the heart of a processor.
type beat struct {
	CPU int64
	At  int64 // ns on CLOCK_MONOTONIC
}

const beatSize = 16

// hearts is the record of all beats, one processor's among another's.
type hearts struct {
	file *os.File
	cpus int
}

// WatchStalls has ACKs leave out what left because the machine stood still. It does
// nothing where this process may not have its threads preferred to others.
func (w *Wire) WatchStalls() {
	t := w.t
	t.Helper()
	fd, err := unix.MemfdCreate("hearts", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(os.NewSyscallError("memfd_create", err))
	}
	h := &hearts{file: os.NewFile(uintptr(fd), "hearts"), cpus: len(processors())}
	t.Cleanup(func() { h.file.Close() })
	itself, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(itself)
	cmd.Env = append(os.Environ(), heartsEnv+"=1")
	cmd.ExtraFiles = []*os.File{h.file} // as heartsFile
	process := Start(t, cmd)
	Eventually(t, "every heart beats", func() bool {
		select {
		case <-process.ended:
			t.Logf("stalls of the machine are not forgiven: %s", process.Output())
			return true
		default:
		}
		if h.haveBeatenSince(0) {
			w.hearts = h
			return true
		}
		return false
	})
}

// beatForever is the process in which the hearts are.
func beatForever() {
	cpus := processors()
	runtime.GOMAXPROCS(len(cpus) + 1) // no heart waits for another
	for _, cpu := range cpus {
		go func() {
			runtime.LockOSThread()
			var own unix.CPUSet
			own.Set(cpu)
			err := unix.SchedSetaffinity(0, &own)
			if err == nil {
				err = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
			}
			for buf := make([]byte, beatSize); err == nil; {
				binary.Encode(buf, binary.NativeEndian, beat{int64(cpu), int64(monotonic())})
				if _, err = unix.Write(heartsFile, buf); err == nil {
					sleep := unix.NsecToTimespec(int64(beatEvery)) // time.Sleep is up to other threads
					unix.Nanosleep(&sleep, nil)
				}
			}
			fmt.Println(err)
			os.Exit(1)
		}()
	}
	select {}
}

// processors returns the numbers of the processors that this process may run on.
func processors() []int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		panic(err)
	}
	var cpus []int
	for cpu := 0; len(cpus) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus
}

// monotonic returns the time on CLOCK_MONOTONIC.
func monotonic() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err)
	}
	return time.Duration(now.Nano())
}

// all returns all beats so far.
func (h *hearts) all() []beat {
	info, err := h.file.Stat()
	if err != nil {
		panic(err)
	}
	beats := make([]beat, info.Size()/beatSize)
	buf := make([]byte, len(beats)*beatSize)
	if _, err := h.file.ReadAt(buf, 0); err != nil {
		panic(err)
	}
	binary.Decode(buf, binary.NativeEndian, beats)
	return beats
}

// haveBeatenSince tells whether every heart has.
func (h *hearts) haveBeatenSince(at time.Duration) bool {
	beating := make(map[int64]bool)
	for _, b := range h.all() {
		if b.At > int64(at) {
			beating[b.CPU] = true
		}
	}
	return len(beating) == h.cpus
}

// A timedACK is an ACK that has left, and when, since the record began.
type timedACK struct {
	Segment
	synack time.Duration // the SYN-ACK of the same handshake arrived
	at     time.Duration
}

// withoutStalls returns those of the ACKs that are not a stall's.
func (w *Wire) withoutStalls(acks []timedACK) []Segment {
	w.t.Helper()
	var beats []beat
	began := monotonic() - time.Since(w.record.began)
	if w.hearts != nil && len(acks) > 0 {
		last := began + acks[len(acks)-1].at
		Eventually(w.t, "every heart has beaten again", func() bool { return w.hearts.haveBeatenSince(last) })
		beats = w.hearts.all()
	}
	var own []Segment
	for _, a := range acks {
		if stoodStill(beats, began+a.synack, began+a.at) < stalled {
			own = append(own, a.Segment)
		}
	}
	if stalls := len(acks) - len(own); stalls > 0 {
		w.t.Logf("%d ACKs left because the machine stood still", stalls)
	}
	return own
}

// stoodStill returns for how long a processor stood still, at most, between two times on
// CLOCK_MONOTONIC.
func stoodStill(beats []beat, from, to time.Duration) time.Duration {
	last := make(map[int64]int64)
	lost := make(map[int64]time.Duration)
	var most time.Duration
	for _, b := range beats {
		if before, ok := last[b.CPU]; ok {
			within := time.Duration(min(b.At, int64(to)) - max(before, int64(from)))
			lost[b.CPU] += max(0, within-2*beatEvery)
			most = max(most, lost[b.CPU])
		}
		last[b.CPU] = b.At
	}
	return most
}
