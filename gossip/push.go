package gossip

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/meshagent/meshagent/mesh"
)

// News do not wait for memberlist's next round: a host sends them to fanout members at once, and so does each host to which
// they are new, so that all have them after a handful of hops. Whom they do not reach, as one host in 150 is drawn by none,
// packets are lost and rates are used up, gets them from the queue. What a digest showed is no news: who had it has told others.

const (
	fanout = 5
	// linger is how long news wait for others: a newer record of the same node takes the place of one that was not sent.
	linger = 5 * time.Millisecond
	// apart is the time between two of them: a thousand records, changed at once, do not leave as one burst.
	apart = time.Millisecond
	// pushRate bounds what a host sends this way, in bytes per second, and pushBurst for how long it may have saved that up.
	pushRate  = 12 << 10
	pushBurst = 30 * time.Second
	// aroundMessage is what label, encryption and the headers of IP are in a packet, about.
	aroundMessage = 80
)

// pushLoop sends news until ctx ends.
func (g *Gossip) pushLoop(ctx context.Context, list *memberlist.Memberlist) {
	var paid time.Time // when what was sent is within the rate
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.wake:
		}
		for wait := linger; g.NumMembers() > 1; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			b, ok := g.takeNews()
			if !ok {
				break
			}
			now := time.Now()
			if paid.Before(now) {
				paid = now
			}
			paid = paid.Add(time.Duration(g.push(list, b)) * time.Second / pushRate)
			wait = max(apart, paid.Sub(now)-pushBurst)
		}
	}
}

// wakeUp makes pushLoop look for news.
func (g *Gossip) wakeUp() {
	select {
	case g.wake <- struct{}{}:
	default: // it is about to
	}
}

func (g *Gossip) takeNews() (broadcast, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, b := range g.news {
		delete(g.news, id)
		return b, true
	}
	return broadcast{}, false
}

// push sends a message to some members, and returns how many bytes that took.
func (g *Gossip) push(list *memberlist.Memberlist, b broadcast) (sent int) {
	for _, to := range g.drawMembers(fanout, b.id) {
		if err := list.SendToAddress(to, b.msg); err != nil {
			g.cfg.Log.Debug("news not sent", "to", to.Addr, "err", err)
		}
		sent += aroundMessage + len(b.msg)
	}
	return sent
}

// drawMembers returns up to n other members that are alive, but for one node, by chance and each with the same.
func (g *Gossip) drawMembers(n int, not mesh.NodeID) (out []memberlist.Address) {
	g.mu.Lock()
	defer g.mu.Unlock()
	seen := 0
	for id, k := range g.nodes {
		if !k.living || id == not {
			continue
		}
		if seen++; len(out) < n {
			out = append(out, k.at)
		} else if i := rand.IntN(seen); i < n {
			out[i] = k.at
		}
	}
	return out
}
