// Package lab gives the tests of a package a network of their own.
//
// Main runs them in a network namespace that nothing else uses: all ports are free, all
// counters are theirs, and no packet leaves it. It takes root or an unprivileged user
// namespace. In it a test finds the kernel's loopback, captures what is on it (Capture),
// and lays a Wire: a TUN device behind which a script answers for every address. The
// kernel is the real one in all of this.
//
// A test that needs what the machine lacks calls Skip, which fails instead where the
// environment has SHAKER_TEST_ALL=1.
package lab
