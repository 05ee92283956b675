package config

import (
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
)

// The tests have no network except their own loopback.
func TestMain(m *testing.M) { lab.Main(m) }
