// Package telemetry is logging and metrics: how the log is set up, how often one thing is said, and the registry that every
// metric of the process is in. It is the home of the Prometheus client. Imported by every package that serves something.
package telemetry

import (
	"io"
	"log/slog"
	"sync"
	"time"
)

// NewLogger returns a logger of lines of text or of JSON.
func NewLogger(w io.Writer, level slog.Level, json bool) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if json {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// maxKeys bounds the memory of a Limiter.
const maxKeys = 4096

// Limiter says whether something may be said again. Safe for concurrent use.
type Limiter struct {
	every time.Duration

	mu   sync.Mutex // guards last
	last map[string]time.Time
}

// OncePer returns a Limiter that allows each key once in d. When more keys are known than it wants to remember, it forgets
// all of them: something may then be said early, never less often than promised.
func OncePer(d time.Duration) *Limiter { return &Limiter{every: d, last: map[string]time.Time{}} }

// Allow reports whether the key's turn has come, and counts it as used.
func (l *Limiter) Allow(key string) bool {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if t, ok := l.last[key]; ok && now.Sub(t) < l.every {
		return false
	}
	if len(l.last) >= maxKeys {
		clear(l.last)
	}
	l.last[key] = now
	return true
}
