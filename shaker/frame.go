package shaker

import (
	"bytes"
	"errors"
)

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

	// Max is the limit for a frame, 1 byte to 1 MiB. A longer one ends the connection. 0 means 4 KiB. If nothing
	// divides the data, Max is the longest piece that is a frame.
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

// max returns the limit for a frame in bytes.
func (f *Framing) max() int {
	if f.Max == 0 {
		return defaultMaxFrame
	}
	return f.Max
}

// A splitter divides the data of a peer into frames. Its zero value is at the beginning of the data. It keeps no memory
// between frames, and for a frame that is not complete no more than twice what has arrived of it.
type splitter struct {
	partial []byte // of the next frame, what has arrived, including a length in front
}

// errLongFrame is the error of a frame that is longer than Framing.Max.
var errLongFrame = errors.New("the frame is too long")

// next takes the next frame, and returns the data after it. If ok is false, the frame is not complete: the splitter has
// taken all data. The frame is valid until the data is overwritten. After an error, there are no more frames.
func (s *splitter) next(f *Framing, data []byte) (frame, rest []byte, ok bool, err error) {
	switch {
	case len(data) == 0:
		return nil, nil, false, nil
	case f.Length > 0:
		return s.nextCounted(f, data)
	case f.Delimiter != "":
		return s.nextDelimited(f, data)
	}
	n := min(len(data), f.max())
	return data[:n], data[n:], true, nil
}

func (s *splitter) nextDelimited(f *Framing, data []byte) (frame, rest []byte, ok bool, err error) {
	delimiter := []byte(f.Delimiter)
	earlier := len(s.partial)
	longest := f.max() + len(delimiter)
	text := data[:min(len(data), longest-earlier)]
	if earlier > 0 {
		s.partial = append(s.partial, text...)
		text = s.partial
	}
	// What arrived earlier has no complete delimiter, but one may have begun in it.
	searched := max(0, earlier-len(delimiter)+1)
	if at := bytes.Index(text[searched:], delimiter); at >= 0 {
		at += searched
		s.partial = nil
		return text[:at], data[at+len(delimiter)-earlier:], true, nil
	}
	if len(text) == longest {
		return nil, nil, false, errLongFrame
	}
	if earlier == 0 {
		s.partial = bytes.Clone(text)
	}
	return nil, nil, false, nil
}

func (s *splitter) nextCounted(f *Framing, data []byte) (frame, rest []byte, ok bool, err error) {
	end := f.Length // of the frame or, until it is known, of the length
	for counted := false; ; counted = true {
		text := data
		if len(s.partial) > 0 {
			missing := min(len(data), max(0, end-len(s.partial)))
			s.partial = append(s.partial, data[:missing]...)
			data = data[missing:]
			text = s.partial
		}
		switch {
		case len(text) < end:
			if len(s.partial) == 0 {
				s.partial = bytes.Clone(text)
			}
			return nil, nil, false, nil
		case !counted:
			n := f.count(text)
			if n > uint64(f.max()) {
				return nil, nil, false, errLongFrame
			}
			end += int(n)
		case len(s.partial) > 0:
			s.partial = nil
			return text[f.Length:], data, true, nil
		default:
			return text[f.Length:end], data[end:], true, nil
		}
	}
}

// count returns the length in front of a frame.
func (f *Framing) count(text []byte) (n uint64) {
	for i := range f.Length {
		if f.LittleEndian {
			n |= uint64(text[i]) << (8 * i)
		} else {
			n = n<<8 | uint64(text[i])
		}
	}
	return n
}
