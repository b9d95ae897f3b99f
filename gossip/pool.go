package gossip

import (
	"sync"

	"github.com/meshagent/meshagent/mesh"
)

// maxPooled bounds each part of a pool; what is over it starts anew, and costs memory, not correctness.
const maxPooled = 16_384

// pool keeps one copy of what many instances have in common: sets of labels, names of services, accounts. A host knows every
// instance of the mesh, and a set of labels alone is three times as large as all else of an instance. Records are immutable, so
// that they may share. The zero value is ready.
type pool struct {
	mu       sync.Mutex             // guards what follows
	labels   map[string]mesh.Labels // by their encoding
	services map[string]mesh.ServiceName
	texts    map[string]string
}

// bound makes the maps, or empties one that is full. The caller holds mu.
func (p *pool) bound() {
	if len(p.labels) >= maxPooled || p.labels == nil {
		p.labels = map[string]mesh.Labels{}
	}
	if len(p.services) >= maxPooled || p.services == nil {
		p.services = map[string]mesh.ServiceName{}
	}
	if len(p.texts) >= maxPooled || p.texts == nil {
		p.texts = map[string]string{}
	}
}

func (p *pool) textLocked(r *reader) string {
	b := r.take(r.uint())
	s, ok := p.texts[string(b)]
	if !ok {
		s = string(b)
		p.texts[s] = s
	}
	return s
}

func (p *pool) serviceLocked(r *reader) (mesh.ServiceName, error) {
	b := r.take(r.uint())
	if s, ok := p.services[string(b)]; ok {
		return s, nil
	}
	s, err := mesh.ParseServiceName(string(b))
	if err == nil {
		p.services[string(b)] = s
	}
	return s, err
}

func (p *pool) labelsLocked(r *reader) mesh.Labels {
	all := r.b
	l := r.labels()
	if l == nil || r.bad {
		return l
	}
	raw := all[:len(all)-len(r.b)]
	if have, ok := p.labels[string(raw)]; ok {
		return have
	}
	p.labels[string(raw)] = l
	return l
}
