package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/mesh"
)

// Hedging asks that a request which has no answer for a while is sent to a second instance, too.
type Hedging struct {
	Delay   *time.Duration `yaml:"delay"`
	Methods []string       `yaml:"methods"`
}

// Hedge is when a request is sent to a second instance beside the first. The first answer counts.
type Hedge struct {
	Policy  mesh.PolicyKey
	Delay   time.Duration // without an answer, from the end of the request
	Methods []string      // whose effect is the same if they come twice
}

// Covers reports whether requests of a method are hedged.
func (h *Hedge) Covers(method string) bool { return h != nil && slices.Contains(h.Methods, method) }

// String says it in words.
func (h *Hedge) String() string {
	return strings.Join(h.Methods, ", ") + " without an answer for " + h.Delay.String() + " go to a second instance, too"
}

// The bounds of the delay of a hedge.
const (
	minHedge = time.Millisecond
	maxHedge = time.Minute
)

func (c *compiler) hedging(path string, in *Hedging) *Hedge {
	if in == nil {
		return nil
	}
	out := &Hedge{Policy: c.key, Methods: in.Methods}
	switch {
	case in.Delay == nil:
		c.fail(path+".delay", "write the latency that 95 of 100 calls stay below, such as 50ms", "is missing")
	case *in.Delay < minHedge || *in.Delay > maxHedge:
		c.fail(path+".delay", "write 1ms to 1m", "%v is no time after which a request can be sent once more", *in.Delay)
	default:
		out.Delay = *in.Delay
	}
	full(c, path+".methods", "name a method, or remove it for GET, HEAD and OPTIONS", in.Methods)
	for i, m := range in.Methods {
		at := fmt.Sprintf("%s.methods[%d]", path, i)
		switch {
		case !httpguts.ValidHeaderFieldName(m) || m != strings.ToUpper(m) || m == "CONNECT":
			c.fail(at, "write a method as it is sent, such as GET, or POST for gRPC", "%q cannot be hedged", m)
		case slices.Contains(in.Methods[:i], m):
			c.fail(at, "remove one", "%q is there twice", m)
		}
	}
	if in.Methods == nil {
		out.Methods = []string{"GET", "HEAD", "OPTIONS"}
	}
	return out
}

// hedge has the calls of services hedged. Of two policies for a service the older one counts.
func (m *Model) hedge(hedges map[mesh.ServiceName]*Hedge) {
	for s, h := range hedges {
		sp := m.service(s)
		for _, d := range append(sp.destinations(), sp.Destination) {
			d.Each(func(t *TrafficPolicy) { t.Hedge = h })
		}
	}
}
