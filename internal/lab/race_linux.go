package lab

import (
	"strings"
	"sync"
	"testing"
)

// withoutRace has the names of the tests that have called SkipWithRace.
var withoutRace sync.Map

// SkipWithRace skips a test with the race detector if it runs only programs that are not built with the race detector:
// programs of others, or an exporter that they build. Without the race detector, a test that calls it fails when it
// runs an exporter of package exporter, which is built with the race detector if the test is.
func SkipWithRace(t testing.TB) {
	t.Helper()
	if Race {
		t.Skip("runs no program that is built with the race detector")
	}
	withoutRace.Store(t.Name(), nil)
}

// SkippedWithRace reports whether the test, or a test that it is part of, has called SkipWithRace.
func SkippedWithRace(t testing.TB) bool {
	for name := t.Name(); name != ""; name = name[:max(0, strings.LastIndex(name, "/"))] {
		if _, ok := withoutRace.Load(name); ok {
			return true
		}
	}
	return false
}
