package policy

import (
	"crypto/sha256"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/meshagent/meshagent/internal/strictyaml"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/gatewayapi"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// Cache compiles the policies of a mesh again and again, and decodes only those that it did not compile the time before. The zero value is
// ready. It is safe for concurrent use.
type Cache struct {
	mu   sync.Mutex // guards what follows
	last map[sum]*decoded

	keys  map[KeySource]*KeySet // that were fetched
	keyed map[*tokens]keyed     // what was made of both the last time
}

// sum is the SHA-256 of a source.
type sum [sha256.Size]byte

// decoded is a source that was read. It is immutable.
type decoded struct {
	*doc
	err error
}

// Compile builds the Model of all policies of a mesh, as the function Compile does.
func (c *Cache) Compile(td mesh.TrustDomain, index uint64, ps []mesh.Policy) *Model {
	ps = byAge(ps)
	c.mu.Lock()
	docs := c.read(ps)
	c.withKeys(docs)
	c.mu.Unlock()
	return assemble(td, index, ps, docs)
}

// read decodes what it does not know, on all processors, and forgets what is not there any more.
func (c *Cache) read(ps []mesh.Policy) []*decoded {
	out, sums := make([]*decoded, len(ps)), make([]sum, len(ps))
	each(len(ps), func(i int) {
		sums[i] = sha256.Sum256(ps[i].Source)
		if out[i] = c.last[sums[i]]; out[i] == nil {
			out[i] = decode(ps[i].Source)
		}
	})
	c.last = make(map[sum]*decoded, len(ps))
	for i, d := range out {
		c.last[sums[i]] = d
	}
	return out
}

// each calls f for 0 to n-1, on all processors.
func each(n int, f func(int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), n) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}

// compileRoutes compiles what has the most rules, each on its own: VirtualServices and routes. Others are nil.
func compileRoutes(ps []mesh.Policy, docs []*decoded, d delegates) []any {
	out := make([]any, len(ps))
	each(len(ps), func(i int) {
		if docs[i].err != nil || docs[i].key != ps[i].PolicyKey {
			return
		}
		switch s := docs[i].value.(type) {
		case *istio.VirtualService:
			out[i], _ = compileVirtualService(ps[i].PolicyKey, s, d)
		case *gatewayapi.HTTPRouteSpec, *gatewayapi.GRPCRouteSpec, *gatewayapi.TLSRouteSpec, *gatewayapi.TCPRouteSpec:
			out[i], _ = compileRoute(ps[i].PolicyKey, s)
		}
	})
	return out
}

// decode reads a source of one document.
func decode(source []byte) *decoded {
	docs, err := strictyaml.Split("", source)
	if err == nil && len(docs) != 1 {
		err = fmt.Errorf("%d documents", len(docs))
	}
	if err != nil {
		return &decoded{err: err}
	}
	d := parseDoc(docs[0])
	d.Root, d.spec = nil, nil // what is decoded is in value
	return &decoded{d, d.errs.Err()}
}

func (d *decoded) virtualService() (*istio.VirtualService, bool) {
	if d.err != nil {
		return nil, false
	}
	s, ok := d.value.(*istio.VirtualService)
	return s, ok
}
