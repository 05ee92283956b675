package pages

import (
	"fmt"
	"net/url"
)

// parseQuery parses the query of a request. Each of the named parameters may be given once.
func parseQuery(raw string, names ...string) (url.Values, error) {
	query, err := url.ParseQuery(raw)
	if err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	for _, name := range names {
		if n := len(query[name]); n > 1 {
			return nil, fmt.Errorf("parameter %q given %d times, want once", name, n)
		}
	}
	return query, nil
}
