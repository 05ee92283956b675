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

// A Browser is a headless Chromium with one page. Its methods send commands in the Chrome DevTools Protocol
// through a pair of pipes. Chromium ends when the pipes are closed, which happens even if this process is
// killed.
type Browser struct {
	t        testing.TB
	session  string // ID of the session with the page
	commands *os.File

	mu         sync.Mutex
	sent       int                    // number of commands, and ID of the last one
	replies    map[int]chan<- message // receivers of the replies, by ID of the command
	complaints []string
}

// A message is what the browser sends: the reply to a command, or an event.
type message struct {
	// Fields of a reply
	ID     int
	Result json.RawMessage
	Error  *struct{ Message string }

	// Fields of an event
	Method string
	Params json.RawMessage
}

// New starts a browser, which runs until the test ends.
func New(t testing.TB) *Browser {
	t.Helper()
	lab.Need(t)
	cmd := exec.Command(lab.Program(t, "chromium", "chromium"),
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-crash-reporter",
		"--no-first-run", "--disable-background-networking", "--disable-component-update",
		"--hide-scrollbars", // like a phone
		"--log-level=3",     // fatal errors only
		"--user-data-dir="+t.TempDir(), "--remote-debugging-pipe")
	theirCommands, commands, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	messages, theirMessages, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{theirCommands, theirMessages}
	chromium := process.Start(t, cmd)
	theirCommands.Close()
	theirMessages.Close()
	b := &Browser{t: t, commands: commands, replies: make(map[int]chan<- message)}
	var reading sync.WaitGroup
	reading.Go(func() { b.read(messages) })
	t.Cleanup(func() {
		b.session = ""
		b.Do("Browser.close", nil, nil)
		chromium.Wait()
		commands.Close()
		reading.Wait()
		messages.Close()
	})
	b.newPage()
	return b
}

// newPage opens the page and subscribes to its events.
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

// Do sends a command of the Chrome DevTools Protocol and decodes the result of the reply, unless result is nil.
func (b *Browser) Do(method string, params, result any) {
	b.t.Helper()
	if err := b.do(method, params, result); err != nil {
		b.t.Fatal(err)
	}
}

// do is like Do, but returns the error.
func (b *Browser) do(method string, params, result any) error {
	answer := make(chan message, 1)
	b.mu.Lock()
	b.sent++
	b.replies[b.sent] = answer
	command := map[string]any{"id": b.sent, "method": method}
	if params != nil {
		command["params"] = params
	}
	if b.session != "" {
		command["sessionId"] = b.session
	}
	text, err := json.Marshal(command)
	if err == nil {
		_, err = b.commands.Write(append(text, 0))
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
		return fmt.Errorf("%s: no reply within a minute", method)
	}
}

// read reads the messages of the browser until the browser ends.
func (b *Browser) read(from *os.File) {
	for messages := bufio.NewReader(from); ; {
		text, err := messages.ReadBytes(0)
		if err != nil {
			return
		}
		var m message
		if err := json.Unmarshal(text[:len(text)-1], &m); err != nil {
			b.t.Errorf("the browser sent %s: %v", text, err)
			continue
		}
		b.mu.Lock()
		switch m.Method {
		case "": // a reply
			b.replies[m.ID] <- m
			delete(b.replies, m.ID)
		case "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening":
			b.complaints = append(b.complaints, fmt.Sprintf("%s: %s", m.Method, m.Params))
		}
		b.mu.Unlock()
	}
}

// Complaints returns the complaints of the page since the last call: messages on the console, exceptions,
// dialogs, violations of its Content-Security-Policy, and failed requests.
func (b *Browser) Complaints() []string {
	b.Eval("0") // its reply comes after all earlier events
	b.mu.Lock()
	defer b.mu.Unlock()
	complaints := slices.Clone(b.complaints)
	b.complaints = nil
	return complaints
}

// Open opens a URL and waits until its page is loaded.
func (b *Browser) Open(url string) {
	b.t.Helper()
	var page struct{ ErrorText string }
	b.Do("Page.navigate", map[string]any{"url": url}, &page)
	if page.ErrorText != "" {
		b.t.Fatalf("opening %s: %s", url, page.ErrorText)
	}
	b.Eventually(`document.readyState === "complete"`)
}

// Arrive waits until the browser has followed a link or a redirect to the page at a path and has loaded it.
func (b *Browser) Arrive(path string) {
	b.t.Helper()
	b.Eventually(fmt.Sprintf(`location.pathname === %q && document.readyState === "complete"`, path))
}

// Type types a text into the element that has the focus. A newline in the text is the Enter key.
func (b *Browser) Type(text string) {
	b.t.Helper()
	for line := range strings.Lines(text) {
		line, entered := strings.CutSuffix(line, "\n")
		b.Do("Input.insertText", map[string]any{"text": line}, nil)
		if entered {
			key := map[string]any{"type": "keyDown", "key": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
			b.Do("Input.dispatchKeyEvent", key, nil)
			key = map[string]any{"type": "keyUp", "key": "Enter", "windowsVirtualKeyCode": 13}
			b.Do("Input.dispatchKeyEvent", key, nil)
		}
	}
}

// Eval returns the value of a JavaScript expression, decoded as by encoding/json.
func (b *Browser) Eval(expression string) any {
	b.t.Helper()
	value, err := b.evaluate(expression)
	if err != nil {
		b.t.Fatal(err)
	}
	return value
}

// Leave evaluates a JavaScript expression that opens another page.
func (b *Browser) Leave(expression string) {
	b.t.Helper()
	if _, err := b.evaluate(expression); err != nil && !left(err) {
		b.t.Fatal(err)
	}
}

// Eventually waits until a JavaScript expression is true, on this page or on the next one. It fails the test
// after a minute.
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

// evaluate is like Eval, but returns the error.
func (b *Browser) evaluate(expression string) (any, error) {
	var evaluated struct {
		Result           struct{ Value any }
		ExceptionDetails json.RawMessage
	}
	params := map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true}
	err := b.do("Runtime.evaluate", params, &evaluated)
	if err == nil && evaluated.ExceptionDetails != nil {
		err = fmt.Errorf("%s: %s", expression, evaluated.ExceptionDetails)
	}
	return evaluated.Result.Value, err
}

// left reports whether an evaluation failed because the browser opened another page in the meantime.
func left(err error) bool { return strings.Contains(err.Error(), "navigated") }

// Screenshot returns a picture of the whole page as a PNG.
func (b *Browser) Screenshot() []byte {
	b.t.Helper()
	var picture struct{ Data []byte }
	b.Do("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true}, &picture)
	return picture.Data
}
