package shaker

import "sync"

// An outlet passes the items of a mailbox on, one after the other, in a goroutine of its own.
type outlet[T interface{ pass() }] struct {
	*mailbox[T]
	starting, closing sync.Once
	closed            chan struct{} // tells the goroutine to end
	ended             chan struct{} // closed when it has ended
}

func newOutlet[T interface{ pass() }](room int) *outlet[T] {
	return &outlet[T]{mailbox: newMailbox[T](room), closed: make(chan struct{}), ended: make(chan struct{})}
}

// start starts the goroutine, unless it has been started.
func (o *outlet[T]) start() { o.starting.Do(func() { go o.run() }) }

func (o *outlet[T]) run() {
	defer close(o.ended)
	var items []T
	for open := true; open; {
		select {
		case <-o.ready:
		case <-o.closed:
			open = false
		}
		items = o.take(items)
		for _, item := range items {
			item.pass()
		}
	}
}

// close ends the goroutine when it has passed on what is in the mailbox.
func (o *outlet[T]) close() {
	o.closing.Do(func() { close(o.closed) })
	o.starting.Do(func() { close(o.ended) })
	<-o.ended
}
