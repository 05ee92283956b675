package shaker

import (
	"slices"
	"testing"
)

// FuzzQueue compares a queue with a slice. It also checks that the queue keeps no dropped item, and how
// often it moves items.
func FuzzQueue(f *testing.F) {
	f.Add([]byte{9, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var q queue[int]
		var want []int
		next, moved, dropped := 1, 0, 0
		for _, step := range steps {
			if step > 0 {
				for range step {
					q.add(next)
					want = append(want, next)
					next++
				}
			} else if len(want) > 0 {
				if q.first() != want[0] {
					t.Fatalf("first() = %d, want %d", q.first(), want[0])
				}
				before := q.head
				q.drop()
				want = want[1:]
				dropped++
				if q.head <= before {
					moved += q.len()
				}
			}
			if q.len() != len(want) || !slices.Equal(q.items[q.head:], want) {
				t.Fatalf("the queue has %v, want %v", q.items[q.head:], want)
			}
			for i, kept := range slices.Concat(q.items[:q.head], q.items[len(q.items):cap(q.items)]) {
				if kept != 0 {
					t.Fatalf("the queue keeps item %d, which was dropped, at %d", kept, i)
				}
			}
			if moved > dropped {
				t.Fatalf("%d items were moved when %d had been dropped, want as many at most", moved, dropped)
			}
		}
	})
}

// However long a queue is, most drops move nothing.
func TestQueueMovesLittle(t *testing.T) {
	const items = 300_000
	var q queue[int]
	q.add(make([]int, items)...)
	for n := 1; n < items/2; n++ {
		if q.drop(); q.head != n {
			t.Fatalf("drop %d moved the %d items behind it, want it to move none", n, q.len())
		}
	}
}

// A queue through which many items pass does not grow with them.
func TestQueueReusesMemory(t *testing.T) {
	var q queue[int]
	for range 10_000 {
		q.add(1, 2, 3)
		for range 3 {
			q.drop()
		}
	}
	if n := cap(q.items); n > 10 {
		t.Errorf("a queue of 3 items at most has room for %d after 30,000, want 10 at most", n)
	}
}
