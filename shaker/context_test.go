package shaker

import (
	"context"
	"errors"
	"testing"
	"time"
)

// A lateContext is a context whose deadline has passed, but whose timer has not gone off yet.
type lateContext struct{ context.Context }

func (lateContext) Deadline() (time.Time, bool) { return time.Now().Add(-time.Second), true }

// The error of a handshake says why its context has ended, and only then.
func TestReasonOfAnEndedContext(t *testing.T) {
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	later, cancelLater := context.WithTimeout(context.Background(), time.Hour)
	defer cancelLater()
	const unsent = "shake: no SYN was sent in time for the deadline"
	for _, c := range []struct {
		name string
		ctx  context.Context
		err  error
		want string
	}{
		{name: "no deadline", ctx: context.Background(), err: ErrUnsent, want: unsent},
		{name: "a later deadline", ctx: later, err: ErrUnsent, want: unsent},
		{name: "a late timer", ctx: lateContext{context.Background()}, err: ErrUnsent,
			want: unsent + ": context deadline exceeded"},
		{name: "a cancelled context", ctx: cancelled, err: context.Canceled, want: "shake: context canceled"},
		{name: "another reason", ctx: cancelled, err: ErrClosed, want: "shake: the shaker is closed"},
	} {
		err := newOpError(c.ctx, "shake", c.err)
		if err.Error() != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: the error for %q is %q, want %q, and that it wraps the former", c.name, c.err, err, c.want)
		}
	}
}
