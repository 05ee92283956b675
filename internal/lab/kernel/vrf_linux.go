package kernel

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// VRFTable is the routing table of the VRF that [NewVRF] creates.
const VRFTable = 1001

// NewVRF creates a VRF that exists until the test ends. It skips the test if the kernel was built without
// CONFIG_NET_VRF, even if SHAKER_TEST_ALL=1 is set: no setup of the machine could provide a VRF.
func NewVRF(t testing.TB) netlink.Link {
	t.Helper()
	lab.Need(t)
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "vrf-lab"
	vrf := &netlink.Vrf{LinkAttrs: attributes, Table: VRFTable}
	err := netlink.LinkAdd(vrf)
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("needs a kernel that was built with CONFIG_NET_VRF")
	}
	if err == nil {
		t.Cleanup(func() { netlink.LinkDel(vrf) })
		err = netlink.LinkSetUp(vrf)
	}
	if err != nil {
		t.Fatalf("creating %s: %v", attributes.Name, err)
	}
	return vrf
}
