package shaker

// Framing says how the data of a peer is divided into frames. Its zero value divides nothing: whatever arrives together
// is a frame.
type Framing struct {
	// Delimiter ends each frame, such as "\r\n". It is not part of the frame.
	Delimiter string

	// Length is the number of bytes in front of each frame that give the number of bytes that follow: 1, 2 or 4. It
	// is not part of the frame. 0 means that there is no length in front.
	Length int

	// LittleEndian reports whether the first byte of the length is the least significant one. Otherwise it is the
	// most significant one, which is the order of the network.
	LittleEndian bool

	// Max is the limit for a frame, 1 byte to 1 MiB. A longer one ends the connection. 0 means 4 KiB.
	Max int
}

const (
	defaultMaxFrame  = 4 << 10
	largestMaxFrame  = 1 << 20
	longestDelimiter = 16
)

// Validate returns an error that wraps [os.ErrInvalid] for a framing that is not possible.
func (f Framing) Validate() error {
	switch {
	case f.Delimiter != "" && f.Length != 0:
		return invalid("both a delimiter and a length of frames, want one of them")
	case len(f.Delimiter) > longestDelimiter:
		return invalid("a delimiter of %d bytes, want %d at most", len(f.Delimiter), longestDelimiter)
	case f.Length != 0 && f.Length != 1 && f.Length != 2 && f.Length != 4:
		return invalid("a length of %d bytes in front of frames, want 1, 2 or 4", f.Length)
	case f.LittleEndian && f.Length == 0:
		return invalid("an order of bytes without a length in front of frames")
	case f.Max < 0 || f.Max > largestMaxFrame:
		return invalid("frames of up to %d bytes, want 1 to %d", f.Max, largestMaxFrame)
	}
	return nil
}
