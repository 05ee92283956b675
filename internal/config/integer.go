package config

import "strconv"

// An Integer is the value of a flag: a whole number in decimal notation. Kingpin's own flag for an int also accepts
// other numbers, and rounds them.
type Integer int

// Set sets the value that the user has typed.
func (i *Integer) Set(text string) error {
	n, err := strconv.Atoi(text)
	if err == nil {
		*i = Integer(n)
	}
	return err
}

func (i *Integer) String() string { return strconv.Itoa(int(*i)) }
