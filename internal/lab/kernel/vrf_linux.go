package kernel

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// VRFTable is the routing table of the VRF that NewVRF makes.
const VRFTable = 1001

// NewVRF makes a VRF for the rest of the test. A kernel without CONFIG_NET_VRF makes it skip,
// in CI, too: nothing could provide one.
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
		t.Fatal(err)
	}
	return vrf
}
