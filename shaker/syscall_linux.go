package shaker

import (
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the loop. Package unix has all of them, but its functions notify the Go
// scheduler, which may then give the processor to another goroutine: with thousands of runnable
// goroutines, the loop could have to queue after every call, while SYN-ACKs go unanswered. None of
// these calls blocks, so the scheduler need not know. They also write results to memory of the
// caller instead of allocating.

// check returns an error that names the system call, or nil if errno is 0.
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
		return check("setsockopt", unix.ENODEV) // the kernel would truncate the name
	}
	value := unsafe.Pointer(unsafe.StringData(name))
	return setsockopt(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, value, uintptr(len(name)))
}

func setsockopt(fd, level, option int, value unsafe.Pointer, size uintptr) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(value), size, 0)
	return check("setsockopt", errno)
}

// socketError returns the socket's pending error and clears it (SO_ERROR in socket(7)).
func socketError(fd int) (unix.Errno, error) {
	var value int32
	err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_ERROR, unsafe.Pointer(&value), unsafe.Sizeof(value))
	return unix.Errno(value), err
}

// tcpInfo fills info with the kernel's view of the connection (TCP_INFO in tcp(7)). A field that the
// kernel does not have is zero.
func tcpInfo(fd int, info *unix.TCPInfo) error {
	*info = unix.TCPInfo{}
	return getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_INFO, unsafe.Pointer(info), unsafe.Sizeof(*info))
}

// getInt returns an option that is an int.
func getInt(fd, level, option int) (value int32, err error) {
	err = getsockopt(fd, level, option, unsafe.Pointer(&value), unsafe.Sizeof(value))
	return value, err
}

// socketDrops returns how many packets found no room in the socket's receive buffer (SO_MEMINFO, since Linux 4.12).
func socketDrops(fd int) uint32 {
	var info [unix.SK_MEMINFO_VARS]uint32
	getsockopt(fd, unix.SOL_SOCKET, unix.SO_MEMINFO, unsafe.Pointer(&info), unsafe.Sizeof(info))
	return info[unix.SK_MEMINFO_DROPS]
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

// disconnect dissolves the connection of a socket, or its attempt to connect (AF_UNSPEC in connect(2)). A
// connection is reset. Unlike closing the descriptor, this does not wait for other copies of it.
func disconnect(fd int) {
	var unspecified rawAddress // AF_UNSPEC is 0
	connect(fd, &unspecified)
}

func getsockname(fd int) (local rawAddress) { return getname(unix.SYS_GETSOCKNAME, fd) }
func getpeername(fd int) (peer rawAddress)  { return getname(unix.SYS_GETPEERNAME, fd) }

// getname returns the zero address if the call fails.
func getname(call uintptr, fd int) (address rawAddress) {
	length := uint32(unsafe.Sizeof(address))
	unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&address)), uintptr(unsafe.Pointer(&length)))
	return address
}

// receiveError takes one entry from the socket's error queue. n is the length of its control
// messages.
func receiveError(fd int, control []byte) (n int, errno unix.Errno) {
	message := unix.Msghdr{Control: &control[0]}
	message.SetControllen(len(control))
	_, _, errno = unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&message)),
		unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	return int(message.Controllen), errno
}

// A mmsghdr is a struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	header unix.Msghdr
	length uint32
}

// receiveMany receives as many packets as there are, or as many as there are messages (recvmmsg(2)).
func receiveMany(fd int, messages []mmsghdr) (n int, errno unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[0])),
		uintptr(len(messages)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

// receiveQuote is like receiveError, but also receives the part of the packet that the error quotes, and the packet's
// destination. n is the length of the quote.
func receiveQuote(fd int, message *unix.Msghdr) (n int, errno unix.Errno) {
	r, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(message)),
		unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

// sendTo sends a packet (sendto(2)).
func sendTo(fd int, packet []byte, to *rawAddress) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&packet[0])),
		uintptr(len(packet)), unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(to)), unsafe.Sizeof(*to))
	return errno
}

// subscribe lets a netlink socket receive the messages of groups (netlink(7)).
func subscribe(fd int, groups uint32) error {
	address := unix.RawSockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}
	_, _, errno := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&address)),
		unsafe.Sizeof(address))
	return check("bind", errno)
}

func epollControl(epoll, operation, fd int, event *unix.EpollEvent) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), uintptr(operation), uintptr(fd),
		uintptr(unsafe.Pointer(event)), 0, 0)
	return errno
}

// epollLook returns pending events without waiting.
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

// isReadable reports whether a descriptor is readable, or reading it gives an error. It does not wait.
func isReadable(fd int) bool {
	look := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	var now unix.Timespec
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&look)), 1,
		uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return n > 0 || errno != 0 && errno != unix.EINTR
}

// receive reads data that has arrived (recv(2)). It returns 0 bytes after the peer's FIN.
func receive(fd int, data []byte) (n int, errno unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&data[0])),
		uintptr(len(data)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

// send sends as much of the data as the kernel has room for (send(2)).
func send(fd int, data []byte) (n int, errno unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&data[0])),
		uintptr(len(data)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

// shutdownWriting sends the FIN of a connection. Unlike closing the descriptor, this does not wait for other copies of
// it.
func shutdownWriting(fd int) { unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0) }

func closeDescriptor(fd int) { unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }
