package policy

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/mesh"
)

// GlobalRateLimit is how a limit of the whole mesh is written: by which service, of Envoy's rate limit protocol, and what it is told.
type GlobalRateLimit struct {
	Service         string            `yaml:"service"`
	Port            uint16            `yaml:"port"`
	Domain          string            `yaml:"domain"`
	Timeout         *time.Duration    `yaml:"timeout"`
	FailureModeDeny bool              `yaml:"failureModeDeny"`
	Descriptor      []DescriptorEntry `yaml:"descriptor"`
}

// DescriptorEntry is a part of what the service is told. One field beside Key says what its value is.
type DescriptorEntry struct {
	Key     string `yaml:"key"`
	Value   string `yaml:"value"`
	Header  string `yaml:"header"`
	Caller  bool   `yaml:"caller"`
	Address bool   `yaml:"address"`
	Method  bool   `yaml:"method"`
	Path    bool   `yaml:"path"`
}

// GlobalLimit is a limit that a service counts, for all hosts. Source: Envoy, envoy/service/ratelimit/v3/rls.proto.
type GlobalLimit struct {
	LimitServer
	entries []entry
}

// LimitServer is who is asked, and how. It is comparable: limits of one are asked about together.
type LimitServer struct {
	Service mesh.ServiceName
	Port    uint16
	Domain  string
	Timeout time.Duration
	Deny    bool // when it does not answer
}

// entry is a part of a descriptor.
type entry struct {
	key   string
	value func(*Request) string // "" is none
}

// Descriptor appends what the service is told of a request, pairs of key and value. Where the request lacks one of them it is not told of the
// request (ok is false), as Envoy does.
func (g *GlobalLimit) Descriptor(q *Request) (pairs [][2]string, ok bool) {
	for _, e := range g.entries {
		v := e.value(q)
		if v == "" {
			return nil, false
		}
		pairs = append(pairs, [2]string{e.key, v})
	}
	return pairs, true
}

// String says who is asked about what.
func (g *GlobalLimit) String() string {
	keys := make([]string, len(g.entries))
	for i, e := range g.entries {
		keys[i] = e.key
	}
	return fmt.Sprintf("%s says for each %s in %s", g.Service, strings.Join(keys, ", "), g.Domain)
}

// Bounds of what a service that counts is asked. Envoy waits 20 ms unless told otherwise, for a service that is near.
const (
	defaultLimitTime = 100 * time.Millisecond
	maxLimitTime     = 10 * time.Second
	maxEntries       = 16
)

func (c *compiler) globalLimit(path string, s *GlobalRateLimit) *GlobalLimit {
	g := &GlobalLimit{LimitServer: LimitServer{Port: s.Port, Domain: s.Domain, Timeout: defaultLimitTime, Deny: s.FailureModeDeny}}
	if s.Service == "" {
		c.fail(path+".service", "name the service that counts", "is missing")
	} else {
		g.Service = c.host(path+".service", s.Service)
	}
	if s.Port == 0 {
		c.fail(path+".port", "write the service's port", "is missing")
	}
	if s.Domain == "" {
		c.fail(path+".domain", "write the domain that the service's configuration has", "is missing")
	}
	if s.Timeout != nil {
		if g.Timeout = *s.Timeout; g.Timeout < time.Millisecond || g.Timeout > maxLimitTime {
			c.fail(path+".timeout", fmt.Sprintf("from 1ms to %v is possible", maxLimitTime), "is %v", g.Timeout)
		}
	}
	if n := len(s.Descriptor); n == 0 || n > maxEntries {
		c.fail(path+".descriptor", fmt.Sprintf("write 1 to %d entries", maxEntries), "has %d entries", n)
	}
	for i := range s.Descriptor {
		g.entries = append(g.entries, c.descriptorEntry(fmt.Sprintf("%s.descriptor[%d]", path, i), &s.Descriptor[i]))
	}
	return g
}

func (c *compiler) descriptorEntry(path string, e *DescriptorEntry) entry {
	out, n := entry{key: e.Key}, 0
	is := func(there bool, value func(*Request) string) {
		if there {
			out.value = value
			n++
		}
	}
	is(e.Value != "", func(*Request) string { return e.Value })
	low := strings.ToLower(e.Header)
	is(e.Header != "", func(q *Request) string {
		if q.Header == nil {
			return ""
		}
		return strings.Join(q.Header(low), ",")
	})
	is(e.Caller, func(q *Request) string {
		if q.Source.Identity.IsZero() {
			return ""
		}
		return q.Source.Identity.String()
	})
	is(e.Address, func(q *Request) string { return q.Source.First().String() })
	is(e.Method, func(q *Request) string { return q.Method })
	is(e.Path, func(q *Request) string { return q.Path })
	switch {
	case e.Key == "":
		c.fail(path+".key", "write the key that the service's configuration has", "is missing")
	case n != 1:
		c.fail(path, "write one of value, header, caller, address, method and path", "has %d values", n)
	case e.Header != "" && !httpguts.ValidHeaderFieldName(e.Header):
		c.fail(path+".header", "", "%q is not the name of a header", e.Header)
	}
	return out
}
