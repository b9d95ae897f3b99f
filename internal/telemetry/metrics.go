package telemetry

import (
	"errors"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics is the registry of a process. A nil *Metrics works and keeps nothing, for tests and tools. Safe for concurrent
// use. Asking twice for one name with the same labels gives the same metric; with others it panics, a mistake in the program.
type Metrics struct{ reg *prometheus.Registry }

// NewMetrics returns a registry with the metrics of the Go runtime and the process in it.
func NewMetrics() *Metrics {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return &Metrics{r}
}

// Handler serves the metrics in Prometheus' formats.
func (m *Metrics) Handler() http.Handler {
	if m == nil {
		return http.NotFoundHandler()
	}
	return promhttp.HandlerFor(m.reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

func register[C prometheus.Collector](m *Metrics, c C) C {
	if m == nil {
		return c
	}
	if err := m.reg.Register(c); err != nil {
		var dup prometheus.AlreadyRegisteredError
		if !errors.As(err, &dup) {
			panic(err)
		}
		return dup.ExistingCollector.(C)
	}
	return c
}

// Counter only grows.
type Counter struct{ c prometheus.Counter }

// Inc adds one.
func (c Counter) Inc() {
	if c.c != nil {
		c.c.Inc()
	}
}

// Add adds n, which is not negative.
func (c Counter) Add(n float64) {
	if c.c != nil {
		c.c.Add(n)
	}
}

// CounterVec is a family of counters.
type CounterVec struct{ v *prometheus.CounterVec }

// Counter returns the family of that name.
func (m *Metrics) Counter(name, help string, labels ...string) *CounterVec {
	return &CounterVec{register(m, prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels))}
}

// With returns the counter with the values of its labels. Keep it where a path is hot.
func (v *CounterVec) With(values ...string) Counter { return Counter{v.v.WithLabelValues(values...)} }

// Gauge goes up and down.
type Gauge struct{ g prometheus.Gauge }

// Set sets the value.
func (g Gauge) Set(v float64) { g.g.Set(v) }

// Add adds v, which may be negative.
func (g Gauge) Add(v float64) { g.g.Add(v) }

// GaugeVec is a family of gauges.
type GaugeVec struct{ v *prometheus.GaugeVec }

// Gauge returns the family of that name.
func (m *Metrics) Gauge(name, help string, labels ...string) *GaugeVec {
	return &GaugeVec{register(m, prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels))}
}

// With returns the gauge with the values of its labels.
func (v *GaugeVec) With(values ...string) Gauge { return Gauge{v.v.WithLabelValues(values...)} }

// GaugeFunc adds a gauge that is asked for its value.
func (m *Metrics) GaugeFunc(name, help string, f func() float64) {
	register[prometheus.Collector](m, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f))
}

// CounterFunc adds a counter that is asked for its value.
func (m *Metrics) CounterFunc(name, help string, f func() float64) {
	register[prometheus.Collector](m, prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, f))
}

// Histogram counts observations in buckets.
type Histogram struct{ o prometheus.Observer }

// Observe adds one.
func (h Histogram) Observe(v float64) { h.o.Observe(v) }

// HistogramVec is a family of histograms.
type HistogramVec struct{ v *prometheus.HistogramVec }

// Histogram returns the family of that name; nil buckets are Prometheus' defaults, from 5 ms to 10 s.
func (m *Metrics) Histogram(name, help string, buckets []float64, labels ...string) *HistogramVec {
	return &HistogramVec{register(m, prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels))}
}

// With returns the histogram with the values of its labels.
func (v *HistogramVec) With(values ...string) Histogram {
	return Histogram{v.v.WithLabelValues(values...)}
}
