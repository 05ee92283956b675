// Package watch probes targets continuously in the background, and answers scrapes from memory.
package watch
