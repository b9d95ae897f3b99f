package proxy

import (
	"context"
	"sync"
	"time"
)

// Held counts what the proxy remembers.
func (p *Proxy) Held() map[string]int {
	size := func(m *sync.Map) (n int) {
		m.Range(func(any, any) bool { n++; return true })
		return n
	}
	p.links.mu.Lock()
	defer p.links.mu.Unlock()
	links := 0
	for _, w := range p.links.who {
		links += size(&w.links)
	}
	return map[string]int{"endpoints": size(&p.endpoints), "budgets": size(&p.budgets), "links": links, "places": len(p.links.places),
		"callers": len(p.links.who), "calls": int(p.inflight.n.Load() + p.fromOthers.n.Load())}
}

// Verifying has the proxy take it that so many more tokens are being verified.
func (p *Proxy) Verifying(n int64) { p.verifying.Add(n) }

// DrainFor drains for less than Run does, and cuts what is left.
func (p *Proxy) DrainFor(d time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	err := p.drain(ctx)
	p.close()
	return err
}
