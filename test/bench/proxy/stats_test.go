//go:build linux

package main

import (
	"slices"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{7}, 7}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 9, 2}, 3}} {
		before := slices.Clone(c.in)
		if got := median(c.in); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.in, got, c.want)
		}
		if !slices.Equal(c.in, before) {
			t.Errorf("%v was changed", before)
		}
	}
}

func TestQuantile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for _, c := range []struct {
		in   []time.Duration
		q    float64
		want time.Duration
	}{{hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred, 1, 100}, {hundred, 0, 1}, {hundred[:1], 0.99, 1}, {hundred[:3], 0.5, 2}} {
		if got := quantile(c.in, c.q); got != c.want {
			t.Errorf("quantile %v of %d is %v, want %v", c.q, len(c.in), got, c.want)
		}
	}
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{[]float64{12, 8, 9}, 2}, {[]float64{1, -1}, 1}, {[]float64{7}, 0}} {
		if got := spread(c.in); got != c.want {
			t.Errorf("spread of %v is %v, want %v", c.in, got, c.want)
		}
	}
}
