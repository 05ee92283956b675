package collector

import (
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// metric is a metric of /probe.
type metric struct {
	name, help string
	labels     []string
}

// A sheet has the metrics of one response. It can be filled again with those of another response: without reuse, its
// memory would be half of the garbage of a probe, and most of that of a scrape of a watched target.
type sheet struct {
	families []*dto.MetricFamily   // in the order in which they are written
	created  timestamppb.Timestamp // of the counters

	familyMemory reusable[family] // of families, in the same order
	seriesMemory reusable[series]
}

// A family is the memory of a metric.
type family struct {
	dto.MetricFamily
	of   *metric
	kind dto.MetricType
}

// A series is the memory of a series of a metric.
type series struct {
	dto.Metric
	gauge   dto.Gauge
	counter dto.Counter
	value   float64
	labels  [4]struct { // as many as any metric has
		pair  dto.LabelPair
		value string
	}
	pairs [4]*dto.LabelPair
}

// clear removes all metrics.
func (s *sheet) clear() {
	s.families, s.familyMemory.used, s.seriesMemory.used = s.families[:0], 0, 0
}

// gauge adds a series to a metric that is a gauge.
func (s *sheet) gauge(m *metric, value float64, labelValues ...string) {
	added := s.add(m, dto.MetricType_GAUGE, labelValues)
	added.value = value
	added.gauge.Value = &added.value
	added.Gauge = &added.gauge
}

// counter adds a series to a metric that is a counter.
func (s *sheet) counter(m *metric, value uint64, labelValues ...string) {
	added := s.add(m, dto.MetricType_COUNTER, labelValues)
	added.value = float64(value)
	added.counter.Value, added.counter.CreatedTimestamp = &added.value, &s.created
	added.Counter = &added.counter
}

// histogram adds a histogram to a metric that is one.
func (s *sheet) histogram(m *metric, h *dto.Histogram) {
	s.add(m, dto.MetricType_HISTOGRAM, nil).Histogram = h
}

// add adds a series without a value to a metric. The first series of a metric adds the metric.
func (s *sheet) add(m *metric, kind dto.MetricType, labelValues []string) *series {
	added := s.seriesMemory.next()
	added.Gauge, added.Counter, added.Histogram = nil, nil, nil
	for i := range m.labels {
		label := &added.labels[i]
		label.value = labelValues[i]
		label.pair.Name, label.pair.Value = &m.labels[i], &label.value
		added.pairs[i] = &label.pair
	}
	added.Label = added.pairs[:len(m.labels)]
	to := s.family(m, kind)
	to.Metric = append(to.Metric, &added.Metric)
	return added
}

// family returns a metric that has been added, or adds it.
func (s *sheet) family(m *metric, kind dto.MetricType) *family {
	for i := s.familyMemory.used - 1; i >= 0; i-- {
		if f := s.familyMemory.all[i]; f.of == m {
			return f
		}
	}
	f := s.familyMemory.next()
	f.of, f.kind = m, kind
	f.Name, f.Help, f.Type, f.Metric = &m.name, &m.help, &f.kind, f.Metric[:0]
	s.families = append(s.families, &f.MetricFamily)
	return f
}

// reusable is memory for objects of one type that are used again.
type reusable[T any] struct {
	all  []*T
	used int // how many of them; the rest is free
}

// next returns an object, with its previous contents if it was used before.
func (r *reusable[T]) next() *T {
	if r.used == len(r.all) {
		r.all = append(r.all, new(T))
	}
	r.used++
	return r.all[r.used-1]
}
