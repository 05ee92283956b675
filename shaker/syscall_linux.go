package shaker

import (
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the loop. Package unix has them all, but its calls tell the Go
// scheduler first, which may then give the loop's place to others: with thousands of
// runnable goroutines every call would be a chance to wait in line while SYN-ACKs go
// unanswered. None of these calls blocks, so nobody needs to be told. They also leave
// the answer where the caller has it, instead of allocating it.

// check names the system call that an errno came from.
func check(call string, errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return os.NewSyscallError(call, errno)
}

func socket(family, kind, protocol int) (fd int, err error) {
	r, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), uintptr(kind), uintptr(protocol))
	if errno != 0 {
		return -1, check("socket", errno)
	}
	return int(r), nil
}

func setInt(fd, level, option int, value int32) error {
	return setsockopt(fd, level, option, unsafe.Pointer(&value), unsafe.Sizeof(value))
}

func setLinger(fd int, value unix.Linger) error {
	return setsockopt(fd, unix.SOL_SOCKET, unix.SO_LINGER, unsafe.Pointer(&value), unsafe.Sizeof(value))
}

// bindToDevice binds the socket to a network interface (SO_BINDTODEVICE in socket(7)).
func bindToDevice(fd int, name string) error {
	if len(name) >= unix.IFNAMSIZ || strings.ContainsRune(name, 0) {
		return check("setsockopt", unix.ENODEV) // the kernel would take the name's beginning
	}
	return setsockopt(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, unsafe.Pointer(unsafe.StringData(name)), uintptr(len(name)))
}

func setsockopt(fd, level, option int, value unsafe.Pointer, size uintptr) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(value), size, 0)
	return check("setsockopt", errno)
}

// socketError takes the pending error from the socket (SO_ERROR in socket(7)).
func socketError(fd int) (unix.Errno, error) {
	var value int32
	err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_ERROR, unsafe.Pointer(&value), unsafe.Sizeof(value))
	return unix.Errno(value), err
}

// tcpInfo fills info with the kernel's view of the connection (TCP_INFO in tcp(7)). An
// older kernel knows fewer fields and leaves the others as they are.
func tcpInfo(fd int, info *unix.TCPInfo) error {
	return getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_INFO, unsafe.Pointer(info), unsafe.Sizeof(*info))
}

func getsockopt(fd, level, option int, value unsafe.Pointer, size uintptr) error {
	length := uint32(size)
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(value), uintptr(unsafe.Pointer(&length)), 0)
	return check("getsockopt", errno)
}

func bind(fd int, local *rawAddress) error {
	_, _, errno := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(local)), unsafe.Sizeof(*local))
	return check("bind", errno)
}

func connect(fd int, peer *rawAddress) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(peer)), unsafe.Sizeof(*peer))
	return errno
}

func getsockname(fd int) (local rawAddress) { return getname(unix.SYS_GETSOCKNAME, fd) }
func getpeername(fd int) (peer rawAddress)  { return getname(unix.SYS_GETPEERNAME, fd) }

// getname leaves the address zero where there is none.
func getname(call uintptr, fd int) (address rawAddress) {
	length := uint32(unsafe.Sizeof(address))
	unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&address)), uintptr(unsafe.Pointer(&length)))
	return address
}

// receiveError takes one entry from the socket's error queue and returns how many bytes
// of control messages came with it.
func receiveError(fd int, control []byte) (n int, err error) {
	message := unix.Msghdr{Control: &control[0]}
	message.SetControllen(len(control))
	_, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&message)),
		unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	return int(message.Controllen), check("recvmsg", errno)
}

func epollAdd(epoll, fd int, event unix.EpollEvent) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), unix.EPOLL_CTL_ADD, uintptr(fd),
		uintptr(unsafe.Pointer(&event)), 0, 0)
	return check("epoll_ctl", errno)
}

// epollLook returns the events that are there already.
func epollLook(epoll int, events []unix.EpollEvent) (n int, err error) {
	r, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])),
		uintptr(len(events)), 0, 0, 0)
	switch errno {
	case 0:
		return int(r), nil
	case unix.EINTR:
		return 0, nil
	}
	return 0, check("epoll_pwait", errno)
}

func closeDescriptor(fd int) { unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }
