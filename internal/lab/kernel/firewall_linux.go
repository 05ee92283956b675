package kernel

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// DropFrom lets the firewall of the test's host drop what is sent from a TCP port, until the test ends. It needs nft.
func DropFrom(t testing.TB, port uint16) {
	t.Helper()
	nft := lab.Program(t, "nft", "nftables")
	run := func(rules string) {
		t.Helper()
		if out, err := exec.Command(nft, rules).CombinedOutput(); err != nil {
			t.Fatalf("nft %s: %v\n%s", rules, err, out)
		}
	}
	table := fmt.Sprintf("inet drop_%d", port)
	run(fmt.Sprintf("table %s { chain output { type filter hook output priority 0; tcp sport %d drop; }; }",
		table, port))
	t.Cleanup(func() { run("delete table " + table) })
}
