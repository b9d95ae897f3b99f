package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/audit"
)

// call is one request on its way through a route.
type call struct {
	ctx   context.Context // ends with the caller's patience or the route's time
	w     http.ResponseWriter
	r     *http.Request
	op    Operator
	who   api.Whoami        // who that is; empty where nobody asked
	vars  map[string]string // of the path
	query url.Values        // each parameter once
}

// way is how a call came here.
type way int

const (
	atSocket way = iota // of this host
	atPort              // loopback
	fromAfar
)

// Handler returns the handler of one listener of this host; local is that of the unix socket.
func (s *Server) Handler(local bool) http.Handler {
	if local {
		return s.handler(atSocket)
	}
	return s.handler(atPort)
}

func (s *Server) handler(by way) http.Handler {
	slots := make(chan struct{}, maxCalls)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			s.fail(w, r, busy("too many calls at a time"))
			return
		}
		if err := s.serve(w, r, by); err != nil {
			s.fail(w, r, err)
		}
	})
}

func busy(detail string) error {
	return api.NewError(api.CodeBusy, detail, "wait a second, then repeat the call")
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, by way) error {
	from := ""
	if by == fromAfar {
		if from = place(r.RemoteAddr); !s.far.calls.take(from, time.Now()) {
			return busy("too many calls from " + from)
		}
	}
	if err := s.fromHere(r, by); err != nil {
		return err
	}
	rt, vars, allow := find(r.Method, r.URL)
	if len(allow) > 0 {
		w.Header().Set("Allow", strings.Join(allow, ", "))
		return api.NewError(api.CodeNotAllowed, quote(r.URL.Path)+" does not take "+quote(r.Method), "it takes "+strings.Join(allow, ", "))
	}
	if rt == nil {
		return api.NewError(api.CodeNotFound, "there is nothing at "+quote(r.URL.Path), "what there is says "+prefix+"/openapi.yaml")
	}
	c := &call{w: w, r: r, vars: vars}
	act := rt.action(vars)
	var err error
	if c.op, err = s.operator(r, by); err != nil {
		return s.refuse(c, by, act, err)
	}
	if c.query, err = readQuery(r.URL.RawQuery, rt.query); err != nil {
		return err
	}
	d := callTime
	if rt.time > 0 {
		d = rt.time
	}
	if c.query.Has("wait") || c.query.Has("after") {
		wait, err := c.wait()
		if err != nil {
			return err
		}
		d += wait
	}
	ctx, cancel := context.WithTimeout(r.Context(), d)
	defer cancel()
	c.ctx = ctx
	rc := http.NewResponseController(w) // a recorder of a test has no deadlines
	_ = rc.SetReadDeadline(time.Now().Add(d))
	_ = rc.SetWriteDeadline(time.Now().Add(d + answerTime))
	if c.who, err = s.authorize(ctx, c.op, by, rt, act); err != nil {
		return s.refuse(c, by, act, err)
	}
	if by == fromAfar && !rt.stranger && !s.far.calls.take("caller "+c.who.Name+" "+c.who.Token, time.Now()) {
		return busy("too many calls of " + quote(c.who.Name))
	}
	if r.ContentLength > rt.body {
		return tooLarge(rt.body)
	}
	r.Body = http.MaxBytesReader(w, r.Body, rt.body)
	done, err := s.audit(c, rt, act)
	if err != nil {
		return err
	}
	answer, err := rt.do(s, c)
	if err := done(err); err != nil { // before anybody hears of it
		return err
	}
	if err != nil {
		return err
	}
	return write(w, answer)
}

// audit records that a change, or a read of secrets, is asked for. done records what became of it.
func (s *Server) audit(c *call, rt *route, act access.Action) (done func(error) error, err error) {
	if !rt.auth || rt.often || s.cfg.Audit == nil || act.Verb == access.Read && act.Resource != "store" {
		return func(error) error { return nil }, nil
	}
	e := audit.Event{What: "begin", Who: c.who.Name, Token: c.who.Token, Role: c.who.Role, From: c.op.From, Call: c.r.Method + " " + c.r.URL.RequestURI(),
		Actions: []string{act.String()}}
	if e.Of, err = s.cfg.Audit(e); err != nil {
		return nil, fmt.Errorf("nothing was done: %w", err)
	}
	return func(err error) error {
		e := audit.Event{What: "end", Of: e.Of, Result: "ok"}
		if err != nil {
			e.Result = string(api.CodeInternal)
			if told, ok := errorOf(err); ok {
				e.Result = string(told.Code)
			}
		}
		if _, err := s.cfg.Audit(e); err != nil {
			return fmt.Errorf("what was asked for may have been done: %w", err)
		}
		return nil
	}, nil
}

func errorOf(err error) (*api.Error, bool) { return errors.AsType[*api.Error](err) }

// refuse returns err, once it is recorded where that has to be.
func (s *Server) refuse(c *call, by way, act access.Action, err error) error {
	if by == fromAfar {
		if unrecorded := s.refused(c, act, err); unrecorded != nil {
			return unrecorded
		}
	}
	return err
}

// fromHere refuses what a web page can make a browser send. Over TCP the Host must be of this machine, so that no name of an
// attacker's that resolves to it leads here.
func (s *Server) fromHere(r *http.Request, by way) error {
	if _, ok := r.Header["Origin"]; ok {
		return api.NewError(api.CodeForbidden, "a request with an Origin header is of a web page: none may call this API", "")
	}
	switch by {
	case atSocket:
		return nil
	case fromAfar:
		return s.cfg.Remote.forHere(r)
	}
	host := hostOf(r.Host)
	if ip := net.ParseIP(host); strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback() {
		return nil
	}
	return api.NewError(api.CodeForbidden, "Host is not of this machine", "call http://127.0.0.1 or http://localhost")
}

// hostOf returns what Host has without its port.
func hostOf(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	} else if h, ok := strings.CutPrefix(host, "["); ok {
		return strings.TrimSuffix(h, "]")
	}
	return host
}

// operator reads who asks.
func (s *Server) operator(r *http.Request, by way) (Operator, error) {
	o := Operator{From: "port"}
	switch by {
	case atSocket:
		o.User, o.Local, o.From = "socket", access.Admin, "socket"
		if s.cfg.Roles != nil {
			p, known := r.Context().Value(peerKey{}).(peer)
			if o.User, o.Local = s.cfg.Roles(p.uid, p.gid, known); o.Local == "" {
				return o, api.NewError(api.CodeForbidden, "nobody knows what "+quote(o.User)+" may do", "")
			}
		}
	case fromAfar:
		o.From, o.Place = "remote "+r.RemoteAddr, place(r.RemoteAddr)
		if err := s.cfg.Remote.certificate(r, &o); err != nil {
			return o, err
		}
	}
	switch h := r.Header["Authorization"]; {
	case len(h) == 0:
		return o, nil
	case len(h) > 1:
		return o, api.NewError(api.CodeInvalid, "header Authorization is there twice", "")
	default:
		scheme, token, _ := strings.Cut(h[0], " ")
		if token = strings.TrimSpace(token); !strings.EqualFold(scheme, "Bearer") || token == "" || strings.ContainsAny(token, " \t") {
			return o, api.NewError(api.CodeUnauthorized, "header Authorization is not of the form Bearer TOKEN", "")
		}
		o.Token = token
	}
	return o, nil
}

// authorize says who asks, if he may: who is at the unix socket, or has shown a certificate, and has a role that allows it, or the bearer
// of a token that does. At the port of this host what only reads is for everybody, unless the configuration says otherwise; from afar next
// to nothing is.
func (s *Server) authorize(ctx context.Context, o Operator, by way, rt *route, act access.Action) (api.Whoami, error) {
	anybody := rt.anybody                        // may ask
	ignores := !rt.auth && !s.cfg.ReadsNeedToken // whoever asks, it is the same
	if by == fromAfar {
		anybody, ignores = rt.stranger, rt.stranger
	}
	switch {
	case o.Token != "":
	case o.Local != "":
		// What the servers must allow beside that, the backend asks them.
		if !o.Local.Scopes().Allow(act) && !anybody {
			return api.Whoami{}, notAllowed(o, by, act)
		}
		return whoami(o, by), nil
	case ignores, anybody:
		return api.Whoami{}, nil
	case by == fromAfar && o.User != "":
		return api.Whoami{}, api.NewError(api.CodeForbidden, "the certificate of "+quote(o.User)+" is good, but nobody said what he may do",
			"api.operators in the configuration of the agent says who may what; or send an API token")
	case by == fromAfar:
		return api.Whoami{}, api.NewError(api.CodeUnauthorized, "this call needs an API token or a certificate", "send Authorization: Bearer TOKEN")
	default:
		return api.Whoami{}, api.NewError(api.CodeUnauthorized, "this call needs an API token", "send Authorization: Bearer TOKEN, or use the unix socket")
	}
	if ignores && o.Local == "" {
		return api.Whoami{}, nil // a token that nobody asked for is nobody's business
	}
	if !s.tries.allow(o.Place, o.Token) {
		return api.Whoami{}, busy("too many calls with tokens that are not valid")
	}
	acts := []access.Action{act}
	if rt.later || anybody {
		acts = nil // the backend asks about what is really to be done
	}
	who, err := s.cfg.Mesh.Authorize(ctx, o, acts...)
	if who.By = "token"; who.Token == "" {
		who.By = "login"
	}
	e, ok := errorOf(err)
	if err == nil || ok && (e.Code == api.CodeUnauthorized || e.Code == api.CodeForbidden) {
		s.tries.done(o.Place, o.Token, err == nil || e.Code == api.CodeForbidden)
	}
	return who, err
}

func notAllowed(o Operator, by way, act access.Action) error {
	if by == fromAfar {
		return api.NewError(api.CodeForbidden, fmt.Sprintf("%s is %s by certificate, and may not %s", quote(o.User), o.Local, act),
			"api.operators in the configuration of the agent says who may what; or send an API token")
	}
	return api.NewError(api.CodeForbidden, fmt.Sprintf("%s is %s at this socket, and may not %s", quote(o.User), o.Local, act),
		"api.users in the configuration of the agent says who may what; or send an API token")
}

// whoami is who is at the socket, or has shown a certificate.
func whoami(o Operator, by way) api.Whoami {
	w := api.Whoami{Name: o.User, By: "socket", Role: string(o.Local), Scopes: o.Local.Scopes().Strings()}
	if by == fromAfar {
		w.By = "certificate"
	}
	return w
}

// readQuery reads a query strictly: only known parameters, each once.
func readQuery(raw string, known []string) (url.Values, error) {
	q, err := url.ParseQuery(raw)
	if err != nil {
		return nil, api.NewError(api.CodeInvalid, "query: "+err.Error(), "")
	}
	for _, k := range sortedKeys(q) {
		if !slices.Contains(known, k) {
			hint := "this route takes none"
			if len(known) > 0 {
				hint = "this route takes " + strings.Join(known, ", ")
			}
			return nil, api.NewError(api.CodeInvalid, "query: unknown parameter "+quote(k), hint)
		}
		if len(q[k]) > 1 {
			return nil, api.NewError(api.CodeInvalid, "query: parameter "+k+" is there twice", "")
		}
	}
	return q, nil
}
