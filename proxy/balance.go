package proxy

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/lb"
)

// endpoint is what the proxy keeps of an instance as long as the catalog has it.
type endpoint struct {
	lb.Endpoint
	serves  atomic.Bool // when it was last looked at
	session uint64      // hash by which sessions know the instance, the same on all hosts
}

// endpoint returns that of an instance. One that is new, or well again, begins its warm-up.
func (p *Proxy) endpoint(s *mesh.Snapshot, i *mesh.Instance) *endpoint {
	k := endpointKey{i.Node, i.Service, i.ID}
	v, known := p.endpoints.Load(k)
	if !known {
		v, _ = p.endpoints.LoadOrStore(k, &endpoint{session: lb.Hash(i.Service.String() + "/" + i.Node.String() + "/" + i.ID)})
	}
	e := v.(*endpoint)
	if is := s.Usable(i); e.serves.Swap(is) != is && is && p.began.Load() {
		e.Start(time.Now().UnixNano())
	}
	return e
}

// SitsOut returns for how long callers of this host still leave an instance out because calls of it failed; 0 if they do not.
func (p *Proxy) SitsOut(i *mesh.Instance) time.Duration {
	v, ok := p.endpoints.Load(endpointKey{i.Node, i.Service, i.ID})
	if !ok {
		return 0
	}
	return v.(*endpoint).SitsOut(time.Now().UnixNano())
}

// balance says how the instances of a destination are balanced for callers of this host.
func balance(s *mesh.Snapshot, t *policy.TrafficPolicy) lb.Config {
	c := lb.Config{Algorithm: t.LB, RingSize: t.RingSize, TableSize: t.TableSize, Warmup: t.Warmup, Outlier: lb.DefaultOutlier}
	if t.Outlier != nil {
		c.Outlier = t.Outlier.Outlier
	}
	if l := t.Near(); l != nil {
		c.Locality = *l
		if self := s.Nodes[s.Self]; self != nil {
			c.Locality.From, c.Locality.Labels = self.Locality, policy.PlaceLabels(self, nil)
		}
		if l.Zones != nil {
			c.Locality.Zones = &lb.Zones{Min: l.Zones.Min, Hosts: hostsByZone(s, c.Locality.From.Region)}
		}
	}
	return c
}

// hostsByZone counts the hosts of a region that are there.
func hostsByZone(s *mesh.Snapshot, region string) map[mesh.Locality]int {
	n := map[mesh.Locality]int{}
	for _, h := range s.Nodes {
		if h.Locality.Region == region && h.Status == mesh.Alive {
			n[h.Locality]++
		}
	}
	return n
}

// candidate is an instance as the balancer sees it. labels says whether it looks at them.
func candidate(s *mesh.Snapshot, i *mesh.Instance, e *lb.Endpoint, labels bool) lb.Candidate {
	c := lb.Candidate{Endpoint: e, Weight: uint32(i.Weight), Down: !s.Usable(i), Name: i.Node.String() + "/" + i.ID, Locality: s.LocalityOf(i)}
	if labels {
		c.Labels = policy.PlaceLabels(s.Nodes[i.Node], i.Labels)
	}
	return c
}

// key returns what the balancer is asked with: 0 where nothing of the call decides, or it does not have it.
func (c *call) key(d *destination) uint64 {
	h := d.traffic.Hash
	switch {
	case h == nil:
	case h.SourceIP:
		if ip := c.clientIP(); !ip.IsLoopback() || !d.self.IsValid() {
			return lb.HashAddr(ip)
		}
		return lb.HashAddr(d.self) // as other hosts see callers of this one
	case c.raw:
	case h.Header != "":
		if h.Header == "host" {
			return lb.Hash(c.q.Authority)
		}
		if v := c.x.Request.Get(h.Header); v != nil {
			return lb.Hash(v)
		}
	case h.Query != "":
		if v, ok := policy.QueryValue(c.q.Query, h.Query); ok {
			return lb.Hash(v)
		}
	case h.Cookie != nil:
		for line := range c.x.Request.Values("cookie") {
			if v := cookieValue(line, h.Cookie.Name); len(v) > 0 {
				return lb.Hash(v)
			}
		}
		if h.Cookie.Set[0] != "" {
			return c.newCookie(h.Cookie)
		}
	}
	return 0
}

// selfAddr is the address of this host; the zero value where it is not known.
func selfAddr(s *mesh.Snapshot) netip.Addr {
	if n := s.Nodes[s.Self]; n != nil {
		return n.Addr
	}
	return netip.Addr{}
}

// newCookie gives the caller a cookie, by which its next calls go where this one does, and returns its key.
func (c *call) newCookie(k *policy.Cookie) uint64 {
	x := c.x
	at := len(x.Scratch)
	x.Scratch = append(x.Scratch, k.Set[0]...)
	from := len(x.Scratch)
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], rand.Uint64())
	x.Scratch = hex.AppendEncode(x.Scratch, b[:])
	key := lb.Hash(x.Scratch[from:])
	x.Scratch = append(x.Scratch, k.Set[1]...)
	c.cookie = x.Scratch[at:len(x.Scratch):len(x.Scratch)]
	return key
}

// cookieValue returns the value of a cookie in a Cookie field, without quotes; nil for none.
func cookieValue(line []byte, name string) []byte {
	for len(line) > 0 {
		var pair []byte
		pair, line, _ = bytes.Cut(line, []byte(";"))
		if k, v, ok := bytes.Cut(bytes.TrimLeft(pair, " \t"), []byte("=")); ok && string(k) == name {
			return bytes.Trim(v, " \t\"")
		}
	}
	return nil
}
