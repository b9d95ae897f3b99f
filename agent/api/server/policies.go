package server

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// Limits of one change of policy.
const (
	maxWrites    = 1000
	maxRequestID = 64 // bytes
	maxWrong     = 20 // writes whose errors are told at once
)

func (s *Server) getPolicies(c *call) (any, error) {
	var kind, ns string
	if c.query.Has("kind") {
		var ok bool
		if _, kind, ok = policy.FindKind(c.query.Get("kind")); !ok {
			return nil, invalid("kinds are "+strings.Join(policy.Kinds(), ", "), "query: kind=%s is not known", quote(c.query.Get("kind")))
		}
	}
	if c.query.Has("namespace") {
		ns = c.query.Get("namespace")
		if err := mesh.CheckLabel("namespace", ns); err != nil {
			return nil, invalid("", "query: %v", err)
		}
	}
	ps, err := s.policies(c)
	if err != nil {
		return nil, err
	}
	ps.Policies = slices.DeleteFunc(ps.Policies, func(p api.Policy) bool { return kind != "" && p.Kind != kind || ns != "" && p.Namespace != ns })
	return ps, nil
}

// withStatus adds the status of each policy if the call asks for it.
func (s *Server) withStatus(c *call, ps *api.Policies) error {
	if ok, err := c.flag("status"); err != nil || !ok {
		return err
	}
	snap := s.cfg.Snapshots.Load()
	all := make([]mesh.Policy, len(ps.Policies))
	for i, p := range ps.Policies {
		all[i] = mesh.Policy{PolicyKey: p.PolicyKey, APIVersion: p.APIVersion, Source: []byte(p.Source), Created: p.Created, Modified: p.Modified}
	}
	statuses := policy.Statuses(snap.TrustDomain, all, snap.Services, func(index uint64) (live, nodes int) {
		sp := spreadOf(snap, func(n *mesh.Node) bool { return n.PolicyIndex >= index })
		return sp.have, sp.nodes
	})
	for i, p := range ps.Policies {
		ps.Policies[i].Status = statuses[p.PolicyKey]
	}
	return nil
}

// policies returns all policy in a new list, from the Snapshot or, when a call asks for linearizable, from the leader.
func (s *Server) policies(c *call) (api.Policies, error) {
	switch cons := api.Consistency(c.query.Get("consistency")); cons {
	case "", api.Stale:
	case api.Linearizable:
		if c.query.Has("after") || c.query.Has("wait") {
			return api.Policies{}, invalid("", "query: only stale reads can wait")
		}
		ps, err := s.cfg.Mesh.Policies(c.ctx)
		if err != nil {
			return api.Policies{}, err
		}
		ps.Policies = list(slices.Clone(ps.Policies))
		return ps, s.withStatus(c, &ps)
	default:
		return api.Policies{}, invalid("", "query: consistency=%s is neither stale nor linearizable", quote(string(cons)))
	}
	snap, err := s.snapshot(c)
	if err != nil {
		return api.Policies{}, err
	}
	ps := api.Policies{Index: snap.StoreIndex, Policies: []api.Policy{}}
	for _, p := range snap.Policies {
		ps.Policies = append(ps.Policies, api.Policy{PolicyKey: p.PolicyKey, APIVersion: p.APIVersion, Source: string(p.Source),
			Created: p.Created, Modified: p.Modified})
	}
	return ps, s.withStatus(c, &ps)
}

func (c *call) policyKey() mesh.PolicyKey {
	return mesh.PolicyKey{Group: c.vars["group"], Kind: c.vars["kind"], Namespace: c.vars["namespace"], Name: c.vars["name"]}
}

func (s *Server) getPolicy(c *call) (any, error) {
	key := c.policyKey()
	ps, err := s.policies(c)
	if err != nil {
		return nil, err
	}
	ps.Policies = slices.DeleteFunc(ps.Policies, func(p api.Policy) bool { return p.PolicyKey != key })
	if len(ps.Policies) == 0 {
		return nil, api.NewError(api.CodeNotFound, "there is no policy "+clip(key.String()), "")
	}
	return ps, nil
}

func (s *Server) deletePolicy(c *call) (any, error) {
	key := c.policyKey()
	a := api.Apply{Writes: []api.Write{{Delete: &key}}}
	index, ok, err := c.number("index")
	if err != nil {
		return nil, err
	}
	if ok {
		a.Writes[0].Index = &index
	}
	if a.DryRun, err = c.flag("dryRun"); err != nil {
		return nil, err
	}
	return s.apply(c, a, nil)
}

// postPolicies takes an api.Apply in JSON, or what is to be put as YAML. What curl sends without a type is YAML.
func (s *Server) postPolicies(c *call) (any, error) {
	b, mediaType, err := c.bytes(jsonType, yamlType)
	if err != nil {
		return nil, err
	}
	var a api.Apply
	var put []mesh.Policy
	if mediaType == jsonType {
		if err := decodeJSON(b, &a); err != nil {
			return nil, err
		}
		if len(a.RequestID) > maxRequestID {
			return nil, invalid("", "body: requestId: more than %d bytes", maxRequestID)
		}
		put, err = parseWrites(a.Writes)
	} else {
		put, err = policy.Parse("body", b)
		for _, p := range put {
			a.Writes = append(a.Writes, api.Write{Source: string(p.Source)})
		}
	}
	if err != nil {
		return nil, invalid("", "%v", err)
	}
	if n := len(a.Writes); n == 0 || n > maxWrites {
		return nil, invalid("", "%d changes in one call: 1 to %d are possible", n, maxWrites)
	}
	dry, err := c.flag("dryRun")
	if err != nil {
		return nil, err
	}
	a.DryRun = a.DryRun || dry
	return s.apply(c, a, put)
}

// parseWrites validates writes and returns the resources that they put.
func parseWrites(ws []api.Write) (put []mesh.Policy, err error) {
	var wrong []string
	for i, w := range ws {
		at := fmt.Sprintf("writes[%d]", i)
		switch {
		case (w.Source != "") == (w.Delete != nil):
			wrong = append(wrong, at+": either source or delete is needed")
		case w.Delete != nil:
		default:
			ps, err := policy.Parse(at+".source", []byte(w.Source))
			if err == nil && len(ps) != 1 {
				err = fmt.Errorf("%s.source: it holds %d resources, and one is needed", at, len(ps))
			}
			if err != nil {
				wrong = append(wrong, err.Error())
			}
			put = append(put, ps...)
		}
		if len(wrong) >= maxWrong {
			wrong = append(wrong, "and more may follow")
			break
		}
	}
	if len(wrong) > 0 {
		return nil, fmt.Errorf("%s", strings.Join(wrong, "\n"))
	}
	return put, nil
}

// apply makes the writes and adds what is to be said of the policy that then holds. put are the resources of a.
func (s *Server) apply(c *call, a api.Apply, put []mesh.Policy) (any, error) {
	before := s.cfg.Snapshots.Load()
	out, err := s.cfg.Mesh.Apply(c.ctx, c.op, a)
	if err != nil {
		return nil, err
	}
	out.Outcomes = list(out.Outcomes)
	out.Warnings = append(list(out.Warnings), warnings(before, a.Writes, put)...)
	return out, nil
}
