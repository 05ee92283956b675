package shaker

// An event is what the loop tells a task. The loop has no other way to call a task.
type event struct {
	kind eventKind

	// ready holds the events of epoll_ctl(2), such as EPOLLOUT; 0 unless the kind is eventReady.
	ready uint32

	// message is what a caller has passed to loop.tell; nil unless the kind is eventTold.
	message any

	// err is why the loop ends; nil unless the kind is eventClosing.
	err error
}

type eventKind uint8

const (
	// eventStart: the task makes its first system calls. If loop.socket returns errElsewhere, the
	// task does nothing, and gets the event again in another turn.
	eventStart eventKind = iota + 1
	// eventReady: there are events of a descriptor that the task has watched.
	eventReady
	// eventDue: the time that was set by submit or setDue has come. It is not set any more. The
	// event may come before eventStart.
	eventDue
	// eventTold: a caller has a message for the task. The event may come before eventStart.
	eventTold
	// eventRead: it is the task's turn to read, after readLater.
	eventRead
	// eventClosing: the loop ends. The task closes its descriptors and finishes.
	eventClosing
)

// A task is what the loop drives. Only the loop calls its method.
type task interface {
	// handle acts on an event. own is the task's ticket, by which it names itself to the loop. The
	// task ends by calling loop.finish, once, and gets no event afterwards.
	handle(l *loop, own ticket, e event)
}

// A refusable is a message whose sender waits for an answer.
type refusable interface {
	// refuse tells the sender that the task has ended. Only the loop calls it.
	refuse()
}

// A waiter is a goroutine that waits for a task to end.
type waiter interface {
	// wake wakes the goroutine, which calls loop.woke before it does anything else.
	wake(*loop)
}
