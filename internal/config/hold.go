package config

import (
	"regexp"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

// Hold describes the connections of the hold prober.
type Hold struct {
	KeepAlive shaker.KeepAlive // zero: without keepalive
	Heartbeat Heartbeat        // zero: without heartbeats

	// Greeting matches the first frame that the target sends after the connect, without being asked. nil: the
	// target is not expected to send one.
	Greeting *regexp.Regexp

	Reconnect Backoff

	// Close is how this side closes a connection, FIN or Reset. TCP.Close is about handshakes only.
	Close string

	Expire  time.Duration // a target that is not scraped for this long is forgotten, 1 min to 24 h
	Resolve time.Duration // between two lookups of a name, 1 s to 1 h
}

// A Backoff is how long to wait before a connection is opened again. The delay doubles from Min to Max.
type Backoff struct {
	Min time.Duration // 100 ms to 24 h
	Max time.Duration // Min to 24 h
}

// defaultHold returns the values of the keys that a section hold leaves out.
func defaultHold() Hold {
	return Hold{
		KeepAlive: shaker.KeepAlive{Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
		Reconnect: Backoff{Min: time.Second, Max: 5 * time.Minute},
		Close:     FIN,
		Expire:    5 * time.Minute,
		Resolve:   time.Minute,
	}
}

// readHold reads the section hold. The prober shows that connections are held: without a value, the section has its
// defaults.
func readHold(v value, h *Hold) {
	if isNull(v.Node) { // all its keys are commented out
		return
	}
	given := readMapping(v, h, holdKeys)
	if h.KeepAlive == (shaker.KeepAlive{}) && h.Heartbeat.Interval == 0 {
		given["keepalive"].warn("is false, and there is no heartbeat: a connection whose peer vanishes looks " +
			"established forever")
	}
}

// Limits of the kernel for keepalive. They are also limits of package shaker.
const (
	maxKeepAlive      = 32767 * time.Second
	maxKeepAliveCount = 127
)

func readKeepAlive(v value, k *shaker.KeepAlive) {
	want := wantKeys(keepAliveKeys) + ", or false for none"
	if v.Kind != yaml.ScalarNode {
		entries, _ := v.entries(want)
		readEntries(entries, k, keepAliveKeys)
		return
	}
	on := true
	switch {
	case !v.is(yaml.ScalarNode, want):
	case v.Decode(&on) != nil || on:
		v.wrong(want)
	default:
		*k = shaker.KeepAlive{}
	}
}

// readReconnect reads the section reconnect. If one limit is given, the default of the other one gives way to it.
func readReconnect(v value, b *Backoff) {
	if isNull(v.Node) { // all its keys are commented out
		return
	}
	var read Backoff
	given := readMapping(v, &read, reconnectKeys)
	switch {
	case read.Min > 0 && read.Max > 0 && read.Max < read.Min:
		max := given["max"]
		max.refuse("is %s, want at least %s, the value of hold.reconnect.min", max.quote(), showDuration(read.Min))
	case read.Min > 0 && read.Max > 0:
		*b = read
	case read.Min > 0:
		*b = Backoff{Min: read.Min, Max: max(b.Max, read.Min)}
	case read.Max > 0:
		*b = Backoff{Min: min(b.Min, read.Max), Max: read.Max}
	}
}
