package proxy

import (
	"context"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/meshagent/meshagent/internal/telemetry"
)

// maxField bounds what a caller can put into a line, in bytes.
const maxField = 2048

// appendLine appends the line of the access log that says how the call went. Values are JSON, so that no caller can forge a line.
// docs/proxy.md lists the fields.
func (c *call) appendLine(b []byte) []byte {
	res := &c.x.Result
	b = append(b, `{"time":"`...)
	b = res.Start.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, '"')
	b = appendText(b, "direction", c.direction())
	b = appendText(b, "src", c.who.text)
	dst := ""
	if c.target != nil {
		dst = c.target.dst
	}
	b = appendText(b, "dst", dst)
	b = appendText(b, "service", c.stats().svc)
	if t := c.target; t != nil {
		b = appendText(b, "instance", t.ID)
		b = appendText(b, "node", t.Node.String())
	}
	b = appendSome(b, "route", c.rule.name)
	b = appendSome(b, "method", text(c.x.Request.Method))
	b = appendSome(b, "authority", text(c.host()))
	b = appendSome(b, "path", c.path())
	b = appendNumber(b, "status", int64(c.code()))
	b = appendSome(b, "grpcStatus", text(c.grpc))
	b = append(b, `,"flags":"`...)
	b = append(c.flags.append(b), '"')
	b = appendSome(b, "deniedBy", c.deniedBy)
	b = appendSome(b, "audit", c.audit)
	b = appendSome(b, "dryRun", c.dryRun)
	b = appendNumber(b, "attempts", int64(c.attempts))
	b = append(b, `,"bytesIn":`...)
	b = strconv.AppendInt(b, res.Received, 10)
	b = append(b, `,"bytesOut":`...)
	b = strconv.AppendInt(b, res.Sent, 10)
	b = append(b, `,"durationMs":`...)
	b = strconv.AppendFloat(b, float64(res.Duration.Microseconds())/1000, 'f', -1, 64)
	b = appendSome(b, "requestId", text(c.id))
	b = appendSome(b, "traceparent", text(c.x.Request.Get("traceparent")))
	return append(b, "}\n"...)
}

// appendSome appends a field with a text that is not empty.
func appendSome(b []byte, name, s string) []byte {
	if s == "" {
		return b
	}
	return appendText(b, name, s)
}

// appendNumber appends a field with a number that is not 0.
func appendNumber(b []byte, name string, n int64) []byte {
	if n == 0 {
		return b
	}
	b = append(append(append(b, `,"`...), name...), `":`...)
	return strconv.AppendInt(b, n, 10)
}

// appendText appends a field with the beginning of a text.
func appendText(b []byte, name, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(append(append(b, `,"`...), name...), `":"`...)
	s = s[:min(len(s), maxField)]
	for {
		n := 0
		for n < len(s) && !escaped[s[n]] {
			n++
		}
		b, s = append(b, s[:n]...), s[n:]
		if s == "" {
			return append(b, '"')
		}
		r, n := utf8.DecodeRuneInString(s)
		switch c := s[0]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < utf8.RuneSelf:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case r == utf8.RuneError && n == 1, r == '\u2028', r == '\u2029': // which some readers take for the end of a line
			b = append(b, `\ufffd`...)
		default:
			b = append(b, s[:n]...)
		}
		s = s[n:]
	}
}

// escaped are the bytes at which appendText looks twice.
var escaped = func() (t [256]bool) {
	for c := range 256 {
		t[c] = c < ' ' || c == '"' || c == '\\' || c >= 0x7f
	}
	return t
}()

// maxLines is how many lines wait to be written; further ones are dropped and counted: no call waits for the log.
const maxLines = 4096

// accessLog is a stack of lines, which its own goroutine takes as a whole and writes, many at once.
type accessLog struct {
	w       io.Writer // nil for none
	dropped telemetry.Counter
	waiting atomic.Int64         // lines
	last    atomic.Pointer[line] // that was added
	wake    chan struct{}        // has room for one
	free    sync.Pool            // *line
}

type line struct {
	next *line // the one before it
	text []byte
}

func newAccessLog(w io.Writer, m *telemetry.Metrics) *accessLog {
	return &accessLog{w: w, wake: make(chan struct{}, 1), free: sync.Pool{New: func() any { return new(line) }},
		dropped: m.Counter("meshagent_access_log_dropped_total", "Lines of the access log that found its queue full or could not be written.").With()}
}

// add adds the line of a call.
func (l *accessLog) add(c *call) {
	if l.w == nil {
		return
	}
	if l.waiting.Add(1) > maxLines {
		l.waiting.Add(-1)
		l.dropped.Inc()
		return
	}
	n := l.free.Get().(*line)
	n.text = c.appendLine(n.text[:0])
	before := l.last.Load()
	for n.next = before; !l.last.CompareAndSwap(before, n); n.next = before {
		before = l.last.Load()
	}
	if before == nil {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// logPause is for how long lines are gathered before they are written: to wake up costs more than many lines do. flushLog is how many
// bytes are written at once.
const (
	logPause = 10 * time.Millisecond
	flushLog = 64 << 10
)

// run writes until ctx ends, and then what still waits.
func (l *accessLog) run(ctx context.Context) {
	var buf []byte
	for {
		select {
		case <-l.wake:
			select {
			case <-time.After(logPause):
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
		last := ctx.Err() != nil
		buf = l.write(buf)
		if last {
			return
		}
	}
}

// write writes what waits, in order. buf is its memory.
func (l *accessLog) write(buf []byte) []byte {
	var first *line
	for n := l.last.Swap(nil); n != nil; {
		n, n.next, first = n.next, first, n
	}
	lines := int64(0)
	for first != nil {
		n := first
		first = n.next
		buf, lines = append(buf, n.text...), lines+1
		n.next = nil
		l.free.Put(n)
		if first != nil && len(buf) < flushLog {
			continue
		}
		if _, err := l.w.Write(buf); err != nil {
			l.dropped.Add(float64(lines))
		}
		l.waiting.Add(-lines)
		buf, lines = buf[:0], 0
	}
	return buf
}
