package proxy

import (
	"math"
	"testing"
)

// TestDrawByWeight: over 100,000 draws each destination gets its share, give or take a hundredth of all.
func TestDrawByWeight(t *testing.T) {
	for _, weights := range [][]uint64{{1}, {90, 10}, {1, 0, 1}, {1, 2, 3, 4}, {999_999, 1}} {
		r := &rule{}
		for _, w := range weights {
			r.splits = append(r.splits, split{weight: w})
			r.total += w
		}
		const n = 100_000
		got := map[*split]float64{}
		for range n {
			got[r.draw()]++
		}
		for i, w := range weights {
			want := float64(w) / float64(r.total)
			if share := got[&r.splits[i]] / n; math.Abs(share-want) > .01 || w == 0 && share != 0 {
				t.Errorf("%v: %d gets %v, want %v", weights, i, share, want)
			}
		}
	}
}
