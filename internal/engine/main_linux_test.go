package engine

import (
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }
