package proxy

import (
	"context"
	"encoding/json"
	"io"
	"strconv"
	"time"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
)

// entry is one line of the access log. Values are JSON, so that no caller can forge a line. docs/proxy.md lists the fields.
type entry struct {
	Time      string  `json:"time"`
	Direction string  `json:"direction"`
	Src       string  `json:"src"`
	Dst       string  `json:"dst"`
	Service   string  `json:"service"`
	Instance  string  `json:"instance,omitempty"`
	Node      string  `json:"node,omitempty"`
	Route     string  `json:"route,omitempty"`
	Method    string  `json:"method,omitempty"`
	Authority string  `json:"authority,omitempty"`
	Path      string  `json:"path,omitempty"`
	Status    int     `json:"status,omitempty"`
	GRPC      string  `json:"grpcStatus,omitempty"`
	Flags     string  `json:"flags"`
	DeniedBy  string  `json:"deniedBy,omitempty"`
	Attempts  int     `json:"attempts,omitempty"`
	Received  int64   `json:"bytesIn"`
	Sent      int64   `json:"bytesOut"`
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

// entry says how the call went.
func (c *call) entry(took time.Duration) *entry {
	e := &entry{Time: c.start.UTC().Format(time.RFC3339Nano), Direction: c.direction, Src: c.src.String(), Dst: c.dst.String(), Service: c.svc.String(),
		Route: c.route, Path: clip(c.path), Status: c.code, GRPC: clip(c.grpc), Flags: c.flagText(), DeniedBy: c.policy, Attempts: c.attempts,
		Received: c.received, Sent: c.sent, Duration: float64(took.Microseconds()) / 1000, RequestID: clip(c.id)}
	if c.in != nil {
		e.Instance, e.Node = c.in.ID, c.in.Node.String()
	}
	if c.r != nil {
		e.Method, e.Authority, e.Trace = clip(c.r.Method), clip(c.r.Host), clip(c.r.Header.Get("Traceparent"))
	}
	return e
}

// ruleName names a rule of a policy: namespace/policy/name, or its number where it has no name.
func ruleName(k mesh.PolicyKey, name string, index int) string {
	if name == "" {
		name = strconv.Itoa(index)
	}
	return k.Namespace + "/" + k.Name + "/" + name
}

// accessLog writes lines in its own goroutine; what does not fit its queue is dropped and counted: no request waits for it.
type accessLog struct {
	w       io.Writer
	queue   chan *entry
	dropped telemetry.Counter
}

func newAccessLog(w io.Writer, m *telemetry.Metrics) *accessLog {
	return &accessLog{w: w, queue: make(chan *entry, 4096),
		dropped: m.Counter("meshagent_access_log_dropped_total", "Lines of the access log that found its queue full or could not be written.").With()}
}

func (l *accessLog) add(e *entry) {
	select {
	case l.queue <- e:
	default:
		l.dropped.Inc()
	}
}

// run writes until ctx ends, and then what is still queued.
func (l *accessLog) run(ctx context.Context) {
	write := func(e *entry) {
		b, err := json.Marshal(e)
		if err == nil {
			_, err = l.w.Write(append(b, '\n'))
		}
		if err != nil {
			l.dropped.Inc()
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
