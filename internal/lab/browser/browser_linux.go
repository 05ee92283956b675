// Package browser opens pages in a headless Chromium, for the tests of the status page.
package browser

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// A Browser is a headless Chromium with one page. It speaks the Chrome DevTools Protocol
// with it over a pair of pipes: when this process ends, however it does, so does Chromium.
type Browser struct {
	t       testing.TB
	session string
	orders  *os.File

	mu         sync.Mutex
	sent       int
	replies    map[int]chan<- reply
	complaints []string
}

// A reply is a message from the browser: the answer to an order, or an event.
type reply struct {
	ID     int
	Result json.RawMessage
	Error  *struct{ Message string }

	Method string
	Params json.RawMessage
}

// New starts a browser for the rest of the test.
func New(t testing.TB) *Browser {
	t.Helper()
	lab.Need(t)
	cmd := exec.Command(lab.Program(t, "chromium", "chromium"),
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-crash-reporter",
		"--no-first-run", "--disable-background-networking", "--disable-component-update",
		"--hide-scrollbars", "--log-level=3", // as a phone does; only what is fatal
		"--user-data-dir="+t.TempDir(), "--remote-debugging-pipe")
	theirOrders, orders, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	replies, theirReplies, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{theirOrders, theirReplies}
	chromium := process.Start(t, cmd)
	theirOrders.Close()
	theirReplies.Close()
	b := &Browser{t: t, orders: orders, replies: make(map[int]chan<- reply)}
	var reading sync.WaitGroup
	reading.Go(func() { b.read(replies) })
	t.Cleanup(func() {
		b.session = ""
		b.Do("Browser.close", nil, nil)
		chromium.Wait()
		orders.Close()
		reading.Wait()
		replies.Close()
	})
	b.newPage()
	return b
}

// newPage opens the page and listens to what goes wrong in it.
func (b *Browser) newPage() {
	b.t.Helper()
	var target struct{ TargetID string }
	b.Do("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.Do("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		b.Do(domain+".enable", nil, nil)
	}
}

// Do lets the browser do something and reads the result, which may be nil.
func (b *Browser) Do(method string, params, result any) {
	b.t.Helper()
	if err := b.do(method, params, result); err != nil {
		b.t.Fatal(err)
	}
}

func (b *Browser) do(method string, params, result any) error {
	answer := make(chan reply, 1)
	b.mu.Lock()
	b.sent++
	b.replies[b.sent] = answer
	order := map[string]any{"id": b.sent, "method": method}
	if params != nil {
		order["params"] = params
	}
	if b.session != "" {
		order["sessionId"] = b.session
	}
	message, err := json.Marshal(order)
	if err == nil {
		_, err = b.orders.Write(append(message, 0))
	}
	b.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case r := <-answer:
		if r.Error != nil {
			return fmt.Errorf("%s: %s", method, r.Error.Message)
		}
		if result == nil {
			return nil
		}
		if err := json.Unmarshal(r.Result, result); err != nil {
			return fmt.Errorf("%s: %w: %s", method, err, r.Result)
		}
		return nil
	case <-time.After(time.Minute):
		return fmt.Errorf("waited for a minute: %s", method)
	}
}

// read reads what the browser says until it ends.
func (b *Browser) read(from *os.File) {
	for messages := bufio.NewReader(from); ; {
		message, err := messages.ReadBytes(0)
		if err != nil {
			return
		}
		var r reply
		if err := json.Unmarshal(message[:len(message)-1], &r); err != nil {
			b.t.Errorf("browser: %v: %s", err, message)
			continue
		}
		b.mu.Lock()
		switch r.Method {
		case "":
			b.replies[r.ID] <- r
			delete(b.replies, r.ID)
		case "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening":
			b.complaints = append(b.complaints, fmt.Sprintf("%s: %s", r.Method, r.Params))
		}
		b.mu.Unlock()
	}
}

// Complaints returns what the page has complained about since the last call: messages on
// the console, exceptions, dialogs, what its Content-Security-Policy has blocked, requests
// that failed.
func (b *Browser) Complaints() []string {
	b.Eval("0") // what it has said before this is here
	b.mu.Lock()
	defer b.mu.Unlock()
	complaints := slices.Clone(b.complaints)
	b.complaints = nil
	return complaints
}

// Open goes to a URL and waits until its page is there.
func (b *Browser) Open(url string) {
	b.t.Helper()
	var page struct{ ErrorText string }
	b.Do("Page.navigate", map[string]any{"url": url}, &page)
	if page.ErrorText != "" {
		b.t.Fatalf("%s: %s", url, page.ErrorText)
	}
	b.Eventually(`document.readyState === "complete"`)
}

// Arrive waits until the page at a path is there, to which the one before it leads.
func (b *Browser) Arrive(path string) {
	b.t.Helper()
	b.Eventually(fmt.Sprintf(`location.pathname === %q && document.readyState === "complete"`, path))
}

// Type types into the element that has the focus. A newline is the Enter key.
func (b *Browser) Type(text string) {
	b.t.Helper()
	for line := range strings.Lines(text) {
		line, entered := strings.CutSuffix(line, "\n")
		b.Do("Input.insertText", map[string]any{"text": line}, nil)
		if entered {
			b.Do("Input.dispatchKeyEvent", map[string]any{"type": "keyDown", "key": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}, nil)
			b.Do("Input.dispatchKeyEvent", map[string]any{"type": "keyUp", "key": "Enter", "windowsVirtualKeyCode": 13}, nil)
		}
	}
}

// Eval returns the value of an expression of JavaScript, as encoding/json has it.
func (b *Browser) Eval(expression string) any {
	b.t.Helper()
	value, err := b.evaluate(expression)
	if err != nil {
		b.t.Fatal(err)
	}
	return value
}

// Leave evaluates an expression that leads to another page.
func (b *Browser) Leave(expression string) {
	b.t.Helper()
	if _, err := b.evaluate(expression); err != nil && !left(err) {
		b.t.Fatal(err)
	}
}

// Eventually waits until an expression is true, on this page or the next one, and fails
// the test if that takes more than a minute.
func (b *Browser) Eventually(expression string) {
	b.t.Helper()
	lab.Eventually(b.t, expression, func() bool {
		value, err := b.evaluate(expression)
		if err != nil && !left(err) {
			b.t.Fatal(err)
		}
		return value == true
	})
}

func (b *Browser) evaluate(expression string) (any, error) {
	var evaluated struct {
		Result           struct{ Value any }
		ExceptionDetails json.RawMessage
	}
	err := b.do("Runtime.evaluate", map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true}, &evaluated)
	if err == nil && evaluated.ExceptionDetails != nil {
		err = fmt.Errorf("%s: %s", expression, evaluated.ExceptionDetails)
	}
	return evaluated.Result.Value, err
}

// left tells whether the browser could not tell a value because it went to another page.
func left(err error) bool { return strings.Contains(err.Error(), "navigated") }

// Screenshot returns a picture of the whole page, a PNG.
func (b *Browser) Screenshot() []byte {
	b.t.Helper()
	var picture struct{ Data []byte }
	b.Do("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true}, &picture)
	return picture.Data
}
