//go:build !unix

package server

import "log/slog"

// openFilesForProbes returns 0, any number: this platform does not limit open files.
func openFilesForProbes(int) int { return 0 }

func warnOpenFiles(int, *slog.Logger) {}
