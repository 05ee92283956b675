package shaker

// A queue is first in, first out. Its zero value is empty.
type queue[T any] struct {
	items []T
	head  int // index of the first item; those before it have been dropped
}

func (q *queue[T]) len() int { return len(q.items) - q.head }

func (q *queue[T]) add(items ...T) { q.items = append(q.items, items...) }

// first returns the first item of a queue that is not empty.
func (q *queue[T]) first() T { return q.items[q.head] }

// drop removes the first item.
func (q *queue[T]) drop() {
	var zero T
	q.items[q.head] = zero // for the garbage collector
	q.head++
	// Move the rest to the front once it is no longer than the dropped part: so each item is moved
	// at most once for each that is dropped.
	if rest := q.items[q.head:]; len(rest) <= q.head {
		n := copy(q.items, rest)
		clear(rest)
		q.items, q.head = q.items[:n], 0
	}
}
