package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/api/server"
	"github.com/meshagent/meshagent/agent/checks"
	"github.com/meshagent/meshagent/agent/control"
	"github.com/meshagent/meshagent/agent/registry"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/ca/leaf"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/raftstore"
)

// apiCodes gives every error that callers of the API may know its code. One without a line is internal: it is logged, not told.
var apiCodes = []struct {
	err  error
	code api.Code
}{
	{control.ErrInvalid, api.CodeInvalid},
	{control.ErrUnauthorized, api.CodeUnauthorized},
	{control.ErrLogin, api.CodeUnauthorized},
	{control.ErrForbidden, api.CodeForbidden},
	{control.ErrNotFound, api.CodeNotFound},
	{control.ErrConflict, api.CodeConflict},
	{control.ErrBusy, api.CodeBusy},
	{control.ErrNoServer, api.CodeNoServer},
	{raftstore.ErrNoLeader, api.CodeNoServer},
	{raftstore.ErrUnknownOutcome, api.CodeUnknownOutcome},
	{raftstore.ErrReadOnly, api.CodeReadOnly},
	{raftstore.ErrRefused, api.CodeForbidden},
	{ca.ErrRotating, api.CodeConflict},
	{ca.ErrGiven, api.CodeInvalid},
	{registry.ErrNotFound, api.CodeNotFound},
	{registry.ErrFile, api.CodeConflict},
	{checks.ErrNotFound, api.CodeNotFound},
	{checks.ErrNotTTL, api.CodeInvalid},
	{checks.ErrInvalid, api.CodeInvalid},
	{context.DeadlineExceeded, api.CodeTimeout},
}

// told turns an error into what callers of the API see of it.
func told(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*registry.InvalidError](err); ok {
		return api.NewError(api.CodeInvalid, e.Error(), "")
	}
	for _, c := range apiCodes {
		if errors.Is(err, c.err) {
			return api.NewError(c.code, err.Error(), "")
		}
	}
	return err
}

// serveAPI serves the HTTP API until ctx ends.
func (a *Agent) serveAPI(ctx context.Context) error {
	unix, err := server.ListenUnix(a.cfg.API.Socket)
	if err != nil {
		return fmt.Errorf("api.socket: %w", err)
	}
	tcp, err := a.listen("api.address", a.cfg.API.Address.String())
	if err != nil {
		unix.Close()
		return err
	}
	remote, afar, err := a.openRemote()
	if err != nil {
		unix.Close()
		tcp.Close()
		return err
	}
	a.apiTask()
	b := &backend{a}
	cfg := server.Config{APITokens: b, Roles: a.cfg.API.role, Remote: remote, ReadsNeedToken: a.cfg.API.ReadsNeedToken, Snapshots: a.catalog, Status: a.status, Ready: a.ready.Pending, Local: b, Mesh: b, Tokens: b, Keyring: b, CA: b, Leave: a.leaveMesh, SitsOut: a.proxy.SitsOut,
		DNS: a.askDNS, Capture: a.captured, Metrics: a.metrics.Handler(), Log: a.log}
	if a.service != nil {
		cfg.Store = b
	}
	if o := a.cfg.API.OIDC; o != nil {
		cfg.Login = &api.Login{Issuer: o.Issuer, ClientID: o.ClientID, Scopes: o.Scopes}
	}
	if a.audit != nil {
		cfg.Audit = a.audit.Append
	}
	return server.New(cfg).Run(ctx, unix, tcp, afar)
}

// askDNS answers as the host's DNS answers a caller of this host.
func (a *Agent) askDNS(ctx context.Context, name, qtype string) (api.Answer, error) {
	rcode, rows, err := a.dns.Query(ctx, name, qtype, a.cfg.DNS.Address.Addr())
	if err != nil {
		return api.Answer{}, api.NewError(api.CodeInvalid, err.Error(), "")
	}
	return api.Answer{Rcode: rcode, Rows: rows}, nil
}

// leaveMesh takes the host out of the mesh: the servers forget it, its membership file goes, and the agent ends.
func (a *Agent) leaveMesh(ctx context.Context) error {
	if err := (*a.control.Load()).Leave(ctx); err != nil {
		return told(err)
	}
	if err := a.dir.forget(); err != nil {
		return err
	}
	a.leaveOnce.Do(func() { close(a.leave) })
	return nil
}

// status says how the agent stands.
func (a *Agent) status() api.Status {
	s := a.catalog.Load()
	pending := a.ready.Pending()
	st := api.Status{Version: a.version, TrustDomain: a.node.TrustDomain(), Node: a.id, Name: a.cfg.Name, Address: a.addr.String(),
		Server: !a.server.IsZero(), Started: a.started, PID: os.Getpid(), Ready: len(pending) == 0, Pending: pending, SnapshotVersion: s.Version, StoreIndex: s.StoreIndex,
		Members: map[string]int{}, Services: len(s.Services), Policies: len(s.Policies), Certificates: []api.Certificate{}, Roots: []api.Root{},
		Problems: a.problems()}
	for _, n := range s.Nodes {
		st.Members[n.Status.String()]++
	}
	for _, it := range a.leaves.Health() {
		c := api.Certificate{Identity: it.Identity, NotAfter: it.NotAfter}
		if it.Err != nil {
			c.Error = it.Err.Error()
		}
		st.Certificates = append(st.Certificates, c)
	}
	for _, r := range a.leaves.Bundle().Roots {
		st.Roots = append(st.Roots, rootOf(r))
	}
	if a.store != nil {
		r := a.store.Status()
		st.Store = &api.Store{State: r.State, Leader: r.Leader, Term: r.Term, Commit: r.Commit, Applied: r.Applied, ReadOnly: r.ReadOnly, Peers: []api.Peer{}}
		for _, p := range r.Peers {
			st.Store.Peers = append(st.Store.Peers, api.Peer(p))
		}
	}
	return st
}

// certAlarm is how near its end a certificate is a problem: renewal at half of 60 h has failed for half a day then.
const certAlarm = 12 * time.Hour

// lostAlarm is how long servers may be silent before that is a problem: an election takes less.
const lostAlarm = 10 * time.Second

// problems lists what an operator should look at.
func (a *Agent) problems() []api.Problem {
	out := []api.Problem{}
	if l := a.lost.Load(); l != nil && time.Since(l.since) > lostAlarm {
		out = append(out, api.Problem{Subject: "servers", Reason: fmt.Sprintf("none has answered since %s: %v", l.since.UTC().Format(time.RFC3339), l.err),
			Hint: "names and calls go on; changes of policy and new certificates wait until one is back"})
	}
	out = append(out, a.keyProblems()...)
	out = append(out, a.tokenProblems()...)
	out = append(out, a.certificateProblems()...)
	out = append(out, a.remoteProblems(time.Now())...)
	if a.store != nil && a.store.Status().Leader.IsZero() {
		out = append(out, api.Problem{Subject: "servers", Reason: raftstore.ErrNoLeader.Error(), Hint: "start the other servers; changes of policy wait"})
	}
	for _, p := range a.registry.State().Problems {
		out = append(out, api.Problem{Subject: "services", Reason: p})
	}
	if m, ok := a.catalog.Load().Model.(*policy.Model); ok {
		for _, p := range m.Problems() {
			out = append(out, api.Problem{Subject: p.Key.String(), Reason: p.Reason})
		}
	}
	out = append(out, leafProblems("certificate", a.leaves.Health())...)
	return append(out, leafProblems("certificate for applications", a.appLeaves.Health())...)
}

// leafProblems tells which certificates are missing or near their end.
func leafProblems(what string, all []leaf.Item) (out []api.Problem) {
	for _, it := range all {
		switch left := time.Until(it.NotAfter); {
		case it.Err != nil && it.NotAfter.IsZero():
			out = append(out, api.Problem{Subject: it.Identity.String(), Reason: "no " + what + ": " + it.Err.Error()})
		case !it.NotAfter.IsZero() && left < certAlarm:
			out = append(out, api.Problem{Subject: it.Identity.String(), Reason: "the " + what + " ends at " + it.NotAfter.UTC().Format(time.RFC3339) + " and was not renewed",
				Hint: "is a server reachable, and this host's clock right?"})
		}
	}
	return out
}

// backend is what the API stands on.
type backend struct{ *Agent }

func (b *backend) operator(o server.Operator) control.Operator {
	out := control.Operator{Token: o.Token}
	if b.service != nil { // who is at the socket of a server may change the mesh as his role says
		out.Local, out.User = o.Local, o.User
	}
	return out
}

func (b *backend) servers() control.API { return *b.control.Load() }

// local describes a service of this host.
func (b *backend) local(r *registry.Registered, verdicts map[checks.Key]checks.Verdict) api.Local {
	in := r.Instance(b.id)
	l := api.Local{Service: in.Service, ID: in.ID, Address: in.Dial().String(), Source: r.Source, Health: in.Health}
	if v, ok := verdicts[checks.Key{Service: in.Service, ID: in.ID}]; ok {
		l.Health = v.Health
		for _, c := range v.Checks {
			l.Checks = append(l.Checks, api.Check{Name: c.Name, Health: c.Health, Output: c.Output, Since: c.Since})
		}
	}
	if r.Maintenance {
		l.Health, l.Maintenance = mesh.Maintenance, r.Reason
	}
	return l
}

func (b *backend) List() api.Locals {
	st := b.registry.State()
	verdicts, _ := b.checks.Load()
	out := api.Locals{Services: []api.Local{}, Problems: []api.Problem{}}
	for i := range st.Services {
		out.Services = append(out.Services, b.local(&st.Services[i], verdicts))
	}
	for _, p := range st.Problems {
		out.Problems = append(out.Problems, api.Problem{Subject: "services", Reason: p})
	}
	return out
}

func (b *backend) Register(ctx context.Context, src []byte) (api.Local, error) {
	r, err := b.registry.Register(ctx, src)
	if err != nil {
		return api.Local{}, told(err)
	}
	return b.local(&r, nil), nil
}

func (b *backend) Deregister(_ context.Context, namespace, id string) error {
	return told(b.registry.Deregister(namespace, id))
}

func (b *backend) SetMaintenance(_ context.Context, namespace, id string, m api.Maintenance) error {
	return told(b.registry.SetMaintenance(namespace, id, m.On, m.Reason))
}

func (b *backend) UpdateTTL(_ context.Context, namespace, id, check string, t api.TTL) error {
	for _, r := range b.registry.State().Services {
		if s := r.Service(); s.Namespace() == namespace && r.ID == id {
			return told(b.checks.Update(checks.Key{Service: s, ID: id}, check, t.Health, t.Output))
		}
	}
	return told(fmt.Errorf("%s/%s: %w", namespace, id, registry.ErrNotFound))
}

func (b *backend) Authorize(ctx context.Context, o server.Operator, acts ...access.Action) (api.Whoami, error) {
	g, err := b.servers().Authorize(ctx, b.operator(o), acts...)
	return api.Whoami{Name: g.Name, Token: g.ID, Role: string(g.Role), Scopes: g.Scopes, Ends: g.Ends}, told(err)
}

func (b *backend) CreateAPIToken(ctx context.Context, o server.Operator, s api.APITokenSpec) (api.NewAPIToken, error) {
	ttl, err := time.ParseDuration(cmp.Or(s.TTL, "0s"))
	if err != nil {
		return api.NewAPIToken{}, api.NewError(api.CodeInvalid, "ttl: "+err.Error(), "")
	}
	e, secret, err := b.servers().CreateAPIToken(ctx, b.operator(o), control.APITokenSpec{Name: s.Name, Role: access.Role(s.Role), Scopes: s.Scopes, TTL: ttl})
	return api.NewAPIToken{APIToken: apiToken(e), Token: secret}, told(err)
}

func apiToken(e control.APITokenEntry) api.APIToken {
	return api.APIToken{ID: e.ID, Name: e.Name, Role: string(e.Role), Scopes: e.Scopes, Created: e.Created, Expires: e.Expires, By: e.By}
}

func (b *backend) APITokens(ctx context.Context, o server.Operator) (api.APITokens, error) {
	ts, err := b.servers().APITokens(ctx, b.operator(o))
	out := api.APITokens{Tokens: []api.APIToken{}}
	for _, t := range ts {
		out.Tokens = append(out.Tokens, apiToken(t))
	}
	return out, told(err)
}

func (b *backend) DeleteAPIToken(ctx context.Context, o server.Operator, id string) error {
	return told(b.servers().DeleteAPIToken(ctx, b.operator(o), id))
}

func (b *backend) Apply(ctx context.Context, o server.Operator, in api.Apply) (api.Applied, error) {
	writes := make([]control.Write, 0, len(in.Writes))
	for _, w := range in.Writes {
		writes = append(writes, control.Write{Source: []byte(w.Source), Delete: w.Delete, Index: w.Index})
	}
	outs, index, err := b.servers().Apply(ctx, b.operator(o), writes, in.DryRun, in.RequestID)
	if err != nil {
		return api.Applied{}, told(err)
	}
	res := api.Applied{Index: index, Outcomes: []api.Outcome{}, Warnings: []api.Problem{}}
	for _, out := range outs {
		res.Outcomes = append(res.Outcomes, api.Outcome(out))
	}
	return res, nil
}

func (b *backend) Policies(ctx context.Context) (api.Policies, error) {
	ps, index, err := b.servers().Policies(ctx, raftstore.Linearizable)
	if err != nil {
		return api.Policies{}, told(err)
	}
	out := api.Policies{Index: index, Policies: make([]api.Policy, 0, len(ps))}
	for _, p := range ps {
		out.Policies = append(out.Policies, api.Policy{PolicyKey: p.PolicyKey, APIVersion: p.APIVersion, Source: string(p.Source), Created: p.Created, Modified: p.Modified})
	}
	return out, nil
}

func (b *backend) CreateToken(ctx context.Context, o server.Operator, s api.TokenSpec) (api.NewToken, error) {
	ttl, err := time.ParseDuration(cmp.Or(s.TTL, "0s"))
	if err != nil {
		return api.NewToken{}, api.NewError(api.CodeInvalid, "ttl: "+err.Error(), "")
	}
	t, err := b.servers().CreateToken(ctx, b.operator(o), control.TokenSpec{Server: s.Server, TTL: ttl, Uses: s.Uses, Services: s.Services})
	return api.NewToken{Token: t}, told(err)
}

func (b *backend) Tokens(ctx context.Context, o server.Operator) (api.Tokens, error) {
	ts, err := b.servers().Tokens(ctx, b.operator(o))
	out := api.Tokens{Tokens: []api.Token{}}
	for _, t := range ts {
		out.Tokens = append(out.Tokens, api.Token{ID: t.ID, Role: string(t.Role), Uses: t.Uses, Expires: t.Expires, Services: slices.Clone(t.Services)})
	}
	return out, told(err)
}

func (b *backend) DeleteToken(ctx context.Context, o server.Operator, id string) error {
	return told(b.servers().DeleteToken(ctx, b.operator(o), id))
}

func (b *backend) Backup(ctx context.Context, o server.Operator, w io.Writer) error {
	return told(b.service.Backup(ctx, b.operator(o), w))
}

func (b *backend) Restore(ctx context.Context, o server.Operator, r io.Reader) error {
	return told(b.service.Restore(ctx, b.operator(o), r))
}
