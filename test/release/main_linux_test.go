package release

import (
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// The tests run in the directory of the files that they are about.
func TestMain(m *testing.M) { lab.MainIn(m, "../..") }
