package apitest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/api/server"
	"github.com/meshagent/meshagent/internal/strictyaml"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

type policies struct{ f *Fake }

func (p policies) Authorize(_ context.Context, o server.Operator, acts ...access.Action) (api.Whoami, error) {
	if p.f.Issuer != nil {
		if g := p.f.Issuer.gave(o.Token); g.to != "" {
			who := api.Whoami{Name: g.to + "@" + p.f.Issuer.URL, Ends: g.ends}
			if g.to == "alice" {
				who.Role, who.Scopes = string(access.Operator), access.Operator.Scopes().Strings()
			}
			return who, nil
		}
	}
	return api.Whoami{Name: "admin", Token: "admin", Role: string(access.Admin), Scopes: access.Admin.Scopes().Strings()}, p.f.authorize(o)
}

func (p policies) Policies(context.Context) (out api.Policies, err error) {
	s := p.f.read()
	if s.Fail != nil {
		return out, s.Fail
	}
	out.Index = s.Index
	for _, x := range s.Policies {
		out.Policies = append(out.Policies, api.Policy{PolicyKey: x.PolicyKey, APIVersion: x.APIVersion, Source: string(x.Source), Created: x.Created, Modified: x.Modified})
	}
	return out, nil
}

func (p policies) Apply(_ context.Context, o server.Operator, a api.Apply) (out api.Applied, err error) {
	err = p.f.change(o, func(s *State) error {
		if done, ok := s.results[a.RequestID]; ok {
			out = done
			return nil
		}
		have := slices.Clone(s.Policies)
		index, changed := s.Index+1, false
		for _, w := range a.Writes {
			o, err := write(&have, w, index)
			if err != nil {
				return err
			}
			changed = changed || o.What != "unchanged"
			out.Outcomes = append(out.Outcomes, o)
		}
		if out.Index = s.Index; a.DryRun || !changed {
			return nil
		}
		slices.SortFunc(have, func(a, b mesh.Policy) int { return a.PolicyKey.Compare(b.PolicyKey) })
		s.Policies, s.Index, out.Index = have, index, index
		if a.RequestID != "" {
			if s.results == nil {
				s.results = map[string]api.Applied{}
			}
			s.results[a.RequestID] = out
		}
		return nil
	})
	return out, err
}

// write makes one change to have.
func write(have *[]mesh.Policy, w api.Write, index uint64) (out api.Outcome, err error) {
	var p mesh.Policy
	if w.Delete != nil {
		p.PolicyKey = *w.Delete
	} else {
		ps, err := policy.Parse("", []byte(w.Source))
		if err != nil || len(ps) != 1 {
			return out, api.NewError(api.CodeInvalid, fmt.Sprintf("%d resources: %v", len(ps), err), "")
		}
		p = ps[0]
	}
	i := slices.IndexFunc(*have, func(x mesh.Policy) bool { return x.PolicyKey == p.PolicyKey })
	var old mesh.Policy
	if i >= 0 {
		old = (*have)[i]
	}
	out.Key = p.PolicyKey
	switch {
	case w.Index != nil && *w.Index != old.Modified:
		return out, api.NewError(api.CodeConflict, fmt.Sprintf("%s is at index %d, not %d", p.PolicyKey, old.Modified, *w.Index), "read it again, then decide")
	case w.Delete != nil && i < 0:
		return out, api.NewError(api.CodeNotFound, p.PolicyKey.String()+": no such policy", "")
	case w.Delete != nil:
		out.What = "deleted"
		*have = slices.Delete(*have, i, i+1)
	case i < 0:
		out.What, p.Created, p.Modified = "created", index, index
		*have = append(*have, p)
	case old.APIVersion == p.APIVersion && bytes.Equal(old.Source, p.Source):
		out.What = "unchanged"
	default:
		out.What, p.Created, p.Modified = "updated", old.Created, index
		(*have)[i] = p
	}
	return out, nil
}

type locals struct{ f *Fake }

func (l locals) List() api.Locals {
	s := l.f.read()
	return api.Locals{Services: s.Locals, Problems: s.Problems}
}

// Register reads of a definition what names the service, and takes the rest as it is: checking it is agent/registry's.
func (l locals) Register(_ context.Context, src []byte) (out api.Local, err error) {
	docs, err := strictyaml.Split("definition", src)
	if err == nil && len(docs) != 1 {
		err = errors.New("definition: one is needed")
	}
	if err != nil {
		return out, api.NewError(api.CodeInvalid, err.Error(), "")
	}
	get := func(key, def string) string {
		if n := docs[0].Root.Get(key); n != nil {
			return n.Text
		}
		return def
	}
	name, err := mesh.NewServiceName(get("namespace", ""), get("name", ""))
	if err != nil {
		return out, api.NewError(api.CodeInvalid, "definition: "+err.Error(), "")
	}
	out = api.Local{Service: name, ID: get("id", name.Name()), Address: net.JoinHostPort(get("address", "127.0.0.1"), get("port", "0")), Source: "api"}
	l.f.Update(func(s *State) {
		s.Locals = slices.DeleteFunc(slices.Clone(s.Locals), func(x api.Local) bool { return x.Service == out.Service && x.ID == out.ID })
		s.Locals = append(s.Locals, out)
	})
	return out, nil
}

// edit changes one service; nil removes it.
func (l locals) edit(namespace, id string, change func(*api.Local) error) (err error) {
	l.f.Update(func(s *State) {
		i := slices.IndexFunc(s.Locals, func(x api.Local) bool { return x.Service.Namespace() == namespace && x.ID == id })
		if i < 0 {
			err = api.NewError(api.CodeNotFound, "no service "+namespace+"/"+id+" on this host", "")
			return
		}
		s.Locals = slices.Clone(s.Locals)
		if change == nil {
			s.Locals = slices.Delete(s.Locals, i, i+1)
			return
		}
		s.Locals[i].Checks = slices.Clone(s.Locals[i].Checks)
		err = change(&s.Locals[i])
	})
	return err
}

func (l locals) Deregister(_ context.Context, namespace, id string) error {
	for _, x := range l.f.read().Locals {
		if x.Service.Namespace() == namespace && x.ID == id && strings.HasPrefix(x.Source, "file ") {
			return api.NewError(api.CodeConflict, id+" is defined in a "+x.Source, "change it there")
		}
	}
	return l.edit(namespace, id, nil)
}

func (l locals) SetMaintenance(_ context.Context, namespace, id string, m api.Maintenance) error {
	return l.edit(namespace, id, func(x *api.Local) error {
		x.Health, x.Maintenance = mesh.Passing, ""
		if m.On {
			x.Health, x.Maintenance = mesh.Maintenance, m.Reason
		}
		return nil
	})
}

func (l locals) UpdateTTL(_ context.Context, namespace, id, check string, t api.TTL) error {
	return l.edit(namespace, id, func(x *api.Local) error {
		i := slices.IndexFunc(x.Checks, func(k api.Check) bool { return k.Name == check })
		if i < 0 {
			return api.NewError(api.CodeNotFound, "no check "+check+" of "+id, "")
		}
		x.Checks[i] = api.Check{Name: check, Health: t.Health, Output: t.Output, Since: time.Now()}
		return nil
	})
}
