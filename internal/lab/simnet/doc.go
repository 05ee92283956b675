// Package simnet simulates a network for the tests of a package.
//
// A [Network] is a TUN device with every address of both IP versions behind it. A [Host] answers for an
// address or a prefix: with a SYN-ACK, an RST or an ICMP error from any router, late, only to the second
// SYN, or not at all. If the order of packets and system calls matters, a test uses a bare [Wire], which
// calls a function of the test for each packet. Every packet is recorded, so that a test can compare what
// the program reports with what was on the wire. The kernel that sends the SYNs is the real one.
//
// [Network.Conditions] creates every network condition that the project knows. The file
// testdata/conditions.md contains what a probe must report under each of them.
package simnet
