// Package config reads the configuration file: which targets may be probed, and the modules, each
// of which describes how to probe.
//
// The package guarantees that
//   - an error names the file, the line, the module and the key, and says what would be right;
//   - all errors of a file are reported together, in the order of its lines, except that a file
//     that is not valid YAML has only that error;
//   - a valid file of blackbox_exporter is valid: its modules that ask for more than a TCP handshake
//     are not validated, only their names are kept;
//   - an unknown key, a key that is given twice, and a number that YAML 1.1 and YAML 1.2 read
//     differently (064) are errors;
//   - the cost of reading a file is bounded, whatever its aliases stand for;
//   - a [Config], encoded as YAML, is a file that means the same.
//
// It does not guarantee that a module works. The addresses and interfaces of this host may change
// after the file is read, and no packet is sent.
package config
