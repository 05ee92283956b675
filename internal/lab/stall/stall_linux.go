// Package stall detects that the machine stood still.
//
// A hypervisor may take the processors away from a virtual machine for longer than the 200 ms for which the
// kernel withholds the final ACK of a handshake. The machine's clock continues during that time. When the
// machine continues, the timer of the ACK has expired, so that no program can be in time.
//
// Hearts distinguish such a stall from a program that is late for a reason of its own. The hearts are
// threads, one per processor, that the kernel prefers to all threads of ordinary programs. Each heart
// records a beat every 10 ms. A heart misses its beats only if its processor stands still.
package stall

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	beatEvery = 10 * time.Millisecond

	// heartsEnv marks the process in which the hearts beat.
	heartsEnv = "SHAKER_LAB_HEARTS"

	// heartsFile is that process's descriptor of the record of beats.
	heartsFile = 3
)

// A beat is one beat of the heart of a processor.
type beat struct {
	CPU int64
	At  int64 // ns on CLOCK_MONOTONIC
}

const beatSize = 16

// Hearts is the record of the beats of all processors.
type Hearts struct {
	file *os.File
	cpus int
}

// New returns a record and the command of the process that writes it: the hearts beat while the command runs.
// If the process lacks the privilege for real-time threads, it prints the error and ends. The command runs
// this test binary, whose TestMain must call [RunIfHearts].
func New() (*Hearts, *exec.Cmd, error) {
	fd, err := unix.MemfdCreate("hearts", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, nil, os.NewSyscallError("memfd_create", err)
	}
	h := &Hearts{file: os.NewFile(uintptr(fd), "hearts"), cpus: len(Processors())}
	itself, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(itself)
	cmd.Env = append(os.Environ(), heartsEnv+"=1")
	cmd.ExtraFiles = []*os.File{h.file} // becomes heartsFile
	return h, cmd, nil
}

// Close closes the record.
func (h *Hearts) Close() error { return h.file.Close() }

// RunIfHearts lets the hearts beat, and does not return, if this process was started by the command that
// [New] returned. Otherwise it does nothing.
func RunIfHearts() {
	if os.Getenv(heartsEnv) == "" {
		return
	}
	cpus := Processors()
	runtime.GOMAXPROCS(len(cpus) + 1) // so that no heart waits for another
	for _, cpu := range cpus {
		go func() {
			runtime.LockOSThread()
			var own unix.CPUSet
			own.Set(cpu)
			err := unix.SchedSetaffinity(0, &own)
			if err == nil {
				realTime := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
				err = unix.SchedSetAttr(0, &realTime, 0)
			}
			for buf := make([]byte, beatSize); err == nil; {
				binary.Encode(buf, binary.NativeEndian, beat{int64(cpu), int64(Now())})
				if _, err = unix.Write(heartsFile, buf); err == nil {
					sleep := unix.NsecToTimespec(int64(beatEvery)) // time.Sleep depends on other threads
					unix.Nanosleep(&sleep, nil)
				}
			}
			fmt.Println(err)
			os.Exit(1)
		}()
	}
	select {}
}

// Processors returns the numbers of the processors that this process may run on.
func Processors() []int {
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

// Now returns the current time on CLOCK_MONOTONIC, the clock of the beats.
func Now() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err)
	}
	return time.Duration(now.Nano())
}

// beats returns all beats so far.
func (h *Hearts) beats() []beat {
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

// HaveBeatenSince reports whether every heart has beaten after the given time.
func (h *Hearts) HaveBeatenSince(at time.Duration) bool {
	beating := make(map[int64]bool)
	for _, b := range h.beats() {
		if b.At > int64(at) {
			beating[b.CPU] = true
		}
	}
	return len(beating) == h.cpus
}

// StoodStill returns a function that returns how long the processors stood still between two times: the
// largest sum for one processor. The function knows only the beats that were recorded before the call of
// StoodStill.
func (h *Hearts) StoodStill() func(from, to time.Duration) time.Duration {
	beats := h.beats()
	return func(from, to time.Duration) time.Duration { return stoodStill(beats, from, to) }
}

// stoodStill implements StoodStill. A gap of up to two intervals between two beats is not a stall.
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
