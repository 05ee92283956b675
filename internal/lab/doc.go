// Package lab gives the tests of a network program a real network of their own.
//
// [Main], called by a package's TestMain, runs the package's tests in a new network namespace: all
// ports are free, all counters belong to the tests, and no packet leaves the machine. It needs root or
// an unprivileged user namespace. If neither is available, the tests that need the namespace are
// skipped ([Need]).
//
// The subpackages provide what a test puts into that namespace:
//
//   - simnet is a simulated network behind a TUN device: every address answers a SYN as the test
//     scripts it, and every packet is recorded. It also has a scripted DNS server.
//   - kernel provides hosts and routers with a real kernel, in further namespaces.
//   - capture records the packets on an interface.
//   - process starts programs, including Prometheus; exporter builds and starts the exporter.
//   - browser opens pages in a headless Chromium.
//   - stall detects that a hypervisor took the processors away.
//
// A test that needs something that the machine lacks calls [Skip]. If SHAKER_TEST_ALL=1 is set in the
// environment, the test fails instead.
package lab
