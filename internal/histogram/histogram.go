// Package histogram counts durations in classic and native buckets of Prometheus, in little memory: an exporter that
// watches or holds many targets has a histogram for each of them.
package histogram

import (
	"math"
	"math/bits"
	"slices"
	"sort"
	"time"

	dto "github.com/prometheus/client_model/go"
)

// The native buckets have schema 3: each bucket is 2^(1/8) times as wide as the one before it. The bucket with the
// key k holds the samples above 2^((k-1)/8) s, up to and including 2^(k/8) s. The zero bucket holds the samples up to
// and including zeroThreshold, which lies inside the first bucket after it.
const (
	schema        = 3
	perOctave     = 1 << schema
	zeroThreshold = 1e-5           // seconds
	zeroKey       = -133           // the zero bucket takes the place of this key
	firstKey      = -135           // the key of the first bucket in the octave of the zero bucket
	lastKey       = 27 * perOctave // the key of the last bucket
	octaves       = (lastKey - firstKey + 1) / perOctave
	maxSample     = 1 << 27 * time.Second // four years, the upper bound of the last bucket
)

// nativeBounds are the lower bounds of the buckets in an octave, as fractions that math.Frexp returns. They are the
// powers 2^(-8/8), 2^(-7/8) … 2^(-1/8), rounded as in client_golang, so that both put each sample into the same bucket.
var nativeBounds = [perOctave]float64{
	0.5, 0.5452538663326288, 0.5946035575013605, 0.6484197773255048,
	0.7071067811865475, 0.7711054127039704, 0.8408964152537144, 0.9170040432046711,
}

// Bounds are the upper bounds of classic buckets in seconds, without +Inf.
type Bounds struct {
	all    []float64
	octave [octaves]float64 // the bound in each octave, 0 if there is none
}

// NewBounds returns ascending bounds from 10 µs to four years. Each must be at least twice as large as the one before
// it, so that no two of them are in one octave.
func NewBounds(seconds ...float64) *Bounds {
	b := &Bounds{all: seconds}
	for _, bound := range seconds {
		i, _ := bucketOf(bound)
		b.octave[i] = bound
	}
	return b
}

// A Histogram counts durations. It only has memory for the octaves in which there are samples: most targets have
// samples in one to three of them. The zero value is an empty histogram. All calls for a histogram must have the same
// bounds; it does not keep them, for the sake of its size. It is not safe for concurrent use.
//
// A sample below 0 counts as 0, because a sum that decreases would look like a counter reset. After 4,294,967,295
// samples, which takes 13 years with 10 samples a second, the next sample starts from an empty histogram. Prometheus
// sees a counter reset, as after a restart of the exporter; counters that wrap one by one would look like billions of
// samples in the other buckets.
type Histogram struct {
	sum     float64 // seconds
	used    uint64  // the bit 1<<i is set if the octave i has samples
	octaves []octave
	count   uint32
}

// An octave counts the samples from one power of two to the next one. The octave 0 starts with firstKey.
type octave struct {
	native  [perOctave]uint32
	classic uint32 // the samples up to the classic bound in this octave
}

// Count returns the number of samples.
func (h *Histogram) Count() uint64 { return uint64(h.count) }

// bucketOf returns the octave of a sample and its native bucket in the octave.
func bucketOf(seconds float64) (i, bucket int) {
	key := zeroKey
	if seconds > zeroThreshold {
		fraction, exponent := math.Frexp(seconds)
		key = (exponent-1)*perOctave + sort.SearchFloat64s(nativeBounds[:], fraction)
	}
	return (key - firstKey) / perOctave, (key - firstKey) % perOctave
}

// Observe adds a sample.
func (h *Histogram) Observe(b *Bounds, d time.Duration) {
	if h.count == math.MaxUint32 {
		*h = Histogram{}
	}
	seconds := min(max(d, 0), maxSample).Seconds()
	h.sum += seconds
	h.count++
	i, bucket := bucketOf(seconds)
	position := bits.OnesCount64(h.used & (1<<i - 1))
	if h.used&(1<<i) == 0 {
		h.used |= 1 << i
		h.octaves = slices.Insert(h.octaves, position, octave{})
	}
	in := &h.octaves[position]
	in.native[bucket]++
	if seconds <= b.octave[i] {
		in.classic++
	}
}

// native returns the counts of all native buckets. That of a key is at key - firstKey.
func (h *Histogram) native() (all [octaves * perOctave]uint32) {
	position := 0
	for i := range octaves {
		if h.used&(1<<i) != 0 {
			copy(all[i*perOctave:], h.octaves[position].native[:])
			position++
		}
	}
	return all
}

// setClassic sets the counts of the classic buckets without that of +Inf, each with the counts of those below it.
func (h *Histogram) setClassic(b *Bounds, buckets []*dto.Bucket) {
	var total uint64 // of the octaves below
	next, position := 0, 0
	for i, bound := range b.octave {
		var in octave
		if h.used&(1<<i) != 0 {
			in = h.octaves[position]
			position++
		}
		if bound > 0 {
			*buckets[next].CumulativeCount = total + uint64(in.classic)
			next++
		}
		for _, count := range in.native {
			total += uint64(count)
		}
	}
}

// Write replaces the contents of out with the histogram. The result equals that of a client_golang histogram with the
// same buckets and samples, created at the given time. Callers must not change the bounds in out, which all histograms
// share. The memory of out is used again: out is empty, or was filled by Write for a histogram with
// the same bounds.
func (h *Histogram) Write(b *Bounds, out *dto.Histogram, created time.Time) {
	native := h.native()
	count, sum, zeros := reuse(out.SampleCount), reuse(out.SampleSum), reuse(out.ZeroCount)
	at, buckets, spans, deltas := reuse(out.CreatedTimestamp), out.Bucket, out.PositiveSpan[:0], out.PositiveDelta[:0]
	out.Reset()
	*count, *sum, *zeros = uint64(h.count), h.sum, uint64(native[zeroKey-firstKey])
	at.Seconds, at.Nanos = created.Unix(), int32(created.Nanosecond())
	out.SampleCount, out.SampleSum, out.ZeroCount, out.CreatedTimestamp = count, sum, zeros, at

	if buckets == nil {
		buckets = b.buckets()
	}
	h.setClassic(b, buckets)
	out.Bucket = buckets

	out.Schema, out.ZeroThreshold = &nativeSchema, &nativeThreshold
	const widestGap = 2 // in buckets; a span takes more bytes than two empty buckets
	var span *dto.BucketSpan
	var previous int64 // the count of the bucket before next
	next := 0          // the key after the last one of the span
	for key := zeroKey + 1; key <= lastKey; key++ {
		if native[key-firstKey] == 0 {
			continue
		}
		if gap := key - next; span == nil || gap > widestGap {
			spans = extend(spans)
			span = spans[len(spans)-1]
			*span.Offset, *span.Length = int32(gap), 0
			next = key
		}
		for ; next <= key; next++ {
			current := int64(native[next-firstKey])
			deltas = append(deltas, current-previous)
			previous = current
			*span.Length++
		}
	}
	out.PositiveSpan, out.PositiveDelta = spans, deltas
}

// What every histogram has, to point to.
var (
	nativeSchema    int32 = schema
	nativeThreshold       = zeroThreshold
)

// reuse returns memory that was used before, if there is any.
func reuse[T any](memory *T) *T {
	if memory == nil {
		return new(T)
	}
	return memory
}

// buckets returns the classic buckets, without counts.
func (b *Bounds) buckets() []*dto.Bucket {
	all := make([]*dto.Bucket, len(b.all))
	for i := range all {
		all[i] = &dto.Bucket{CumulativeCount: new(uint64), UpperBound: &b.all[i]}
	}
	return all
}

// extend adds a span, one that was used before if there is one.
func extend(spans []*dto.BucketSpan) []*dto.BucketSpan {
	if n := len(spans); n < cap(spans) && spans[:n+1][n] != nil {
		return spans[:n+1]
	}
	return append(spans, &dto.BucketSpan{Offset: new(int32), Length: new(uint32)})
}

// Quantile estimates the quantile q, from 0 to 1, from the native buckets. Like histogram_quantile in Prometheus, it
// searches for the bucket of the quantile from the nearer end, and interpolates exponentially in that bucket, but
// linearly in the zero bucket, which starts at 0. It returns 0 if there are no samples.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.count == 0 {
		return 0
	}
	native := h.native()
	i, step, rank := 0, 1, q*float64(h.count)
	if q >= 0.5 {
		i, step, rank = len(native)-1, -1, (1-q)*float64(h.count)
	}
	passed := float64(native[i])
	for native[i] == 0 || passed < rank {
		i += step
		passed += float64(native[i])
	}
	fraction := (passed - rank) / float64(native[i]) // of the bucket, beyond the quantile
	if step > 0 {
		fraction = 1 - fraction
	}
	seconds := zeroThreshold * fraction
	if key := firstKey + i; key > zeroKey {
		upper := float64(key) / perOctave
		lower := max(upper-1./perOctave, math.Log2(zeroThreshold))
		seconds = math.Exp2(lower + (upper-lower)*fraction)
	}
	return time.Duration(math.Round(seconds * float64(time.Second)))
}
