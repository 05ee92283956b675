package shaker

import (
	"slices"
	"sync"
	"testing"
)

// A mailbox takes no more than it has room for, and has room again once it was read.
func TestMailboxHasRoom(t *testing.T) {
	m := newMailbox[int](3)
	for _, c := range []struct {
		put  []int
		want int
	}{
		{put: []int{1, 2}, want: 2},
		{put: []int{3, 4}, want: 1},
		{put: []int{5}, want: 0},
		{put: nil, want: 0},
	} {
		if got := m.put(c.put); got != c.want {
			t.Errorf("put(%v) = %d, want %d", c.put, got, c.want)
		}
	}
	if got := len(m.ready); got != 1 {
		t.Errorf("%d signals for three accepted items, want 1", got)
	}
	taken := m.take(nil)
	if want := []int{1, 2, 3}; !slices.Equal(taken, want) {
		t.Errorf("take = %v, want %v", taken, want)
	}
	if got := m.put([]int{6, 7, 8, 9}); got != 3 {
		t.Errorf("put of 4 items = %d after take, want 3", got)
	}
	if got, want := m.take(taken), []int{6, 7, 8}; !slices.Equal(got, want) {
		t.Errorf("take = %v, want %v", got, want)
	}
}

// Of what several writers put, the reader gets each accepted item once, and in the order of its writer. It is
// always woken.
func TestMailboxLosesNothing(t *testing.T) {
	const writers, each = 4, 20_000
	type item struct{ writer, number int }
	m := newMailbox[item](100)
	var group sync.WaitGroup
	accepted := make([]int, writers)
	for w := range writers {
		group.Go(func() {
			for n := range each {
				accepted[w] += m.put([]item{{writer: w, number: n}})
			}
		})
	}
	over := make(chan struct{})
	go func() { group.Wait(); close(over) }()
	got := make([]int, writers)
	last := []int{-1, -1, -1, -1}
	var items []item
	read := func() {
		items = m.take(items)
		for _, i := range items {
			if i.number <= last[i.writer] {
				t.Fatalf("writer %d: item %d arrived after item %d, want it before", i.writer, i.number, last[i.writer])
			}
			last[i.writer] = i.number
			got[i.writer]++
		}
	}
	for done := false; !done; {
		select {
		case <-m.ready:
		case <-over:
			done = true
		}
		read()
	}
	if !slices.Equal(got, accepted) {
		t.Errorf("the reader got %v items of the writers, want %v: those that were accepted", got, accepted)
	}
}

// The mailbox needs no memory for each item, once it has held as many.
func TestMailboxReusesMemory(t *testing.T) {
	m := newMailbox[int](1000)
	batch := make([]int, 100)
	var items []int
	cycle := func() {
		m.put(batch)
		items = m.take(items)
	}
	for range 10 {
		cycle()
	}
	if n := testing.AllocsPerRun(100, cycle); n != 0 {
		t.Errorf("%v allocations for a batch, want 0", n)
	}
}
