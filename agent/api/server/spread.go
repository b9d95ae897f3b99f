package server

import (
	"slices"
	"time"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/mesh"
)

// maxPending is how many names of nodes an answer tells.
const maxPending = 100

// spread is on how many of the living nodes something is.
type spread struct {
	have, nodes int
	pending     []string
}

func spreadOf(snap *mesh.Snapshot, has func(*mesh.Node) bool) (sp spread) {
	for _, n := range snap.Nodes {
		switch {
		case n.Status > mesh.Suspect:
			continue
		case has(n):
			sp.have++
		default:
			sp.pending = append(sp.pending, n.Name)
		}
		sp.nodes++
	}
	slices.Sort(sp.pending)
	sp.pending = sp.pending[:min(len(sp.pending), maxPending)]
	return sp
}

// spread counts nodes; with ?wait it waits until all have it, the time is up or the agent ends.
func (s *Server) spread(c *call, has func(*mesh.Node) bool) (spread, error) {
	end := time.Now()
	if c.query.Has("wait") {
		d, err := c.wait()
		if err != nil {
			return spread{}, err
		}
		end = end.Add(d)
	}
	for snap := s.cfg.Snapshots.Load(); ; {
		sp := spreadOf(snap, has)
		left := time.Until(end)
		if sp.have == sp.nodes || left <= 0 || s.stopping.Err() != nil {
			return sp, nil
		}
		var err error
		if snap, err = s.next(c, snap.Version, left); err != nil {
			return spread{}, err
		}
	}
}

func (s *Server) getLive(c *call) (any, error) {
	index, ok, err := c.number("index")
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, invalid("give the index that a write answered with", "query: index is missing")
	}
	sp, err := s.spread(c, func(n *mesh.Node) bool { return n.PolicyIndex >= index })
	return api.Live{Index: index, Live: sp.have, Nodes: sp.nodes, Pending: sp.pending}, err
}

func (s *Server) getKeyring(c *call) (any, error) {
	version, ok, err := c.number("version")
	if err != nil {
		return nil, err
	}
	if !ok {
		version = s.cfg.Keyring.Keyring().Version
	}
	sp, err := s.spread(c, hasKeyring(version))
	return keyring(s.cfg.Keyring.Keyring(), sp), err
}

// hasKeyring reports whether a node has a version of the keyring, or a later one.
func hasKeyring(version uint64) func(*mesh.Node) bool {
	return func(n *mesh.Node) bool { return n.Keyring >= version }
}

func keyring(k api.Keyring, sp spread) api.Keyring {
	k.Keys, k.Have, k.Nodes, k.Pending = list(k.Keys), sp.have, sp.nodes, sp.pending
	return k
}

func (s *Server) postRotateKeyring(c *call) (any, error) {
	k, err := s.cfg.Keyring.RotateKeyring(c.ctx, c.op)
	if err != nil {
		return nil, err
	}
	return keyring(k, spreadOf(s.cfg.Snapshots.Load(), hasKeyring(k.Version))), nil
}

func (s *Server) getCA(c *call) (any, error) {
	a, err := s.cfg.CA.CA(c.ctx)
	return s.withSpread(a), err
}

func (s *Server) postRotateCA(c *call) (any, error) {
	a, err := s.cfg.CA.RotateCA(c.ctx, c.op)
	return s.withSpread(a), err
}

func (s *Server) postAuthority(c *call) (any, error) {
	var in api.Authority
	if err := c.json(&in); err != nil {
		return nil, err
	}
	if given := in.Certificate != "" || in.Key != "" || in.Root != ""; given == in.Own {
		return nil, invalid("", "body: either own, or certificate, key and root are needed")
	}
	a, err := s.cfg.CA.ReplaceCA(c.ctx, c.op, in)
	return s.withSpread(a), err
}

func (s *Server) postFederation(c *call) (any, error) {
	var in api.Federate
	if err := c.json(&in); err != nil {
		return nil, err
	}
	if (in.Bundle == "") != in.Remove {
		return nil, invalid("", "body: either bundle or remove is needed")
	}
	return s.cfg.CA.Federate(c.ctx, c.op, in)
}

func (s *Server) withSpread(a api.CA) api.CA {
	sp := spreadOf(s.cfg.Snapshots.Load(), func(n *mesh.Node) bool { return n.Bundle >= a.Bundle })
	a.Roots, a.TokenKeys, a.Revoked, a.Have, a.Nodes, a.Pending = list(a.Roots), list(a.TokenKeys), list(a.Revoked), sp.have, sp.nodes, sp.pending
	return a
}

func (s *Server) postRevoke(c *call) (any, error) {
	var r api.Revoke
	if err := c.json(&r); err != nil {
		return nil, err
	}
	if (r.Node == "") == r.Service.IsZero() {
		return nil, invalid("", "body: either node or service is needed")
	}
	return s.cfg.CA.Revoke(c.ctx, c.op, r)
}

func (s *Server) getBundle(c *call) (any, error) {
	f, kind := api.BundleFormat(c.query.Get("format")), "application/x-pem-file"
	switch f {
	case "":
		f = api.PEM
	case api.PEM:
	case api.SPIFFE:
		kind = "application/json"
	default:
		return nil, invalid("", "query: format=%s is neither pem nor spiffe", quote(string(f)))
	}
	b, err := s.cfg.CA.Bundle(f)
	return text{kind, string(b)}, err
}
