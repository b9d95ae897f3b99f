package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/meshagent/meshagent/agent/control"
	"github.com/meshagent/meshagent/agent/meshport"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// liveConns are the connections that others opened to this host's mesh port. The zero value is ready. Safe for concurrent use.
type liveConns struct {
	mu  sync.Mutex // guards all
	all map[*tls.Conn]context.CancelFunc
}

// guard returns a route whose connections are cut when their peer is revoked.
func (l *liveConns) guard(r meshport.Route, revoked func() *ca.Revoked) meshport.Route {
	serve := r.Serve
	r.Serve = func(ctx context.Context, c *tls.Conn) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		l.mu.Lock()
		if l.all == nil {
			l.all = map[*tls.Conn]context.CancelFunc{}
		}
		l.all[c] = cancel // before the set is looked at, so that no change is missed
		l.mu.Unlock()
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			delete(l.all, c)
		}()
		if refused(c, revoked()) {
			c.Close()
			return
		}
		serve(ctx, c)
	}
	return r
}

// cut ends the connections of those who are revoked, as the end of the port would.
func (l *liveConns) cut(r *ca.Revoked) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c, cancel := range l.all {
		if refused(c, r) {
			cancel()
		}
	}
}

func refused(c *tls.Conn, r *ca.Revoked) bool {
	peer := c.ConnectionState().PeerCertificates
	if len(peer) == 0 {
		return false
	}
	id, err := mesh.CertIdentity(peer[0])
	return err != nil || r.Check(peer[0], id) != nil
}

// takeRevoked makes this host refuse who is revoked: in handshakes, on connections that are open, as an instance to call, and, for
// services of this host that call each other, by policy.
func (a *Agent) takeRevoked(all []control.Revocation) {
	before := a.revocations()
	if slices.Equal(all, before) {
		return
	}
	for _, r := range all {
		if !slices.Contains(before, r) {
			a.log.Warn("revoked", "node", r.Node, "name", r.Name, "service", r.Service, "reason", r.Reason)
		}
	}
	a.revoked.Store(&all)
	set := control.RevokedSet(all)
	a.setRevoked(set)
	a.live.cut(set)
	a.feedCatalog()
	if a.proxy != nil { // else there are no calls yet
		a.proxy.RecheckPeers()
		a.proxy.CutTo(func(node mesh.NodeID, id mesh.Identity) bool { return set.Node(node) || set.Identity(id) })
	}
}

func (a *Agent) revocations() []control.Revocation {
	if r := a.revoked.Load(); r != nil {
		return *r
	}
	return nil
}

// feedCatalog tells the catalog what gossip knows, without those who are revoked.
func (a *Agent) feedCatalog() {
	a.feeding.Lock()
	defer a.feeding.Unlock()
	a.catalog.SetRecords(unrevoked(a.gossip.Load(), a.node.TrustDomain(), a.leaves.Revoked()))
}

// unrevoked returns the records of hosts that are not revoked, without the instances of services that are.
func unrevoked(rs []*mesh.Record, td mesh.TrustDomain, set *ca.Revoked) []*mesh.Record {
	out := make([]*mesh.Record, 0, len(rs))
	for _, r := range rs {
		if set.Node(r.Node.ID) {
			continue
		}
		bad := func(in mesh.Instance) bool { return set.Identity(in.Identity(td)) }
		if slices.ContainsFunc(r.Instances, bad) {
			r = r.Clone()
			r.Instances = slices.DeleteFunc(r.Instances, bad)
		}
		out = append(out, r)
	}
	return out
}

// denyRevoked returns the policy that refuses revoked services wherever they call; nil when there is none.
func denyRevoked(all []control.Revocation) []mesh.Policy {
	var principals []string
	for _, r := range all {
		if !r.Service.IsZero() {
			principals = append(principals, fmt.Sprintf("%q", r.Service.Principal()))
		}
	}
	if principals == nil {
		return nil
	}
	key := mesh.PolicyKey{Group: "security.istio.io", Kind: "AuthorizationPolicy", Namespace: policy.RootNamespace, Name: "revoked"}
	src := fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: %s\nmetadata: {name: %s, namespace: %s}\nspec: {action: DENY, rules: [{from: [{source: {principals: [%s]}}]}]}\n",
		key.Kind, key.Name, key.Namespace, strings.Join(principals, ", "))
	return []mesh.Policy{{PolicyKey: key, APIVersion: "security.istio.io/v1", Source: []byte(src)}}
}
