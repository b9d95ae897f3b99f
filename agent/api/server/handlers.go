package server

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/mesh"
)

// list makes an empty list [] and not null in JSON.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

func (s *Server) getMetrics(c *call) (any, error) {
	if s.cfg.Metrics == nil {
		return nil, api.NewError(api.CodeNotFound, "this agent keeps no metrics", "")
	}
	s.cfg.Metrics.ServeHTTP(c.w, c.r)
	return sent{}, nil
}

func (s *Server) getOpenAPI(*call) (any, error) { return text{yamlType, api.OpenAPI()}, nil }

func (s *Server) getReady(*call) (any, error) {
	r := api.Ready{Pending: s.cfg.Ready()}
	if r.Ready = len(r.Pending) == 0; !r.Ready {
		return status{http.StatusServiceUnavailable, r}, nil
	}
	return r, nil
}

func (s *Server) getStatus(*call) (any, error) {
	st := s.cfg.Status()
	st.Certificates, st.Roots, st.Problems = list(st.Certificates), list(st.Roots), list(st.Problems)
	if st.Members == nil {
		st.Members = map[string]int{}
	}
	if st.Store != nil {
		sc := *st.Store
		sc.Peers = list(sc.Peers)
		st.Store = &sc
	}
	return st, nil
}

// snapshot returns the Snapshot that a call asks for, and tells its version. With ?after it waits for a newer one, and takes the
// one there is when its time is up or the agent ends. A version from the future is of an earlier run of the agent: no waiting.
func (s *Server) snapshot(c *call) (*mesh.Snapshot, error) {
	after, poll, err := c.number("after")
	if err != nil {
		return nil, err
	}
	if !poll && c.query.Has("wait") {
		return nil, invalid("", "query: wait needs after")
	}
	snap := s.cfg.Snapshots.Load()
	if poll && after == snap.Version {
		wait, err := c.wait()
		if err != nil {
			return nil, err
		}
		if snap, err = s.next(c, after, wait); err != nil {
			return nil, err
		}
	}
	c.w.Header().Set(api.VersionHeader, strconv.FormatUint(snap.Version, 10))
	return snap, nil
}

// next waits for a Snapshot newer than after; when the time is up or the agent ends it returns the current one. Its error is that
// of a caller who went away.
func (s *Server) next(c *call, after uint64, wait time.Duration) (*mesh.Snapshot, error) {
	ctx, cancel := context.WithTimeout(c.ctx, wait)
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	snap, err := s.cfg.Snapshots.Watch(ctx, after)
	if err != nil {
		return s.cfg.Snapshots.Load(), c.ctx.Err()
	}
	return snap, nil
}

func (s *Server) getMembers(c *call) (any, error) {
	snap, err := s.snapshot(c)
	if err != nil {
		return nil, err
	}
	m := api.Members{Members: []mesh.Node{}}
	for _, n := range snap.Nodes {
		m.Members = append(m.Members, *n)
	}
	slices.SortFunc(m.Members, func(a, b mesh.Node) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return a.ID.Compare(b.ID)
	})
	return m, nil
}

func (s *Server) getServices(c *call) (any, error) {
	snap, err := s.snapshot(c)
	if err != nil {
		return nil, err
	}
	l := api.Services{Services: []api.Service{}}
	for _, svc := range snap.Services {
		l.Services = append(l.Services, service(snap, svc))
	}
	slices.SortFunc(l.Services, func(a, b api.Service) int { return a.Name.Compare(b.Name) })
	return l, nil
}

func service(snap *mesh.Snapshot, svc *mesh.Service) api.Service {
	out := api.Service{Name: svc.Name, Ports: list(svc.Ports()), Total: len(svc.Instances)}
	if len(out.Ports) > 0 {
		out.Protocol = svc.Protocol(out.Ports[0])
	}
	for _, i := range svc.Instances {
		if snap.Usable(i) {
			out.Usable++
		}
	}
	return out
}

func (s *Server) getService(c *call) (any, error) {
	name, err := mesh.NewServiceName(c.vars["namespace"], c.vars["name"])
	if c.vars["namespace"] == api.External && strings.Contains(c.vars["name"], ".") {
		name, err = mesh.ParseExternal(c.vars["name"])
	}
	if err != nil {
		return nil, invalid("", "%v", err)
	}
	snap, err := s.snapshot(c)
	if err != nil {
		return nil, err
	}
	svc := snap.Services[name]
	if svc == nil {
		return nil, api.NewError(api.CodeNotFound, "no host runs a service "+name.String(), "GET "+prefix+"/services lists what there is")
	}
	out := service(snap, svc)
	for _, i := range svc.Instances {
		in := api.Instance{Instance: *i, Usable: snap.Usable(i), NodeStatus: mesh.Failed}
		if n := snap.Node(i.Node); n != nil {
			in.NodeName, in.NodeAddr, in.NodeStatus = n.Name, n.Addr.String(), n.Status
		} else if i.Outside {
			in.NodeStatus = mesh.Alive // as far as anybody knows
		}
		if s.cfg.SitsOut != nil {
			if d := s.cfg.SitsOut(i); d > 0 {
				in.SitsOut = d.Round(100 * time.Millisecond).String()
			}
		}
		out.Instances = append(out.Instances, in)
	}
	return out, nil
}

func (s *Server) getLocal(*call) (any, error) {
	l := s.cfg.Local.List()
	l.Services, l.Problems = list(l.Services), list(l.Problems)
	return l, nil
}

func (s *Server) putLocal(c *call) (any, error) {
	b, _, err := c.bytes(jsonType, yamlType)
	if err != nil {
		return nil, err
	}
	return s.cfg.Local.Register(c.ctx, b)
}

func (s *Server) deleteLocal(c *call) (any, error) {
	return nil, s.cfg.Local.Deregister(c.ctx, c.vars["namespace"], c.vars["id"])
}

func (s *Server) putMaintenance(c *call) (any, error) {
	var m api.Maintenance
	if err := c.json(&m); err != nil {
		return nil, err
	}
	return nil, s.cfg.Local.SetMaintenance(c.ctx, c.vars["namespace"], c.vars["id"], m)
}

func (s *Server) putCheck(c *call) (any, error) {
	var t api.TTL
	if err := c.json(&t); err != nil {
		return nil, err
	}
	if t.Health == mesh.Maintenance {
		return nil, invalid("use passing, warning or critical", "body: health: maintenance is no word of an application")
	}
	return nil, s.cfg.Local.UpdateTTL(c.ctx, c.vars["namespace"], c.vars["id"], c.vars["check"], t)
}

func (s *Server) getTokens(c *call) (any, error) {
	t, err := s.cfg.Tokens.Tokens(c.ctx, c.op)
	t.Tokens = list(t.Tokens)
	return t, err
}

func (s *Server) postTokens(c *call) (any, error) {
	var spec api.TokenSpec
	if err := c.json(&spec); err != nil {
		return nil, err
	}
	if spec.TTL != "" {
		if d, err := time.ParseDuration(spec.TTL); err != nil || d < time.Second || d > 720*time.Hour {
			return nil, invalid("write 15m", "body: ttl: %s is not a time from 1s to 720h", quote(spec.TTL))
		}
	}
	if spec.Uses < 0 || spec.Uses > 10000 {
		return nil, invalid("", "body: uses: %d is not from 1 to 10000", spec.Uses)
	}
	return s.cfg.Tokens.CreateToken(c.ctx, c.op, spec)
}

func (s *Server) deleteToken(c *call) (any, error) {
	return nil, s.cfg.Tokens.DeleteToken(c.ctx, c.op, c.vars["id"])
}

func (s *Server) getAPITokens(c *call) (any, error) {
	t, err := s.cfg.APITokens.APITokens(c.ctx, c.op)
	t.Tokens = list(t.Tokens)
	return t, err
}

func (s *Server) postAPITokens(c *call) (any, error) {
	var spec api.APITokenSpec
	if err := c.json(&spec); err != nil {
		return nil, err
	}
	if spec.TTL != "" {
		if _, err := time.ParseDuration(spec.TTL); err != nil {
			return nil, invalid("write 720h", "body: ttl: %s is not a time", quote(spec.TTL))
		}
	}
	return s.cfg.APITokens.CreateAPIToken(c.ctx, c.op, spec)
}

func (s *Server) deleteAPIToken(c *call) (any, error) {
	return nil, s.cfg.APITokens.DeleteAPIToken(c.ctx, c.op, c.vars["id"])
}

func (*Server) getWhoami(c *call) (any, error) {
	c.who.Scopes = list(c.who.Scopes)
	return c.who, nil
}

func (s *Server) getLogin(*call) (any, error) {
	if s.cfg.Login == nil {
		return nil, api.NewError(api.CodeNotFound, "nobody logs in here", "api.oidc in the configuration of the agent says where; or use an API token")
	}
	return s.cfg.Login, nil
}

func (s *Server) getDNS(c *call) (any, error) {
	name, qtype := c.query.Get("name"), strings.ToUpper(c.query.Get("type"))
	if name == "" || len(name) > 255 {
		return nil, invalid("give ?name=web.service.mesh", "query: name=%s is not a name of 1 to 255 characters", quote(name))
	}
	if qtype == "" {
		qtype = "A"
	}
	a, err := s.cfg.DNS(c.ctx, name, qtype)
	a.Rows = list(a.Rows)
	return a, err
}

func (s *Server) postLeave(c *call) (any, error) { return nil, s.cfg.Leave(c.ctx) }

var errNotServer = api.NewError(api.CodeNotServer, "this host is a client: it keeps no store", "call a server: GET "+prefix+"/members says which hosts are")

func (s *Server) getBackup(c *call) (any, error) {
	if s.cfg.Store == nil {
		return nil, errNotServer
	}
	w := &lateWriter{c.w, false}
	if err := s.cfg.Store.Backup(c.ctx, c.op, w); err != nil {
		if !w.begun {
			return nil, err
		}
		s.cfg.Log.Error("api call failed", "method", c.r.Method, "path", c.r.URL.Path, "err", err)
		panic(http.ErrAbortHandler) // the caller must see that the answer is cut
	}
	return sent{}, nil
}

// lateWriter sends the head of an answer with its first byte: until then an error can be told.
type lateWriter struct {
	w     http.ResponseWriter
	begun bool
}

func (l *lateWriter) Write(b []byte) (int, error) {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", "application/octet-stream")
	}
	return l.w.Write(b)
}

func (s *Server) putRestore(c *call) (any, error) {
	if s.cfg.Store == nil {
		return nil, errNotServer
	}
	return nil, s.cfg.Store.Restore(c.ctx, c.op, io.Reader(c.r.Body))
}

func (s *Server) getCapture(c *call) (any, error) { return s.cfg.Capture(c.ctx) }
