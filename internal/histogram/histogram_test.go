package histogram

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"google.golang.org/protobuf/proto"
)

// testBounds are as far apart as any that are in use.
var testBounds = NewBounds(
	.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60, 120, 300, 3600, 86400)

// newReference returns a histogram of client_golang with the same buckets.
func newReference() prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Buckets:                      testBounds.all,
		NativeHistogramBucketFactor:  1.1,
		NativeHistogramZeroThreshold: zeroThreshold,
	})
}

// both returns the samples as written by a histogram, and by client_golang with the same created timestamp.
func both(t testing.TB, samples ...time.Duration) (got, want *dto.Histogram) {
	t.Helper()
	var h Histogram
	reference := newReference()
	for _, d := range samples {
		h.Observe(testBounds, d)
		reference.Observe(d.Seconds())
	}
	var metric dto.Metric
	if err := reference.Write(&metric); err != nil {
		t.Fatal(err)
	}
	want = metric.Histogram
	got = new(dto.Histogram)
	h.Write(testBounds, got, want.CreatedTimestamp.AsTime())
	return got, want
}

// boundaries returns the durations at and next to the bounds of all buckets. Few bounds are whole nanoseconds.
func boundaries() []time.Duration {
	bounds := append([]float64{0, zeroThreshold}, testBounds.all...)
	for key := zeroKey + 1; key <= lastKey; key++ {
		bounds = append(bounds, math.Exp2(float64(key)/perOctave))
	}
	var all []time.Duration
	for _, bound := range bounds {
		at := time.Duration(math.Round(bound * 1e9))
		for d := max(at-2, 0); d <= min(at+2, maxSample); d++ {
			all = append(all, d)
		}
	}
	return all
}

// randomSamples returns n durations from 1 ns to four years, as many in each octave as in any other.
func randomSamples(n int) []time.Duration {
	random := rand.New(rand.NewPCG(1, 2))
	samples := make([]time.Duration, n)
	for i := range samples {
		samples[i] = time.Duration(math.Exp2(random.Float64() * math.Log2(float64(maxSample))))
	}
	return samples
}

// repeat returns n samples of the duration.
func repeat(d time.Duration, n int) []time.Duration {
	return slices.Repeat([]time.Duration{d}, n)
}

// In every exposition format, the histogram equals that of client_golang with the same samples, byte for byte.
func TestWriteEqualsClientGolang(t *testing.T) {
	for _, test := range []struct {
		name    string
		samples []time.Duration
	}{
		{name: "no samples"},
		{name: "one sample", samples: repeat(1234567, 1)},
		{name: "one sample in the zero bucket", samples: repeat(0, 1)},
		{name: "many equal samples", samples: repeat(time.Millisecond, 1000)},
		// A gap is the number of empty buckets between 1 ms and the other sample.
		{name: "a gap of 1 bucket", samples: []time.Duration{1000000, 1189207}},
		{name: "a gap of 2 buckets", samples: []time.Duration{1000000, 1296840}},
		{name: "a gap of 3 buckets", samples: []time.Duration{1000000, 1414214}},
		{name: "the first and the last bucket", samples: []time.Duration{1, 10001, maxSample}},
		{name: "all boundaries", samples: boundaries()},
		{name: "10 random samples", samples: randomSamples(10)},
		{name: "100,000 random samples", samples: randomSamples(100000)},
	} {
		got, want := both(t, test.samples...)
		if !proto.Equal(got, want) {
			t.Errorf("%s: write gave\n     %v\nwant %v", test.name, got, want)
		}
		for _, format := range []expfmt.Format{
			expfmt.NewFormat(expfmt.TypeTextPlain), expfmt.NewFormat(expfmt.TypeOpenMetrics),
			expfmt.NewFormat(expfmt.TypeProtoDelim), expfmt.NewFormat(expfmt.TypeProtoText),
		} {
			if got, want := encode(t, format, got), encode(t, format, want); got != want {
				t.Errorf("%s: in the format %s, the histogram is\n%q\nwant\n%q", test.name, format, got, want)
			}
		}
	}
}

// encode returns an exposition of the histogram, with the lines for the created timestamp if it is OpenMetrics.
func encode(t *testing.T, format expfmt.Format, h *dto.Histogram) string {
	t.Helper()
	family := &dto.MetricFamily{
		Name: new("probe_watch_rtt_seconds"), Help: new("Round-trip times."), Type: dto.MetricType_HISTOGRAM.Enum(),
		Metric: []*dto.Metric{{Label: []*dto.LabelPair{{Name: new("module"), Value: new("a")}}, Histogram: h}},
	}
	var b bytes.Buffer
	encoder := expfmt.NewEncoder(&b, format, expfmt.WithCreatedLines())
	if err := encoder.Encode(family); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A sample that is a bound belongs below it. Each sample next to a bound is in the same buckets as with client_golang.
func TestBounds(t *testing.T) {
	for _, d := range boundaries() {
		if got, want := both(t, d); !proto.Equal(got, want) {
			t.Errorf("a sample of %d ns gave\n     %v\nwant %v", d, got, want)
		}
	}
	// The control: the next nanosecond is in another bucket.
	for _, bound := range []time.Duration{10 * time.Microsecond, 100 * time.Microsecond, time.Second >> 9} {
		at, _ := both(t, bound)
		above, _ := both(t, bound+1)
		above.SampleSum, above.CreatedTimestamp = at.SampleSum, at.CreatedTimestamp
		if proto.Equal(at, above) {
			t.Errorf("samples of %d and of %d ns are in the same buckets, want the bound %v between them", bound,
				bound+1, bound)
		}
	}
}

// Samples outside the range count as the nearest one inside it.
func TestObserveOutOfRange(t *testing.T) {
	for _, test := range []struct{ sample, want time.Duration }{
		{sample: -1, want: 0},
		{sample: math.MinInt64, want: 0},
		{sample: maxSample + 1, want: maxSample},
		{sample: math.MaxInt64, want: maxSample},
	} {
		var got, want Histogram
		got.Observe(testBounds, test.sample)
		want.Observe(testBounds, test.want)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("observe(%d) gave %+v, want the same as observe(%d): %+v", test.sample, got, test.want, want)
		}
	}
}

// When the count cannot grow any more, the next sample starts from an empty histogram.
func TestObserveStartsAgain(t *testing.T) {
	var h Histogram
	h.Observe(testBounds, 0)
	h.sum, h.count, h.octaves[0].native[zeroKey-firstKey] = 1e6, math.MaxUint32-1, math.MaxUint32-1
	h.Observe(testBounds, 0)
	zero := h.octaves[0].native[zeroKey-firstKey]
	if h.count != math.MaxUint32 || zero != math.MaxUint32 || h.sum != 1e6 {
		t.Errorf("the last sample that fits gave count %d, zero bucket %d, sum %v, want %d, %d, 1e6",
			h.count, zero, h.sum, uint32(math.MaxUint32), uint32(math.MaxUint32))
	}
	var want Histogram
	want.Observe(testBounds, time.Millisecond)
	if h.Observe(testBounds, time.Millisecond); !reflect.DeepEqual(h, want) {
		t.Errorf("after %d samples, Observe gave %+v, want a new histogram: %+v", uint32(math.MaxUint32), h, want)
	}
}

// A write into a message that was used before leaves nothing of its previous contents, and needs no memory if they were
// as large.
func TestWriteReplaces(t *testing.T) {
	used, _ := both(t, randomSamples(1000)...)
	used.SampleCountFloat = new(1.)
	used.NegativeDelta = []int64{1}
	for _, samples := range [][]time.Duration{
		nil,
		{0, time.Millisecond, time.Minute},
		randomSamples(1000),
		{time.Minute},
	} {
		_, want := both(t, samples...)
		var h Histogram
		for _, d := range samples {
			h.Observe(testBounds, d)
		}
		created := want.CreatedTimestamp.AsTime()
		if h.Write(testBounds, used, created); !proto.Equal(used, want) {
			t.Errorf("write of %d samples into a used message gave\n     %v\nwant %v", len(samples), used, want)
		}
		if n := testing.AllocsPerRun(10, func() { h.Write(testBounds, used, created) }); n > 0 {
			t.Errorf("write of %d samples into a message of the same size: %v allocations, want 0", len(samples), n)
		}
	}
}

// The quantiles lie in the bucket of the sample that has the rank.
func TestQuantileIsInTheBucketOfTheSample(t *testing.T) {
	for _, n := range []int{1, 2, 3, 10, 99, 100, 10000} {
		samples := randomSamples(n)
		var h Histogram
		for _, d := range samples {
			h.Observe(testBounds, d)
		}
		slices.Sort(samples)
		for q := 0.; q <= 1; q += 1. / 128 { // exact, so that the ranks are
			i := max(int(math.Ceil(q*float64(n))), 1) - 1
			if q >= 0.5 {
				i = n - max(int(math.Ceil((1-q)*float64(n))), 1)
			}
			lower, upper := boundsOf(samples[i])
			if got := h.Quantile(q); got < lower || got > upper {
				t.Errorf("the quantile %v of %d samples is %v, want one from %v to %v, the bucket of the sample %v",
					q, n, got, lower, upper, samples[i])
			}
		}
	}
}

// boundsOf returns the bounds of the native bucket that contains the sample, found with logarithms.
func boundsOf(d time.Duration) (lower, upper time.Duration) {
	if d.Seconds() <= zeroThreshold {
		return 0, 10 * time.Microsecond
	}
	key := math.Ceil(math.Log2(d.Seconds()) * perOctave)
	return time.Duration(math.Exp2((key-1)/perOctave) * 1e9), time.Duration(math.Ceil(math.Exp2(key/perOctave) * 1e9))
}

// The expected values are those of histogram_quantile in Prometheus 3.16, in nanoseconds.
func TestQuantile(t *testing.T) {
	for _, test := range []struct {
		name    string
		samples []time.Duration
		q       float64
		want    time.Duration
	}{
		{name: "lower bound of the only bucket", samples: repeat(1234567, 1), q: 0, want: 1161335},
		{name: "middle of the only bucket", samples: repeat(1234567, 1), q: 0.5, want: 1212752},
		{name: "upper bound of the only bucket", samples: repeat(1234567, 1), q: 1, want: 1266445},
		{name: "below a wide gap", samples: []time.Duration{time.Millisecond, time.Second}, q: 0.49, want: 1063105},
		{name: "above a wide gap", samples: []time.Duration{time.Millisecond, time.Second}, q: 0.5, want: 917004043},
		{name: "near the end", samples: append(repeat(20*time.Millisecond, 99), time.Second), q: 0.99, want: 20263118},
		{name: "zero bucket", samples: append(repeat(1000, 3), time.Second), q: 0.25, want: 3333},
		{name: "zero bucket from the other end", samples: append(repeat(1000, 3), time.Second), q: 0.5, want: 6667},
		{name: "above the zero bucket", samples: append(repeat(1000, 3), time.Second), q: 0.9, want: 965936329},
		{name: "bucket that the zero bucket cuts", samples: []time.Duration{10400, time.Second}, q: 0, want: 10000},
		{name: "inside the cut bucket", samples: []time.Duration{10400, time.Second}, q: 0.25, want: 10387},
		// Here, Prometheus returns -5000 ns, because it does not know that no sample is negative.
		{name: "zero bucket alone", samples: repeat(1000, 1), q: 0.25, want: 2500},
		{name: "no samples", samples: nil, q: 0.5, want: 0}, // NaN in Prometheus
	} {
		var h Histogram
		for _, d := range test.samples {
			h.Observe(testBounds, d)
		}
		if got := h.Quantile(test.q); got != test.want {
			t.Errorf("%s: quantile(%v) = %d ns, want %d ns", test.name, test.q, got, test.want)
		}
	}
}

// A histogram is small, and a sample allocates nothing unless it is the first one in its octave.
func TestCost(t *testing.T) {
	var h Histogram
	for d := 10 * time.Millisecond; d < 30*time.Millisecond; d += time.Millisecond { // in two octaves
		h.Observe(testBounds, d)
	}
	size := unsafe.Sizeof(h) + uintptr(cap(h.octaves))*unsafe.Sizeof(h.octaves[0])
	if most := uintptr(150); size > most {
		t.Errorf("a histogram with samples from 10 to 29 ms takes %d bytes, want at most %d", size, most)
	}
	if got := testing.AllocsPerRun(100, func() { h.Observe(testBounds, 20*time.Millisecond) }); got != 0 {
		t.Errorf("observe allocates %v times, want 0", got)
	}
}

func FuzzHistogram(f *testing.F) {
	for _, samples := range [][]time.Duration{nil, {0}, {-1, maxSample + 1}, boundaries()[:20]} {
		var data []byte
		for _, d := range samples {
			data = binary.LittleEndian.AppendUint64(data, uint64(d))
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var samples []time.Duration
		var h Histogram
		for ; len(data) >= 8; data = data[8:] {
			d := time.Duration(binary.LittleEndian.Uint64(data))
			h.Observe(testBounds, d)
			samples = append(samples, min(max(d, 0), maxSample))
		}
		_, want := both(t, samples...)
		var got dto.Histogram
		h.Write(testBounds, &got, want.CreatedTimestamp.AsTime())
		if !proto.Equal(&got, want) {
			t.Fatalf("the samples %d gave\n     %v\nwant %v", samples, &got, want)
		}
		previous := time.Duration(0)
		for _, q := range []float64{0, 0.01, 0.49, 0.5, 0.51, 0.99, 1} {
			quantile := h.Quantile(q)
			if quantile < previous || quantile > maxSample {
				t.Fatalf("of the samples %d, the quantile %v is %v, want one from %v to %v",
					samples, q, quantile, previous, maxSample)
			}
			previous = quantile
		}
	})
}

// BenchmarkObserve adds samples of all magnitudes, compared with a histogram of client_golang.
//
//	go test -run '^$' -bench Observe -benchmem ./internal/histogram
func BenchmarkObserve(b *testing.B) {
	samples := randomSamples(1 << 12)
	b.Run("compact", func(b *testing.B) {
		b.ReportAllocs()
		var h Histogram
		for i := 0; b.Loop(); i++ {
			h.Observe(testBounds, samples[i%len(samples)])
		}
	})
	b.Run("client_golang", func(b *testing.B) {
		b.ReportAllocs()
		h := newReference()
		for i := 0; b.Loop(); i++ {
			h.Observe(samples[i%len(samples)].Seconds())
		}
	})
}

// BenchmarkWrite writes a histogram of samples that vary around 20 ms, as those of one target may, compared
// with a histogram of client_golang.
//
//	go test -run '^$' -bench Write -benchmem ./internal/histogram
func BenchmarkWrite(b *testing.B) {
	var h Histogram
	reference := newReference()
	random := rand.New(rand.NewPCG(1, 2))
	for range 10000 {
		d := time.Duration(20e6 * math.Exp(random.NormFloat64()/4))
		h.Observe(testBounds, d)
		reference.Observe(d.Seconds())
	}
	b.Run("compact", func(b *testing.B) {
		b.ReportAllocs()
		created := time.Now()
		out := new(dto.Histogram)
		for b.Loop() {
			h.Write(testBounds, out, created)
		}
	})
	b.Run("client_golang", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := reference.Write(new(dto.Metric)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
