package gossip

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// slow is a Fetcher that takes its time, and counts.
type slow struct {
	*lab
	fetches *atomic.Int64
}

func (s slow) FetchRecords(ctx context.Context, a netip.AddrPort, want []mesh.NodeID) ([][]byte, error) {
	s.fetches.Add(1)
	time.Sleep(20 * time.Millisecond)
	return s.lab.FetchRecords(ctx, a, want)
}

// TestNewsDoNotWaitForARound: a change is on all hosts long before memberlist sends anything, also one that is fetched, and so is
// a good-bye.
func TestNewsDoNotWaitForARound(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t)
		hs := l.several(fanout + 1)
		for _, n := range []int{1, 10, 300} { // 300 do not fit a packet
			time.Sleep(time.Minute)
			start := time.Now()
			hs[0].SetInstances(instances(n))
			for _, h := range hs[1:] {
				h.until("instances", func(map[string]mesh.Status) bool { return len(h.record("h1").Instances) == n })
			}
			if d := time.Since(start); d > gossipInterval/10 {
				t.Errorf("%d instances took %v", n, d)
			}
		}
		start := time.Now()
		go hs[5].stop()
		hs[0].until("h6 left", func(st map[string]mesh.Status) bool { return st["h6"] == mesh.Left })
		if d := time.Since(start); d > gossipInterval/10 {
			t.Errorf("a good-bye took %v", d)
		}
		stopAll(hs)
	})
}

// TestNewsAreFetchedOnce: a host that hears of a large record from several others asks one of them, and tells others at once.
func TestNewsAreFetchedOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t)
		var fetches atomic.Int64
		var hs []*host
		for i := range 16 {
			hs = append(hs, l.start(i+1, func(c *Config) { c.Fetcher = slow{l, &fetches} }))
		}
		for _, h := range hs {
			h.until("all alive", func(st map[string]mesh.Status) bool { return count(st, mesh.Alive) == len(hs) })
		}
		time.Sleep(2 * time.Minute)
		fetches.Store(0)
		hs[0].SetInstances(instances(300))
		time.Sleep(100 * time.Millisecond)
		have := 0
		for _, h := range hs[1:] {
			if len(h.record("h1").Instances) == 300 {
				have++
			}
		}
		if have <= fanout {
			t.Errorf("%d hosts have it, no more than were told by its owner", have)
		}
		time.Sleep(2 * time.Minute)
		if n := fetches.Load(); n != 15 {
			t.Errorf("15 hosts fetched %d times", n)
		}
		stopAll(hs)
	})
}

// TestPushesAreBounded: a host whose record does not stand still sends no more than the rate, and the last of it is there in the end.
func TestPushesAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t)
		hs := l.several(3)
		hs[0].SetInstances(instances(10))
		time.Sleep(time.Minute)
		_, before := l.net.Sent()
		const during = time.Minute
		for i := range uint64(during / (10 * time.Millisecond)) {
			hs[0].SetPolicyIndex(i + 1)
			time.Sleep(10 * time.Millisecond)
		}
		_, after := l.net.Sent()
		most := uint64(len(hs)) * uint64(pushRate*(during+pushBurst)/time.Second)
		most += uint64(len(hs)) * uint64(during/gossipInterval) * 2 * 1400 // what memberlist sends, to two
		if sent := after - before; sent > most {
			t.Errorf("%d bytes were sent, want at most %d", sent, most)
		}
		for _, h := range hs[1:] {
			h.until("the last", func(map[string]mesh.Status) bool {
				return h.record("h1").Node.PolicyIndex == uint64(during/(10*time.Millisecond))
			})
		}
		stopAll(hs)
	})
}
