package proxy

import (
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
)

// metrics counts calls. It keeps the handles of what was counted before, so that no request looks one up by its labels.
type metrics struct {
	requests  *telemetry.CounterVec
	seconds   *telemetry.HistogramVec
	retries   *telemetry.CounterVec
	ejections *telemetry.CounterVec
	refused   *telemetry.CounterVec
	max       int64    // series; maxSeries but in tests
	known     sync.Map // metricKey -> handles
	n         atomic.Int64
}

type metricKey struct {
	src                    mesh.Identity
	svc                    mesh.ServiceName
	code                   int
	flags, direction, rule string
}

type handles struct {
	requests telemetry.Counter
	seconds  telemetry.Histogram
}

// maxSeries bounds the series. Neither hosts nor paths make one, but the status is what an application likes. Once so many are known,
// further ones are counted as one for each direction, without caller and service.
const maxSeries = 20_000

func newMetrics(m *telemetry.Metrics) *metrics {
	return &metrics{max: maxSeries,
		requests: m.Counter("meshagent_requests_total", "Requests, and connections of TCP, that ended.", "src", "dst", "code", "flags", "direction", "route"),
		seconds: m.Histogram("meshagent_request_seconds", "Time from a request's head to the end of its answer, or that a connection lasted.",
			[]float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}, "src", "dst", "direction"),
		retries:   m.Counter("meshagent_retries_total", "Tries after the first.", "dst"),
		ejections: m.Counter("meshagent_ejections_total", "Times that an instance was found to fail and sat out.", "dst"),
		refused:   m.Counter("meshagent_connections_refused_total", "Connections of callers that found no room.", "dst"),
	}
}

func (m *metrics) count(c *call, took time.Duration) {
	k := metricKey{c.src, c.svc, c.code, c.flagText(), c.direction, c.route}
	h, ok := m.known.Load(k)
	if !ok {
		if m.n.Load() >= m.max {
			k = metricKey{flags: "-", direction: c.direction}
		}
		var loaded bool
		h, loaded = m.known.LoadOrStore(k, handles{
			m.requests.With(k.src.String(), k.svc.String(), strconv.Itoa(k.code), k.flags, k.direction, k.rule),
			m.seconds.With(k.src.String(), k.svc.String(), k.direction)})
		if !loaded {
			m.n.Add(1)
		}
	}
	h.(handles).requests.Inc()
	h.(handles).seconds.Observe(took.Seconds())
}
