package proxy

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
)

// entry is one line of the access log. Values are JSON, so that no caller can forge a line.
type entry struct {
	Time      string  `json:"time"`
	Direction string  `json:"direction"` // outbound: of a caller of this host; inbound: to a service of this host
	Src       string  `json:"src"`
	Dst       string  `json:"dst"`
	Service   string  `json:"service"`
	Instance  string  `json:"instance,omitempty"`
	Node      string  `json:"node,omitempty"`
	Method    string  `json:"method,omitempty"` // empty for TCP
	Authority string  `json:"authority,omitempty"`
	Path      string  `json:"path,omitempty"`
	Status    int     `json:"status,omitempty"`
	Flags     string  `json:"flags"` // Envoy's response flags; "-" for none
	Attempts  int     `json:"attempts,omitempty"`
	BytesOut  int64   `json:"bytes"` // of the answer's body
	Duration  float64 `json:"durationMs"`
	RequestID string  `json:"requestId,omitempty"`
	Trace     string  `json:"traceparent,omitempty"`
}

// maxField bounds what a caller can put into a line, in bytes.
const maxField = 2048

func clip(s string) string {
	if len(s) > maxField {
		return s[:maxField]
	}
	return s
}

// end counts and logs a request.
func (c *call) end(r *http.Request) {
	took := time.Since(c.start)
	c.p.count(metricKey{c.src, c.svc, c.code, c.flag, c.direction}, took)
	if c.p.log.w == nil {
		return
	}
	e := entry{Time: c.start.UTC().Format(time.RFC3339Nano), Direction: c.direction, Src: c.src.String(), Dst: c.dst.String(), Service: c.svc.String(),
		Method: r.Method, Authority: clip(r.Host), Path: clip(r.URL.Path), Status: c.code, Flags: c.flag, Attempts: c.attempts, BytesOut: c.bytes,
		Duration: float64(took.Microseconds()) / 1000, RequestID: clip(r.Header.Get("X-Request-Id")), Trace: clip(r.Header.Get("Traceparent"))}
	if c.in != nil {
		e.Instance, e.Node = c.in.ID, c.in.Node.String()
	}
	c.p.log.add(e)
}

type metricKey struct {
	src       mesh.Identity
	svc       mesh.ServiceName
	code      int
	flag, dir string
}

type handles struct {
	requests telemetry.Counter
	seconds  telemetry.Histogram
}

// metrics keeps the handles of what was counted before, so that no request looks one up by its labels.
type metrics struct {
	requests *telemetry.CounterVec
	seconds  *telemetry.HistogramVec
	known    sync.Map // metricKey -> handles
	n        atomic.Int64
}

// maxSeries bounds the series; what comes after is counted without its caller.
const maxSeries = 20_000

func newMetrics(m *telemetry.Metrics) *metrics {
	return &metrics{
		requests: m.Counter("meshagent_requests_total", "Requests and connections by caller, service, status and response flags.", "src", "dst", "code", "flags", "direction"),
		seconds: m.Histogram("meshagent_request_seconds", "Time from a request's head to the end of its answer.",
			[]float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}, "src", "dst", "direction")}
}

func (p *Proxy) count(k metricKey, took time.Duration) {
	m := p.metrics
	h, ok := m.known.Load(k)
	if !ok {
		if m.n.Add(1) > maxSeries {
			k.src = mesh.Identity{}
		}
		h, _ = m.known.LoadOrStore(k, handles{m.requests.With(k.src.String(), k.svc.String(), strconv.Itoa(k.code), k.flag, k.dir),
			m.seconds.With(k.src.String(), k.svc.String(), k.dir)})
	}
	h.(handles).requests.Inc()
	h.(handles).seconds.Observe(took.Seconds())
}

// accessLog writes lines in its own goroutine; what does not fit its queue is dropped and counted: no request waits for it.
type accessLog struct {
	w       io.Writer
	queue   chan entry
	dropped telemetry.Counter
}

func newAccessLog(w io.Writer, m *telemetry.Metrics) *accessLog {
	return &accessLog{w: w, queue: make(chan entry, 4096),
		dropped: m.Counter("meshagent_access_log_dropped_total", "Lines of the access log that found its queue full.").With()}
}

func (l *accessLog) add(e entry) {
	select {
	case l.queue <- e:
	default:
		l.dropped.Inc()
	}
}

// run writes until ctx ends, and then what is still queued.
func (l *accessLog) run(ctx context.Context) {
	write := func(e entry) {
		if b, err := json.Marshal(e); err == nil {
			l.w.Write(append(b, '\n'))
		}
	}
	for {
		select {
		case e := <-l.queue:
			write(e)
		case <-ctx.Done():
			for {
				select {
				case e := <-l.queue:
					write(e)
				default:
					return
				}
			}
		}
	}
}
