package telemetry

import (
	"fmt"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestMetricsAreServed(t *testing.T) {
	m := NewMetrics()
	m.Counter("a_total", "help", "x").With("1").Add(2)
	m.Counter("a_total", "help", "x").With("1").Inc() // the same family again
	m.Gauge("b", "help").With().Set(4)
	m.GaugeFunc("c", "help", func() float64 { return 5 })
	m.Histogram("d_seconds", "help", []float64{1}).With().Observe(0.5)
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	body, _ := io.ReadAll(w.Body)
	for _, want := range []string{`a_total{x="1"} 3`, "b 4", "c 5", `d_seconds_bucket{le="1"} 1`, "go_goroutines"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("%q is not among the metrics", want)
		}
	}
}

func TestNilMetricsWork(t *testing.T) {
	var m *Metrics
	m.Counter("a_total", "help", "x").With("1").Inc()
	m.Gauge("b", "help").With().Set(1)
	m.Histogram("c", "help", nil).With().Observe(1)
	m.GaugeFunc("d", "help", func() float64 { return 0 })
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 404 {
		t.Errorf("status %d", w.Code)
	}
}

func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := OncePer(time.Minute)
		if !l.Allow("a") || l.Allow("a") || !l.Allow("b") {
			t.Error("each key has one turn")
		}
		time.Sleep(time.Minute)
		if !l.Allow("a") {
			t.Error("the turn does not come again")
		}
		for i := range 3 * maxKeys {
			l.Allow(fmt.Sprint(i))
		}
		if n := len(l.last); n > maxKeys {
			t.Errorf("%d keys are remembered", n)
		}
	})
}
