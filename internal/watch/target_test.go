package watch

import (
	"testing"
	"unsafe"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// 100,000 targets may be watched. The allocator takes 576 bytes for a target of this size, with 8 bytes of its own, and
// 640 for a larger one. It takes 176 bytes for a Repetition.
func TestTargetSize(t *testing.T) {
	if got := unsafe.Sizeof(target{}); got > 568 {
		t.Errorf("a target takes %d bytes, want at most 568", got)
	}
	if got := unsafe.Sizeof(shaker.Repetition{}); got > 176 {
		t.Errorf("a Repetition takes %d bytes, want at most 176", got)
	}
}
