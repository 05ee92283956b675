package main

// This test is in package main because its binary runs main with a filter of system calls. The process itself must
// install the filter: only the process knows the descriptor of its runtime's epoll instance.

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
	"github.com/shaker-exporter/shaker_exporter/internal/lab/kernel"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/simnet"
)

// failEnv is the name of an environment variable. Its value is the name of a kernelError; the test binary then
// runs as an exporter on which that system call fails.
const failEnv = "SHAKER_EXPORTER_FAIL"

// A kernelError makes a system call of the handshake fail, as it does when a resource of the kernel is
// exhausted. The conditions distinguish the call from the same system call of the Go runtime.
type kernelError struct {
	call       uint32
	conditions []condition // all of them must be true
	errno      unix.Errno
	target     string // target of the probe
	message    string // text of the error after the target
}

// A condition compares the low half of an argument of a system call with a value.
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

// kernelErrors returns the errors to test, by name. The parameter is the descriptor of the Go runtime's epoll
// instance: all other epoll instances belong to the engine.
func kernelErrors(runtimeEpoll uint32) map[string]kernelError {
	equal := func(argument, value uint32) condition {
		return condition{argument: argument, test: bpf.JumpEqual, value: value}
	}
	socket := []condition{equal(2, unix.IPPROTO_TCP)} // Go listens with protocol 0
	option := func(level, option uint32) []condition { return []condition{equal(1, level), equal(2, option)} }
	quickACK := option(unix.IPPROTO_TCP, unix.TCP_QUICKACK)
	linger := option(unix.SOL_SOCKET, unix.SO_LINGER)
	receiveErrors := option(unix.IPPROTO_IP, unix.IP_RECVERR)
	info := option(unix.IPPROTO_TCP, unix.TCP_INFO)
	pending := option(unix.SOL_SOCKET, unix.SO_ERROR)
	watch := []condition{
		{argument: 0, test: bpf.JumpNotEqual, value: runtimeEpoll},
		equal(1, unix.EPOLL_CTL_ADD),
	}
	return map[string]kernelError{
		"socket ENOMEM": {call: unix.SYS_SOCKET, conditions: socket, errno: unix.ENOMEM,
			target: live, message: "socket: cannot allocate memory"},
		"socket ENOBUFS": {call: unix.SYS_SOCKET, conditions: socket, errno: unix.ENOBUFS,
			target: live, message: "socket: no buffer space available"},
		"socket ENFILE": {call: unix.SYS_SOCKET, conditions: socket, errno: unix.ENFILE,
			target: live, message: "socket: too many open files in system"},
		"TCP_QUICKACK ENOMEM": {call: unix.SYS_SETSOCKOPT, conditions: quickACK, errno: unix.ENOMEM,
			target: live, message: "setsockopt: cannot allocate memory"},
		"SO_LINGER ENOBUFS": {call: unix.SYS_SETSOCKOPT, conditions: linger, errno: unix.ENOBUFS,
			target: live, message: "setsockopt: no buffer space available"},
		"IP_RECVERR ENOMEM": {call: unix.SYS_SETSOCKOPT, conditions: receiveErrors, errno: unix.ENOMEM,
			target: live, message: "setsockopt: cannot allocate memory"},
		"connect ENOMEM": {call: unix.SYS_CONNECT, errno: unix.ENOMEM,
			target: live, message: "connect: cannot allocate memory"},
		"connect ENOBUFS": {call: unix.SYS_CONNECT, errno: unix.ENOBUFS,
			target: live, message: "connect: no buffer space available"},
		"connect EAGAIN": {call: unix.SYS_CONNECT, errno: unix.EAGAIN,
			target: live, message: "connect: resource temporarily unavailable"},
		"connect EADDRINUSE": {call: unix.SYS_CONNECT, errno: unix.EADDRINUSE,
			target: live, message: "connect: address already in use"},
		"epoll_ctl ENOMEM": {call: unix.SYS_EPOLL_CTL, conditions: watch, errno: unix.ENOMEM,
			target: silent, message: "epoll_ctl: cannot allocate memory"},
		"epoll_ctl ENOSPC": {call: unix.SYS_EPOLL_CTL, conditions: watch, errno: unix.ENOSPC,
			target: silent, message: "epoll_ctl: no space left on device"},
		"TCP_INFO ENOBUFS": {call: unix.SYS_GETSOCKOPT, conditions: info, errno: unix.ENOBUFS,
			target: live, message: "getsockopt: no buffer space available"},
		"SO_ERROR ENOMEM, RST": {call: unix.SYS_GETSOCKOPT, conditions: pending, errno: unix.ENOMEM,
			target: dead, message: "getsockopt: cannot allocate memory"},
	}
}

// TestMain makes the test binary the exporter if failEnv is set.
func TestMain(m *testing.M) {
	if name := os.Getenv(failEnv); name != "" {
		if err := fail(name); err != nil {
			panic(err)
		}
		main()
	}
	lab.Main(m)
}

// If a resource of the kernel is exhausted during a handshake, there is no verdict about the target. The exporter
// responds with status 503, counts the fault by errno, logs it, and leaves no descriptor open.
func TestKernelErrors(t *testing.T) {
	if auditArch == 0 {
		lab.Skip(t, "needs amd64 or arm64, but this is %s", runtime.GOARCH)
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
				Body:   fmt.Sprintf("probe not performed, target state unknown: shake %s: %s\n", e.target, e.message),
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
			// For a moment, a program that has just started and a connection that ends have one more descriptor.
			lab.Eventually(t, "no descriptor is left open", func() bool {
				return exporter.Metric(t, "process_open_fds") <= descriptors
			})
			if !strings.Contains(p.Output(), e.message) {
				t.Errorf("the exporter logged %q, want %q in it", p.Output(), e.message)
			}
		})
	}
}

// noIPv6 is the name of the kernelError of a kernel without IPv6 (ipv6.disable=1). It is not one of [kernelErrors],
// because it is not an exhausted resource.
const noIPv6 = "no IPv6"

// On a host that has no IPv6, the first look of the README works: localhost has the addresses ::1 and 127.0.0.1, and
// the exporter probes the second one. It is the same whether the kernel has no IPv6 or the interfaces have no address.
// There, the IPv6 address itself is unreachable.
func TestKernelWithoutIPv6(t *testing.T) {
	lab.Need(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	filtered := exec.Command(program)
	filtered.Env = append(os.Environ(), failEnv+"="+noIPv6)
	for _, c := range []struct {
		name, errno string
		command     *exec.Cmd
		disable     bool // the addresses
	}{
		{name: "no family", errno: "EAFNOSUPPORT", command: filtered},
		{name: "no address", errno: "EADDRNOTAVAIL", command: exporter.Command(t), disable: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.disable {
				kernel.Sysctl(t, "net.ipv6.conf.all.disable_ipv6", "1")
			} else if auditArch == 0 {
				lab.Skip(t, "needs amd64 or arm64, but this is %s", runtime.GOARCH)
			}
			hosts := lab.Write(t, t.TempDir(), "hosts", "127.0.0.1 localhost\n::1 localhost\n")
			exporter.Run(t, process.WithFiles(t, c.command, map[string]string{"/etc/hosts": hosts}))
			for query, want := range map[string][]string{
				"target=localhost:10115": {"probe_success 1", "probe_ip_protocol 4",
					`probe_result_info{result="open",errno=""} 1`},
				"target=localhost:10115&debug=true": {
					"left out: target [::1]:10115: this host has no IPv6 (" + c.errno + ")"},
				"target=[::1]:10115": {"probe_success 0", "probe_ip_protocol 6",
					`probe_result_info{result="unreachable",errno="` + c.errno + `"} 1`},
				"target=localhost:10115&module=tcp_connect_ip6": {"probe_success 0",
					`probe_result_info{result="unreachable",errno="` + c.errno + `"} 1`},
			} {
				got := exporter.Call(t, 0).Get(t, "/probe?"+query)
				for _, line := range want {
					if got.Status != 200 || !strings.Contains(got.Body, line+"\n") {
						t.Errorf("GET /probe?%s = %d\n%s\nwant 200 and the line %s", query, got.Status, got.Body, line)
					}
				}
			}
		})
	}
}

// auditArch is the architecture of the machine in a seccomp filter, 0 if the test does not support it.
var auditArch = map[string]uint32{
	"amd64": unix.AUDIT_ARCH_X86_64,
	"arm64": unix.AUDIT_ARCH_AARCH64,
}[runtime.GOARCH]

// fail makes the system call of a kernelError fail in all threads of this process, until the process ends.
func fail(name string) error {
	// Before the first use of the network, package net opens sockets like the handshake's to detect the IP
	// versions, and the runtime opens its epoll instance. Both must happen before the system calls fail.
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
	if name == noIPv6 {
		e = kernelError{call: unix.SYS_SOCKET, errno: unix.EAFNOSUPPORT, conditions: []condition{
			{argument: 0, test: bpf.JumpEqual, value: unix.AF_INET6},
			{argument: 2, test: bpf.JumpEqual, value: unix.IPPROTO_TCP}, // Go listens with protocol 0
		}}
	}

	// These are offsets in struct seccomp_data, the input of the filter (seccomp(2)).
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
			bpf.LoadAbsolute{Off: arguments + 8*c.argument, Size: 4}, // the low half on a little-endian machine
			bpf.JumpIf{Cond: c.test, Val: c.value, SkipTrue: 1},
			allow)
	}
	program = append(program, bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(e.errno)})
	raw, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	filter := unix.SockFprog{Len: uint16(len(raw)), Filter: (*unix.SockFilter)(unsafe.Pointer(&raw[0]))}
	runtime.LockOSThread() // PR_SET_NO_NEW_PRIVS, which permits the filter, applies to one thread
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&filter)))
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
	return 0, errors.New("this process has no epoll instance")
}
