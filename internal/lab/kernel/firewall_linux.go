package kernel

import (
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// tables is how many tables Firewall has added.
var tables atomic.Int32

// Firewall adds chains of nftables, such as "chain output { … }", to the firewall of the test's host, until remove is
// called or the test ends. It needs nft.
func Firewall(t testing.TB, chains string) (remove func()) {
	t.Helper()
	nft := lab.Program(t, "nft", "nftables")
	run := func(rules string) {
		t.Helper()
		if out, err := exec.Command(nft, rules).CombinedOutput(); err != nil {
			t.Fatalf("nft %s: %v\n%s", rules, err, out)
		}
	}
	table := fmt.Sprintf("table inet lab%d", tables.Add(1))
	run(table + " {\n" + strings.ReplaceAll(chains, "}", "}\n") + "}\n")
	remove = sync.OnceFunc(func() { run("delete " + table) })
	t.Cleanup(remove)
	return remove
}

// DropFrom lets the firewall of the test's host drop what is sent from a TCP port, until the test ends. It needs nft.
func DropFrom(t testing.TB, port uint16) {
	t.Helper()
	Firewall(t, fmt.Sprintf("chain output { type filter hook output priority 0; tcp sport %d drop; }", port))
}
