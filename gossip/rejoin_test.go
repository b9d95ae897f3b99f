package gossip

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// TestSilentSeeds: seeds whose hosts are off, which nobody says of them, hold up neither the join of one that is there nor the
// end: with all servers off, a host that starts anew is back at once.
func TestSilentSeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		silent := func(c *Config) {
			c.Seeds = func() []string { return []string{l.addrOf(7), l.addrOf(8), l.addrOf(9)} }
		}
		a := l.start(1, silent)
		time.Sleep(5 * time.Second) // it is in the midst of dialling the first
		start := time.Now()
		a.stop()
		if d := time.Since(start); d > time.Second {
			t.Errorf("the end took %v", d)
		}
		c := l.start(3, silent)
		time.Sleep(time.Second)
		b := l.start(2, func(cfg *Config) { cfg.Seeds = func() []string { return []string{c.addr} } })
		c.until("two alive", func(st map[string]mesh.Status) bool { return count(st, mesh.Alive) == 2 })
		start = time.Now()
		c.stop()
		if d := time.Since(start); d > 4*time.Second {
			t.Errorf("the good-bye took %v", d)
		}
		start = time.Now()
		d := l.start(4, func(cfg *Config) { cfg.Seeds = func() []string { return []string{l.addrOf(7), l.addrOf(8), b.addr} } })
		d.until("b alive", func(st map[string]mesh.Status) bool { return count(st, mesh.Alive) == 2 })
		if took := time.Since(start); took < 2*rejoinStagger || took > 4*rejoinStagger {
			t.Errorf("behind two silent seeds a living one was joined after %v", took)
		}
		d.stop()
		b.stop()
		time.Sleep(time.Minute) // what was being dialled has given up
	})
}
