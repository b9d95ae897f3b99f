package server

import (
	"maps"
	"slices"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// warnings says what is wrong with policy once the writes are made, as far as they have to do with it: what is wrong with the
// written resources, and what is wrong with others only now. It may be right: what they name may come later. before is the Snapshot
// from before the writes; put are the resources that they put.
func warnings(before *mesh.Snapshot, ws []api.Write, put []mesh.Policy) []api.Problem {
	gone := map[mesh.PolicyKey]bool{}
	for _, w := range ws {
		if w.Delete != nil {
			gone[*w.Delete] = true
		}
	}
	written := map[mesh.PolicyKey]mesh.Policy{}
	for _, p := range put {
		p.Created = before.StoreIndex + 1 // younger than all there are
		written[p.PolicyKey] = p
	}
	var after []mesh.Policy
	for _, p := range before.Policies {
		if w, ok := written[p.PolicyKey]; ok {
			w.Created = p.Created
			written[p.PolicyKey] = w
		} else if !gone[p.PolicyKey] {
			after = append(after, p)
		}
	}
	after = slices.AppendSeq(after, maps.Values(written))
	known := map[policy.Finding]bool{}
	for _, f := range policy.Analyze(before.TrustDomain, before.Policies, before.Services) {
		known[f] = true
	}
	var out []api.Problem
	for _, f := range policy.Analyze(before.TrustDomain, after, before.Services) {
		if _, ours := written[f.Key]; f.Level != policy.Info && (ours || !known[f]) {
			out = append(out, api.Problem{Subject: f.Key.String(), Reason: f.Reason, Hint: f.Hint})
		}
	}
	return out
}
