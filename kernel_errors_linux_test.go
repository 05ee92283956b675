package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/exporter"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// failEnv makes the test binary an exporter that meets the kernelError of that name.
const failEnv = "SHAKER_EXPORTER_FAIL"

// A kernelError makes the kernel fail a system call of the handshake, as it does when memory is
// exhausted. The conditions distinguish the call from those of the Go runtime.
type kernelError struct {
	call       uint32
	conditions []condition
	errno      unix.Errno
	target     string // that is probed
	says       string // what the answer says after the target
}

// A condition is about the low half of a system call's argument.
type condition struct {
	argument uint32
	test     bpf.JumpTest
	value    uint32
}

const (
	live   = "127.0.0.1:10115" // the exporter itself
	dead   = "127.0.0.1:1"
	silent = "192.0.2.1:80"
)

// kernelErrors returns all that are tested, by name. The descriptor is that of the Go
// runtime's epoll instance: the others are the engine's.
func kernelErrors(runtimeEpoll uint32) map[string]kernelError {
	equal := func(argument, value uint32) condition { return condition{argument, bpf.JumpEqual, value} }
	socket := []condition{equal(2, unix.IPPROTO_TCP)} // Go listens with protocol 0
	option := func(level, option uint32) []condition { return []condition{equal(1, level), equal(2, option)} }
	watch := []condition{{0, bpf.JumpNotEqual, runtimeEpoll}, equal(1, unix.EPOLL_CTL_ADD)}
	quickACK, linger := option(unix.IPPROTO_TCP, unix.TCP_QUICKACK), option(unix.SOL_SOCKET, unix.SO_LINGER)
	info, pending := option(unix.IPPROTO_TCP, unix.TCP_INFO), option(unix.SOL_SOCKET, unix.SO_ERROR)
	return map[string]kernelError{
		"socket ENOMEM":        {unix.SYS_SOCKET, socket, unix.ENOMEM, live, "socket: cannot allocate memory"},
		"socket ENOBUFS":       {unix.SYS_SOCKET, socket, unix.ENOBUFS, live, "socket: no buffer space available"},
		"socket ENFILE":        {unix.SYS_SOCKET, socket, unix.ENFILE, live, "socket: too many open files in system"},
		"TCP_QUICKACK ENOMEM":  {unix.SYS_SETSOCKOPT, quickACK, unix.ENOMEM, live, "setsockopt: cannot allocate memory"},
		"SO_LINGER ENOBUFS":    {unix.SYS_SETSOCKOPT, linger, unix.ENOBUFS, live, "setsockopt: no buffer space available"},
		"IP_RECVERR ENOMEM":    {unix.SYS_SETSOCKOPT, option(unix.IPPROTO_IP, unix.IP_RECVERR), unix.ENOMEM, live, "setsockopt: cannot allocate memory"},
		"connect ENOMEM":       {unix.SYS_CONNECT, nil, unix.ENOMEM, live, "connect: cannot allocate memory"},
		"connect ENOBUFS":      {unix.SYS_CONNECT, nil, unix.ENOBUFS, live, "connect: no buffer space available"},
		"connect EAGAIN":       {unix.SYS_CONNECT, nil, unix.EAGAIN, live, "connect: resource temporarily unavailable"},
		"connect EADDRINUSE":   {unix.SYS_CONNECT, nil, unix.EADDRINUSE, live, "connect: address already in use"},
		"epoll_ctl ENOMEM":     {unix.SYS_EPOLL_CTL, watch, unix.ENOMEM, silent, "epoll_ctl: cannot allocate memory"},
		"epoll_ctl ENOSPC":     {unix.SYS_EPOLL_CTL, watch, unix.ENOSPC, silent, "epoll_ctl: no space left on device"},
		"TCP_INFO ENOBUFS":     {unix.SYS_GETSOCKOPT, info, unix.ENOBUFS, live, "getsockopt: no buffer space available"},
		"SO_ERROR ENOMEM, RST": {unix.SYS_GETSOCKOPT, pending, unix.ENOMEM, dead, "getsockopt: cannot allocate memory"},
	}
}

// TestMain makes the test binary the exporter if failEnv is set: the filter of system calls has to be
// installed by the process itself, which alone knows the descriptor of the runtime's epoll instance.
func TestMain(m *testing.M) {
	if name := os.Getenv(failEnv); name != "" {
		if err := fail(name); err != nil {
			panic(err)
		}
		main()
	}
	lab.Main(m)
}

// When the kernel lacks memory for a handshake, that is no verdict about the target, neither up nor down.
// The exporter counts it by errno, logs it, and leaves no descriptor open.
func TestKernelErrors(t *testing.T) {
	if auditArch == 0 {
		lab.Skip(t, "needs amd64 or arm64")
	}
	simnet.NewWire(t, nil, "192.0.2.0/24")
	for name, e := range kernelErrors(0) {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), failEnv+"="+name)
			p := exporter.Run(t, cmd)
			descriptors := exporter.Metric(t, "process_open_fds")
			want := exporter.Answer{
				Status: 503,
				Body:   fmt.Sprintf("probe not performed, target state unknown: shake %s: %s\n", e.target, e.says),
			}
			const probes = 20
			for i := range probes {
				if got := exporter.Call(t, i).Get(t, "/probe?target="+e.target); got != want {
					t.Fatalf("probe %d of %s = %+v, want %+v", i, e.target, got, want)
				}
			}
			for series, want := range map[string]int{
				fmt.Sprintf("shaker_faults_total{errno=%q}", unix.ErrnoName(e.errno)): probes,
				`shaker_probes_total{module="tcp_connect"}`:                           0,
			} {
				if got := exporter.Metric(t, series); got != want {
					t.Errorf("%s is %d, want %d", series, got, want)
				}
			}
			// A program that has just started, and a connection that ends, have one more for a moment.
			lab.Eventually(t, "no descriptor is left open", func() bool {
				return exporter.Metric(t, "process_open_fds") <= descriptors
			})
			if !strings.Contains(p.Output(), e.says) {
				t.Errorf("the exporter logged %q, want %q in it", p.Output(), e.says)
			}
		})
	}
}

// auditArch is the machine's architecture as a seccomp filter sees it, or 0.
var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]

// fail makes the kernel fail the system call from now on, for good, in all threads.
func fail(name string) error {
	// Go looks for IP versions with sockets like the handshake's, and opens an epoll instance
	// of its own. It does so once, which is to be before.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	l.Close()
	epoll, err := epollDescriptor()
	if err != nil {
		return err
	}
	e := kernelErrors(epoll)[name]

	// What seccomp(2) gives to the filter is a struct seccomp_data.
	const call, arch, arguments = 0, 4, 16
	allow := bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: arch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		allow,
		bpf.LoadAbsolute{Off: call, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: e.call, SkipTrue: 1},
		allow,
	}
	for _, c := range e.conditions {
		program = append(program,
			bpf.LoadAbsolute{Off: arguments + 8*c.argument, Size: 4}, // the low half, on little-endian machines
			bpf.JumpIf{Cond: c.test, Val: c.value, SkipTrue: 1},
			allow)
	}
	program = append(program, bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(e.errno)})
	raw, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	filter := unix.SockFprog{Len: uint16(len(raw)), Filter: (*unix.SockFilter)(unsafe.Pointer(&raw[0]))}
	runtime.LockOSThread() // the right to set a filter is a thread's
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&filter)))
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	return nil
}

// epollDescriptor returns the number of this process's only epoll instance.
func epollDescriptor() (uint32, error) {
	descriptors, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0, err
	}
	for _, d := range descriptors {
		if what, _ := os.Readlink("/proc/self/fd/" + d.Name()); what == "anon_inode:[eventpoll]" {
			number, err := strconv.ParseUint(d.Name(), 10, 32)
			return uint32(number), err
		}
	}
	return 0, errors.New("there is no epoll instance")
}
