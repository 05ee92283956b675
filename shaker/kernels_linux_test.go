package shaker

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// Invariant 10. Only the states in which a SYN-ACK has arrived are open. A state that is not possible here is
// an error, and not a verdict.
func TestIsOpen(t *testing.T) {
	want := map[uint8]bool{
		unix.BPF_TCP_ESTABLISHED: true,
		unix.BPF_TCP_CLOSE_WAIT:  true,
		unix.BPF_TCP_SYN_SENT:    false,
		unix.BPF_TCP_SYN_RECV:    false,
		unix.BPF_TCP_CLOSE:       false,
	}
	for state := range 256 {
		open, possible := want[uint8(state)]
		if got, err := isOpen(uint8(state)); got != open || (err == nil) != possible {
			t.Errorf("isOpen(%d) = %t, error %v, want %t, an error: %t", state, got, err, open, !possible)
		}
	}
}

// Invariant 10. A kernel does not fill TCP_INFO, but reports success. Neither an open nor a closed port is a
// verdict then.
func TestEmptyTCPInfo(t *testing.T) {
	for _, errno := range []unix.Errno{0, unix.ECONNREFUSED, unix.ETIMEDOUT} {
		_, l := startOne(t)
		h := newHandshake()
		l.submit(&decidingTask{handshake: h, errno: errno}, interactive, 0)
		<-h.done
		if h.err == nil || !strings.HasPrefix(h.err.Error(), "TCP_INFO: ") || h.result != (Result{}) {
			t.Errorf("with an empty TCP_INFO and errno %d: %+v, error %v, want an error about TCP_INFO",
				errno, h.result, h.err)
		}
	}
}

// A decidingTask is a handshake that has to decide with an empty TCP_INFO.
type decidingTask struct {
	*handshake
	errno unix.Errno
}

func (d *decidingTask) handle(l *loop, own ticket, _ event) {
	d.own, d.fd, l.info = own, -1, unix.TCPInfo{}
	d.conclude(l, d.errno, l.clock())
}

// A kernel that does not count segments cannot prove anything about the final ACK, and does not know how
// many SYNs were sent.
func TestUncountedSegments(t *testing.T) {
	for _, c := range []struct {
		name           string
		segments       uint32
		retransmits    uint32
		fin            bool
		syns           int
		withheld, sent bool
	}{
		{name: "not counted"},
		{name: "not counted, FIN", fin: true, sent: true},
		{name: "a SYN", segments: 1, syns: 1, withheld: true},
		{name: "two SYNs", segments: 2, retransmits: 1, syns: 2, withheld: true},
		{name: "a SYN and an ACK", segments: 2, syns: 1, sent: true},
	} {
		h := &handshake{fd: -1, connecting: true, options: Options{FIN: c.fin}}
		info := &unix.TCPInfo{Segs_out: c.segments, Total_retrans: c.retransmits}
		h.readInfo(info, 0)
		h.readAnswer(info)
		r := h.result
		if r.SYNs != c.syns || r.ACKWithheld != c.withheld || r.ACKSent != c.sent {
			t.Errorf("%s: SYNs %d, ACKWithheld %t, ACKSent %t, want %d, %t, %t",
				c.name, r.SYNs, r.ACKWithheld, r.ACKSent, c.syns, c.withheld, c.sent)
		}
	}
}

// gVisor does not withhold the final ACK, and does not count segments. The result does not claim that it did,
// and has what is known.
func TestGVisor(t *testing.T) {
	const insideEnv = "SHAKER_TEST_GVISOR"
	if os.Getenv(insideEnv) != "" {
		shakeInGVisor(t)
		return
	}
	lab.NeedRoot(t)
	runsc := lab.Program(t, "runsc", "runsc")
	itself, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run := func(program ...string) (string, error) {
		arguments := []string{"--platform=ptrace", "--network=none", "--ignore-cgroups", "--rootless=false", "do"}
		cmd := exec.Command(runsc, append(arguments, program...)...)
		cmd.Env = append(os.Environ(), insideEnv+"=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run("true"); err != nil {
		lab.Skip(t, "needs a runsc that works: %v: %s", err, out)
	}
	if lab.Race {
		t.Skip("needs a program without the race detector, which maps more memory than gVisor permits")
	}
	out, err := run(itself, "-test.run=^TestGVisor$", "-test.v")
	if err != nil || !strings.Contains(out, "--- PASS: TestGVisor") {
		t.Errorf("the test in gVisor: error %v, want a pass:\n%s", err, out)
	}
}

func shakeInGVisor(t *testing.T) {
	s := start(t)
	target, accepted := listen(t, "127.0.0.1:0")
	r := mustShake(t, s, target)
	if r.Outcome != Open || r.ACKWithheld || r.ACKSent || r.SYNs != 0 || !r.Local.IsValid() || r.Waited <= 0 {
		t.Errorf("Shake(%v) = %+v, want Open with Local and Waited, without SYNs, ACKWithheld and ACKSent", target, r)
	}
	lab.Eventually(t, "the server accepts the connection: this gVisor does not withhold the ACK", func() bool {
		return accepted.Load() == 1
	})
	closed := netip.MustParseAddrPort("127.0.0.1:1")
	r = mustShake(t, s, closed)
	if r.Outcome != Refused || r.SYNs != 0 || !r.Local.IsValid() {
		t.Errorf("Shake(%v) = %+v, want Refused with Local and without SYNs", closed, r)
	}
}
