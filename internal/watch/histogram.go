package watch

import (
	"math"
	"sort"
	"time"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// The native buckets have schema 3: each bucket is 2^(1/8) times as wide as the one before it. The bucket with the
// key k holds the samples above 2^((k-1)/8) s, up to and including 2^(k/8) s. The zero bucket holds the samples up to
// and including zeroThreshold, which lies inside the first bucket after it.
const (
	schema        = 3
	perOctave     = 1 << schema
	zeroThreshold = 1e-5             // seconds
	zeroKey       = -133             // the zero bucket takes the place of this key
	lastKey       = 6 * perOctave    // the key of the last bucket
	maxSample     = 64 * time.Second // the upper bound of the last bucket
)

// nativeBounds are the lower bounds of the buckets in an octave, as fractions that math.Frexp returns. They are the
// powers 2^(-8/8), 2^(-7/8) … 2^(-1/8), rounded as in client_golang, so that both put each sample into the same bucket.
var nativeBounds = [perOctave]float64{
	0.5, 0.5452538663326288, 0.5946035575013605, 0.6484197773255048,
	0.7071067811865475, 0.7711054127039704, 0.8408964152537144, 0.9170040432046711,
}

// classicBounds are the upper bounds of the classic buckets in seconds, without +Inf. They are those of
// shaker_handshake_seconds, so that a query or a heat map can show both.
var classicBounds = [...]float64{
	.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5,
}

// A histogram counts durations in fixed classic and native buckets. It takes 800 bytes and has no pointers, because
// each watched target has one. The zero value is an empty histogram. A histogram is not safe for concurrent use.
//
// A sample below 0 counts as 0, because a sum that decreases would look like a counter reset. A sample above 64 s
// counts as 64 s. After 4,294,967,295 samples, which takes 13 years with 10 samples a second, the next sample starts
// from an empty histogram. Prometheus sees a counter reset, as after a restart of the exporter; counters that wrap one
// by one would look like billions of samples in the other buckets.
type histogram struct {
	sum     float64 // seconds
	count   uint32
	classic [len(classicBounds)]uint32    // not cumulative; without the samples above the last bound
	native  [lastKey - zeroKey + 1]uint32 // at key - zeroKey; the first is the zero bucket
}

// observe adds a sample.
func (h *histogram) observe(d time.Duration) {
	if h.count == math.MaxUint32 {
		*h = histogram{}
	}
	seconds := min(max(d, 0), maxSample).Seconds()
	h.sum += seconds
	h.count++
	for i, bound := range classicBounds {
		if seconds <= bound {
			h.classic[i]++
			break
		}
	}
	key := zeroKey
	if seconds > zeroThreshold {
		fraction, exponent := math.Frexp(seconds)
		key = (exponent-1)*perOctave + sort.SearchFloat64s(nativeBounds[:], fraction)
	}
	h.native[key-zeroKey]++
}

// write replaces the contents of out with the histogram. The result equals that of a client_golang histogram with the
// same buckets and samples, created at the given time. Callers must not change the bounds in out, which all histograms
// share.
func (h *histogram) write(out *dto.Histogram, created time.Time) {
	out.Reset()
	out.SampleCount = new(uint64(h.count))
	out.SampleSum = new(h.sum)
	out.CreatedTimestamp = timestamppb.New(created)

	out.Bucket = make([]*dto.Bucket, len(classicBounds))
	buckets := make([]dto.Bucket, len(classicBounds))
	cumulative := make([]uint64, len(classicBounds))
	var total uint64
	for i := range classicBounds {
		total += uint64(h.classic[i])
		cumulative[i] = total
		buckets[i].CumulativeCount = &cumulative[i]
		buckets[i].UpperBound = &classicBounds[i]
		out.Bucket[i] = &buckets[i]
	}

	out.Schema = new(int32(schema))
	out.ZeroThreshold = new(zeroThreshold)
	out.ZeroCount = new(uint64(h.native[0]))
	const widestGap = 2 // in buckets; a span takes more bytes than two empty buckets
	var span *dto.BucketSpan
	var previous int64 // the count of the bucket before next
	next := 0          // the key after the last one of the span
	for i, count := range h.native[1:] {
		if count == 0 {
			continue
		}
		key := zeroKey + 1 + i
		if gap := key - next; span == nil || gap > widestGap {
			span = &dto.BucketSpan{Offset: new(int32(gap)), Length: new(uint32)}
			out.PositiveSpan = append(out.PositiveSpan, span)
			next = key
		}
		for ; next <= key; next++ {
			current := int64(h.native[next-zeroKey])
			out.PositiveDelta = append(out.PositiveDelta, current-previous)
			previous = current
			*span.Length++
		}
	}
}

// quantile estimates the quantile q, from 0 to 1, from the native buckets. Like histogram_quantile in Prometheus, it
// searches for the bucket of the quantile from the nearer end, and interpolates exponentially in that bucket, but
// linearly in the zero bucket, which starts at 0. It returns 0 if there are no samples.
func (h *histogram) quantile(q float64) time.Duration {
	if h.count == 0 {
		return 0
	}
	i, step, rank := 0, 1, q*float64(h.count)
	if q >= 0.5 {
		i, step, rank = len(h.native)-1, -1, (1-q)*float64(h.count)
	}
	passed := float64(h.native[i])
	for h.native[i] == 0 || passed < rank {
		i += step
		passed += float64(h.native[i])
	}
	fraction := (passed - rank) / float64(h.native[i]) // of the bucket, beyond the quantile
	if step > 0 {
		fraction = 1 - fraction
	}
	seconds := zeroThreshold * fraction
	if i > 0 {
		upper := float64(zeroKey+i) / perOctave
		lower := max(upper-1./perOctave, math.Log2(zeroThreshold))
		seconds = math.Exp2(lower + (upper-lower)*fraction)
	}
	return time.Duration(math.Round(seconds * float64(time.Second)))
}
