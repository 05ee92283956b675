package alerts

import (
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// TestMain runs the tests in the directory of the files that they test.
func TestMain(m *testing.M) { lab.MainIn(m, "../../examples") }
