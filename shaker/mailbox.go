package shaker

import "sync"

// A mailbox carries results of background tasks from the loops, which never wait, to one reader. Its zero
// value has no room.
type mailbox[T any] struct {
	room  int           // how many items it can hold
	ready chan struct{} // has room for one value, which means that there are items

	mu    sync.Mutex
	items []T
}

func newMailbox[T any](room int) *mailbox[T] {
	return &mailbox[T]{room: room, ready: make(chan struct{}, 1)}
}

// put adds items in their order and returns how many found room. The rest is lost: the caller counts it.
func (m *mailbox[T]) put(items []T) (accepted int) {
	m.mu.Lock()
	accepted = min(len(items), m.room-len(m.items))
	m.items = append(m.items, items[:accepted]...)
	m.mu.Unlock()
	if accepted > 0 {
		select {
		case m.ready <- struct{}{}:
		default:
		}
	}
	return accepted
}

// take empties the mailbox. It returns the items in the order of put. spare is memory for later items: the
// reader passes what the previous take has returned, and must not use it any more.
func (m *mailbox[T]) take(spare []T) []T {
	clear(spare)
	m.mu.Lock()
	defer m.mu.Unlock()
	items := m.items
	m.items = spare[:0]
	return items
}
