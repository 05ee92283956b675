package benchmarks

import (
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// The tests run in the root directory of the repository.
func TestMain(m *testing.M) { lab.MainIn(m, "../..") }
