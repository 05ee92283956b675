package shaker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"testing"
)

// split divides data that arrives in pieces of the given size. It returns the frames, and whether one was too long.
func split(f Framing, data []byte, size int) (frames [][]byte, long bool) {
	var s splitter
	for piece := range slices.Chunk(data, size) {
		piece = bytes.Clone(piece)
		for rest := piece; ; {
			frame, after, ok, err := s.next(&f, rest)
			if err != nil {
				return frames, true
			}
			if !ok {
				break
			}
			frames, rest = append(frames, bytes.Clone(frame)), after
		}
		clear(piece) // the loop overwrites what it has read
	}
	return frames, false
}

// naive divides data that has arrived completely.
func naive(f Framing, data []byte) (frames [][]byte, long bool) {
	for {
		begin, end, after := 0, 0, 0 // of the frame, and where the next one begins
		if f.Delimiter != "" {
			end = bytes.Index(data, []byte(f.Delimiter))
			after = end + len(f.Delimiter)
			if end < 0 {
				return frames, len(data) >= f.max()+len(f.Delimiter)
			}
		} else {
			if len(data) < f.Length {
				return frames, false
			}
			number := bytes.Clone(data[:f.Length])
			if f.LittleEndian {
				slices.Reverse(number)
			}
			n := binary.BigEndian.Uint64(append(make([]byte, 8-f.Length), number...))
			if n <= uint64(f.max()) && uint64(len(data)-f.Length) < n {
				return frames, false
			}
			begin, end = f.Length, f.Length+int(n)
			after = end
		}
		if end-begin > f.max() {
			return frames, true
		}
		frames, data = append(frames, data[begin:end]), data[after:]
	}
}

func TestFrames(t *testing.T) {
	for _, c := range []struct {
		name    string
		framing Framing
		data    string
		want    []string
		long    bool
	}{
		{name: "lines", framing: Framing{Delimiter: "\r\n"},
			data: "+PONG\r\n\r\n-ERR\r\nrest", want: []string{"+PONG", "", "-ERR"}},
		{name: "a delimiter that repeats itself", framing: Framing{Delimiter: "aab"},
			data: "aaab.aab", want: []string{"a", "."}},
		{name: "as long as permitted", framing: Framing{Delimiter: "\n", Max: 3},
			data: "abc\nabc\n", want: []string{"abc", "abc"}},
		{name: "too long a line", framing: Framing{Delimiter: "\n", Max: 3},
			data: "ab\nabcd\n", want: []string{"ab"}, long: true},
		{name: "garbage instead of a line", framing: Framing{Delimiter: "\r\n", Max: 3},
			data: "ab\r\n\x16\x03\x01\x02\x00\x01", want: []string{"ab"}, long: true},
		{name: "a length of 2", framing: Framing{Length: 2},
			data: "\x00\x02ab\x00\x00\x00\x01c\x00\x05", want: []string{"ab", "", "c"}},
		{name: "a length of 2, little-endian", framing: Framing{Length: 2, LittleEndian: true},
			data: "\x02\x00ab\x01\x00c", want: []string{"ab", "c"}},
		{name: "the wrong order", framing: Framing{Length: 2}, data: "\x12\x00ab", long: true},
		{name: "a length of 1", framing: Framing{Length: 1},
			data: "\x02ab\x01c", want: []string{"ab", "c"}},
		{name: "the longest length", framing: Framing{Length: 4},
			data: "\xff\xff\xff\xff", long: true},
	} {
		for size := 1; size <= len(c.data); size++ {
			frames, long := split(c.framing, []byte(c.data), size)
			var got []string
			for _, frame := range frames {
				got = append(got, string(frame))
			}
			if !slices.Equal(got, c.want) || long != c.long {
				t.Errorf("%s: the frames of %q in pieces of %d are %q, too long: %t, want %q, too long: %t",
					c.name, c.data, size, got, long, c.want, c.long)
			}
		}
	}
}

// Without framing, what arrives together is a frame, in pieces of Max.
func TestNoFraming(t *testing.T) {
	frames, long := split(Framing{Max: 4}, []byte("abcdefghij"), 6)
	want := [][]byte{[]byte("abcd"), []byte("ef"), []byte("ghij")}
	if !slices.EqualFunc(frames, want, bytes.Equal) || long {
		t.Errorf("the frames are %q, too long: %t, want %q", frames, long, want)
	}
}

// A length in front makes no memory: only what has arrived does.
func TestFrameMemory(t *testing.T) {
	for _, f := range []Framing{{Length: 4, Max: largestMaxFrame}, {Delimiter: "\n", Max: largestMaxFrame}} {
		var s splitter
		for _, b := range []byte{0, 0x0f, 0xff, 0xff, 1, 2, 3} {
			if _, _, ok, err := s.next(&f, []byte{b}); ok || err != nil {
				t.Fatalf("%+v: a frame after a few bytes: ok %t, error %v, want none", f, ok, err)
			}
		}
		if got := cap(s.partial); got > 64 {
			t.Errorf("%+v: %d bytes of memory for 7 that have arrived, want 64 at most", f, got)
		}
	}
}

// However the data arrives, the frames are those of a reader that has all of it.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("+PONG\r\n-ERR\r\n"), "\r\n", uint8(0), false, uint16(5), uint8(3))
	f.Add([]byte("\x00\x02ab\x00\x00"), "", uint8(2), false, uint16(0), uint8(1))
	f.Add([]byte("\x02\x00ab\x00\x00"), "", uint8(2), true, uint16(1), uint8(2))
	f.Add([]byte("\x04\x00\x00\x00abcd"), "", uint8(4), true, uint16(100), uint8(7))
	f.Add([]byte("aaabaab"), "aab", uint8(0), false, uint16(3), uint8(2))
	f.Fuzz(func(t *testing.T, data []byte, delimiter string, length uint8, little bool, limit uint16, size uint8) {
		framing := Framing{Delimiter: delimiter, Length: int(length), LittleEndian: little, Max: int(limit)}
		if err := framing.Validate(); err != nil {
			if !errors.Is(err, os.ErrInvalid) {
				t.Errorf("Validate of %+v: error %v, want one that wraps os.ErrInvalid", framing, err)
			}
			return
		}
		if framing.Delimiter == "" && framing.Length == 0 {
			return // what arrives together is a frame
		}
		frames, long := split(framing, data, 1+int(size))
		want, wantLong := naive(framing, data)
		if !slices.EqualFunc(frames, want, bytes.Equal) || long != wantLong {
			t.Errorf("the frames of %q, %+v, in pieces of %d are %q, too long: %t, want %q, too long: %t",
				data, framing, 1+int(size), frames, long, want, wantLong)
		}
	})
}
