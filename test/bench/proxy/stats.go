//go:build linux

package main

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// median returns the middle one, or the mean of the two in the middle; 0 of nothing.
func median[T ~int64 | ~float64](all []T) T {
	s := slices.Clone(all)
	slices.SortFunc(s, cmp.Compare)
	switch n := len(s); {
	case n == 0:
		return 0
	case n%2 == 1:
		return s[n/2]
	default:
		return (s[n/2-1] + s[n/2]) / 2
	}
}

// quantile returns the least value that is not below a share q of all (nearest rank); sorted has at least one.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(max(int(math.Ceil(q*float64(len(sorted))))-1, 0), len(sorted)-1)]
}

// spread is half the distance from the lowest to the highest: ±.
func spread(all []float64) float64 { return (slices.Max(all) - slices.Min(all)) / 2 }
