package lab

import "testing"

// A part of a test that is skipped with the race detector is known as such. Other tests are not.
func TestSkippedWithRace(t *testing.T) {
	t.Run("skipped", func(t *testing.T) {
		SkipWithRace(t)
		t.Run("part", func(t *testing.T) {
			if !SkippedWithRace(t) {
				t.Errorf("SkippedWithRace = false for %s, want true", t.Name())
			}
		})
	})
	t.Run("skip", func(t *testing.T) {
		if SkippedWithRace(t) {
			t.Errorf("SkippedWithRace = true for %s, want false", t.Name())
		}
	})
}
