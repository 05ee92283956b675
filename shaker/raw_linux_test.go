package shaker

import (
	"reflect"
	"runtime"
	"strings"
	"testing"
)

// eachEngine runs a test with sockets, and then without. The test starts its Shakers with start, and is not parallel.
func eachEngine(t *testing.T, test func(*testing.T)) {
	t.Run("sockets", test)
	t.Run("raw", func(t *testing.T) { withoutSocketsIn(t); test(t) })
}

// withoutSocketsIn lets the Shakers of a test send SYNs without sockets.
func withoutSocketsIn(t *testing.T) {
	sockets := startConfig
	startConfig = withoutSockets
	t.Cleanup(func() { startConfig = sockets })
}

// Without sockets the network is the same: these tests of sockets pass, too.
func TestRaw(t *testing.T) {
	withoutSocketsIn(t)
	for _, test := range []func(*testing.T){
		TestOpen,
		TestOpenIPv4MappedIPv6,
		TestRefusedByRST,
		TestDeadlines,
		TestHiddenDeadline,
		TestDeadlineOfTheWallClock,
		TestICMPErrorDuringConnect,
		TestOwnFirewallDrops,
		TestOwnRoutes,
		TestWithoutSourceAddress,
		TestOwnErrorOfEachAddress,

		TestSource,
		TestLinkLocalSource,
		TestInterface,
		TestVRF,
		TestInterfaceWithoutAddress,
		TestDSCP,
		TestTTL,
		TestMark,
		TestUnavailableOptions,
		TestMismatchedZone,

		TestVerdictsAreNotMixedUp,
		TestRSTBeforeShakeReturns,
		TestEveryWaiterIsCompletedOnce,
		TestDeadlinesOfSilentTargets,
		TestDeadlineBeforeSYN,
		TestCancellationWhileQueued,
		TestLateStart,
		TestCallerInAnotherNamespace,
		TestNewInAnotherNamespace,
		TestBusyCallers,
	} {
		name := runtime.FuncForPC(reflect.ValueOf(test).Pointer()).Name()
		t.Run(name[strings.LastIndex(name, ".")+1:], test)
	}
}
