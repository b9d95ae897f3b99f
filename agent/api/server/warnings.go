package server

import (
	"fmt"
	"maps"
	"slices"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// warnings says what is wrong with policy once the writes are made, as far as they have to do with it: what is wrong with the
// written resources, and what is wrong with others only now. before is the Snapshot from before the writes; put are the resources
// that they put.
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
	known := map[policy.Problem]bool{}
	for _, p := range policy.Check(before.Policies) {
		known[p] = true
	}
	var out []api.Problem
	told := map[mesh.PolicyKey]bool{}
	for _, p := range policy.Check(after) {
		if _, ours := written[p.Key]; ours || !known[p] {
			out = append(out, api.Problem{Subject: p.Key.String(), Reason: p.Reason})
			told[p.Key] = true
		}
	}
	u := unused{snap: before, written: written, governs: told}
	u.look(policy.Compile(before.TrustDomain, 0, after))
	return append(out, u.problems...)
}

// unused looks for written resources that no call can meet now. They may be right: what they name may come later.
type unused struct {
	snap     *mesh.Snapshot
	written  map[mesh.PolicyKey]mesh.Policy
	governs  map[mesh.PolicyKey]bool // written resources of which something is known
	problems []api.Problem
}

func (u *unused) look(m *policy.Model) {
	for _, name := range slices.SortedFunc(maps.Keys(u.snap.Services), mesh.ServiceName.Compare) {
		sp := m.Service(name)
		u.subsets(u.snap.Services[name], sp.Destination)
		for r := range sp.AllHTTP() {
			u.destinations(r.Policy, r.Action.Destinations)
		}
		for r := range sp.AllTCP() {
			u.destinations(r.Policy, r.Destinations)
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(u.written), mesh.PolicyKey.Compare) {
		if k.Kind != "AuthorizationPolicy" && k.Kind != "ReferenceGrant" && !u.governs[k] {
			u.add(k, "no host runs a service that it names", "is the name right? GET "+prefix+"/services lists what there is")
		}
	}
}

func (u *unused) add(k mesh.PolicyKey, reason, hint string) {
	p := api.Problem{Subject: k.String(), Reason: reason, Hint: hint}
	if !slices.Contains(u.problems, p) {
		u.problems = append(u.problems, p)
	}
}

func (u *unused) destinations(k mesh.PolicyKey, ds []policy.Split) {
	if _, ok := u.written[k]; !ok {
		return
	}
	u.governs[k] = true
	for _, d := range ds {
		if !d.Service.IsZero() && u.snap.Services[d.Service] == nil {
			u.add(k, fmt.Sprintf("routes to %s, which no host runs", d.Service), "")
		}
	}
}

func (u *unused) subsets(svc *mesh.Service, d *policy.Destination) {
	if _, ok := u.written[d.Policy]; !ok {
		return
	}
	u.governs[d.Policy] = true
	for _, name := range sortedKeys(d.Subsets) {
		labels := d.Subsets[name].Labels
		if !slices.ContainsFunc(svc.Instances, func(i *mesh.Instance) bool { return i.Labels.Match(labels) }) {
			u.add(d.Policy, fmt.Sprintf("no instance of %s has the labels of subset %q", svc.Name, name), "")
		}
	}
}
