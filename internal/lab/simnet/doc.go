// Package simnet simulates a network for the tests of a package.
//
// A [Network] is a TUN device with every address of both IP versions behind it. A [Host] answers for an
// address or a prefix: with a SYN-ACK, an RST, an ICMP error from any router, late, only to the second
// SYN, or not at all. Where the order of packets and system calls matters, a bare [Wire] calls a
// function of the test for each packet. Every packet is recorded, so that a test compares what the
// program reports with what was on the wire. The kernel is the real one.
//
// [Network.Conditions] lays out every network condition that the project knows;
// testdata/conditions.md has what a probe must report for each.
package simnet
