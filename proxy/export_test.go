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
	p.tunnels.mu.Lock()
	defer p.tunnels.mu.Unlock()
	p.apps.mu.Lock()
	defer p.apps.mu.Unlock()
	p.permits.mu.Lock()
	defer p.permits.mu.Unlock()
	p.inflight.mu.Lock()
	defer p.inflight.mu.Unlock()
	return map[string]int{"endpoints": size(&p.endpoints), "budgets": size(&p.budgets), "tunnels": len(p.tunnels.all), "apps": len(p.apps.all),
		"permits": len(p.permits.all), "calls": p.inflight.n}
}

// DrainFor drains for less than Run does, and cuts what is left.
func (p *Proxy) DrainFor(d time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	err := p.drain(ctx)
	p.close()
	return err
}
