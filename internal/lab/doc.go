// Package lab gives the tests of a package a network of their own.
//
// Main runs them in a network namespace that nothing else uses: all ports are free, all
// counters are theirs, and no packet leaves it. It takes root or an unprivileged user
// namespace. In it a test finds the kernel's loopback and captures what is on it (Capture),
// or lays a Network: a TUN device with every address behind it, where Hosts answer SYNs as
// the test says, and where every segment is recorded. Where the order of packets and system
// calls matters, a bare Wire calls a function of the test for each packet. Where the time on
// the wire matters, a Neighbour is at the other end of a veth pair. The kernel is the real
// one in all of this. What a virtual machine does to it when it stands still, WatchStalls tells.
//
// The fault matrix (Faults, testdata/faults.md) is everything that such a network may do
// with a SYN, and what a prober has to say of it.
//
// A test that needs what the machine lacks calls Skip, which fails instead where the
// environment has SHAKER_TEST_ALL=1.
package lab
