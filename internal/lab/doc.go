// Package lab lets tests of a network program use a real network that is theirs alone.
//
// [Main], called by a package's TestMain, runs the package's tests in a new network namespace: all
// ports are free, all counters belong to the tests, and no packet leaves the machine. It needs root or
// an unprivileged user namespace. Where neither is possible, tests that need it skip ([Need]).
//
// The packages below are what a test puts into that namespace:
//
//   - simnet is a simulated network behind a TUN device: every address answers a SYN as the test
//     scripts it, and every packet is recorded. It also has a DNS server to script.
//   - kernel has real kernels as hosts and routers, in further namespaces.
//   - capture records what passes an interface.
//   - process starts programs, Prometheus among them; exporter builds and starts the exporter.
//   - browser opens a page in a headless Chromium.
//   - stall detects that a hypervisor took the processors away.
//
// A test that needs something the machine lacks calls [Skip]. With SHAKER_TEST_ALL=1 in the
// environment the test fails instead.
package lab
