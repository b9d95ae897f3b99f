package proxy

import (
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
)

// metrics counts calls.
type metrics struct {
	requests   *telemetry.CounterVec
	seconds    *telemetry.HistogramVec
	retries    *telemetry.CounterVec
	hedges     *telemetry.CounterVec
	ejections  *telemetry.CounterVec
	watched    *telemetry.CounterVec
	asked      *telemetry.CounterVec
	limited    *telemetry.CounterVec
	quotas     *telemetry.CounterVec
	mirrored   *telemetry.CounterVec
	refused    *telemetry.CounterVec
	handshakes *telemetry.CounterVec
	panics     telemetry.Counter
	max        int64    // series; maxSeries but in tests
	known      sync.Map // metricKey -> handles
	n          atomic.Int64
}

type metricKey struct {
	statsKey
	code  int
	flags flags
}

// statsKey is what the calls that share a stats have in common.
type statsKey struct {
	src             mesh.Identity
	svc             mesh.ServiceName
	direction, rule string
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
		retries:    m.Counter("meshagent_retries_total", "Tries after the first.", "dst"),
		hedges:     m.Counter("meshagent_hedges_total", "Requests that were sent to a second instance, too, by whether its answer was the first.", "dst", "result"),
		mirrored:   m.Counter("meshagent_mirrored_total", "Copies of requests, by what became of them.", "dst", "result"),
		asked:      m.Counter("meshagent_external_authorizations_total", "Calls that services of CUSTOM policies were asked about.", "provider", "result"),
		watched:    m.Counter("meshagent_policy_watched_total", "Calls that policies saw that decide nothing.", "dst", "seen"),
		ejections:  m.Counter("meshagent_ejections_total", "Times that an instance was found to fail and sat out.", "dst"),
		limited:    m.Counter("meshagent_rate_limited_total", "Calls of services, gateways and routes that a rate limit refused on this host.", "dst", "limit"),
		quotas:     m.Counter("meshagent_rate_limit_checks_total", "Calls that a service that counts for the mesh was asked about.", "service", "result"),
		panics:     m.Counter("meshagent_proxy_panics_total", "Calls that ended by a panic.").With(),
		handshakes: m.Counter("meshagent_gateway_handshakes_failed_total", "Handshakes of TLS at gateways that came to nothing.", "dst"),
		refused:    m.Counter("meshagent_connections_refused_total", "Connections of callers that found no room.", "dst"),
	}
}

// handles returns those of a series, or those of the rest.
func (m *metrics) handles(k metricKey) handles {
	h, ok := m.known.Load(k)
	if !ok {
		if m.n.Load() >= m.max {
			k = metricKey{statsKey: statsKey{direction: k.direction}}
		}
		var loaded bool
		h, loaded = m.known.LoadOrStore(k, handles{
			m.requests.With(k.src.String(), k.svc.String(), strconv.Itoa(k.code), string(k.flags.append(nil)), k.direction, k.rule),
			m.seconds.With(k.src.String(), k.svc.String(), k.direction)})
		if !loaded {
			m.n.Add(1)
		}
	}
	return h.(handles)
}

// stats are the series of the calls of one identity that came to one rule: what was counted before is found without a lock and
// without memory.
type stats struct {
	m   *metrics
	key statsKey
	svc string

	series atomic.Pointer[[]series]
	mu     sync.Mutex // guards changes of series
}

type series struct {
	code  int
	flags flags
	handles
}

// maxKept is how many series a stats keeps; others are looked up.
const maxKept = 64

// count counts a call that ended.
func (s *stats) count(code int, f flags, took time.Duration) {
	h := s.handles(code, f)
	h.requests.Inc()
	h.seconds.Observe(took.Seconds())
}

func (s *stats) handles(code int, f flags) handles {
	all := s.series.Load()
	if all != nil {
		for i := range *all {
			if e := &(*all)[i]; e.code == code && e.flags == f {
				return e.handles
			}
		}
	}
	h := s.m.handles(metricKey{s.key, code, f})
	s.mu.Lock()
	defer s.mu.Unlock()
	var kept []series
	if all = s.series.Load(); all != nil {
		kept = *all
	}
	if len(kept) < maxKept {
		kept = append(kept[:len(kept):len(kept)], series{code, f, h})
		s.series.Store(&kept)
	}
	return h
}
