package shaker

import "testing"

// startConfig configures the Shakers of the tests. TestRaw runs tests with another one.
var startConfig = &Config{}

// start starts a Shaker for the rest of the test.
func start(tb testing.TB) *Shaker {
	tb.Helper()
	s, err := New(startConfig)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}
