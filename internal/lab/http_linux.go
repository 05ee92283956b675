package lab

import (
	"io"
	"net/http"
	"testing"
	"time"
)

// Client is an HTTP client that keeps no connection open and waits at most 30 s for a response.
var Client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// Get requests a URL and returns the body of the response. It fails the test if the status is not 200.
func Get(t testing.TB, url string) string {
	t.Helper()
	response, err := Client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("GET %s = %s, %v, want 200 OK:\n%s", url, response.Status, err, body)
	}
	return string(body)
}
