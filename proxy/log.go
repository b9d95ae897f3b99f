package proxy

import (
	"context"
	"encoding/json"
	"io"
	"sync/atomic"
)

// entry is one line of the access log.
type entry struct {
	Time      string  `json:"time"`
	Direction string  `json:"direction"`
	Src       string  `json:"src"`
	Dst       string  `json:"dst"`
	Method    string  `json:"method,omitempty"`
	Path      string  `json:"path,omitempty"`
	Authority string  `json:"authority,omitempty"`
	Status    int     `json:"status,omitempty"`
	Flags     string  `json:"flags"`
	Seconds   float64 `json:"duration"`
	Trace     string  `json:"traceparent,omitempty"`
}

// accessLog writes lines in its own goroutine; what does not fit its queue is dropped and counted.
type accessLog struct {
	w       io.Writer
	queue   chan entry
	dropped atomic.Uint64
}

func newAccessLog(w io.Writer) *accessLog { return &accessLog{w: w, queue: make(chan entry, 4096)} }

func (l *accessLog) add(e entry) {
	if l.w == nil {
		return
	}
	select {
	case l.queue <- e:
	default:
		l.dropped.Add(1)
	}
}

func (l *accessLog) run(ctx context.Context) {
	for {
		select {
		case e := <-l.queue:
			if b, err := json.Marshal(e); err == nil {
				l.w.Write(append(b, '\n'))
			}
		case <-ctx.Done():
			return
		}
	}
}
