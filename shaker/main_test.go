package shaker

import "testing"

// start starts a Shaker for the rest of the test.
func start(tb testing.TB) *Shaker {
	tb.Helper()
	s, err := New(nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}
