package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/engine"
	"github.com/meshagent/meshagent/proxy/http1"
)

// Limits of what services that decide about calls are asked.
const (
	maxAsking  = 1024     // calls that wait for an answer
	maxRefusal = 64 << 10 // bytes of an answer that goes to the client
)

// verdict is what a service decided about a call. It is immutable.
type verdict struct {
	of      mesh.ServiceName // that was called
	denied  *fault           // nil: it may pass
	by      string           // who denied it, for the log
	body    []byte           // of the answer to the client
	fields  []http1.Pair     // of the answer to the client
	request []http1.Pair     // that the called service gets; without a value it gets none
	adds    []http1.Pair     // that it gets beside what there is
	reroute bool             // routes go by what it gets
}

// errAsk stands for a decision that is made once others were asked.
var errAsk = new(fault)

// custom asks the services that policy has decide about the call. What they said holds as long as the call, and for its other tries.
func (c *call) custom(m *policy.Model, to *policy.Target, q *policy.Request) *fault {
	if !m.AsksOthers() {
		return nil
	}
	ask, denied := m.Custom(to, q)
	if denied != nil {
		return c.denied(*denied)
	}
	if len(ask) == 0 {
		return nil
	}
	for _, v := range c.verdicts {
		if v.of != to.Service {
			continue
		}
		if v.denied != nil {
			c.deniedBy, c.refusal = v.by, v
		} else {
			c.told = append(c.told, v)
		}
		return v.denied
	}
	if !c.deciding { // it is under way, and nobody was asked: the policy is newer
		c.deniedBy = ask[0].Key.String()
		return errDenied
	}
	c.toAsk = question{ask, to.Service, q}
	return errAsk
}

// question is what is asked about a call: whom, of which service, and as what it is known there.
type question struct {
	who []*policy.Provider
	of  mesh.ServiceName
	as  *policy.Request
}

// bodyFor is how much of the body must have come before services can be asked: one byte more than one may be told who wants all of it, to
// know that there is more.
func bodyFor(who []*policy.Provider) (n int) {
	for _, e := range who {
		switch {
		case e.Body == 0:
		case e.PartOfBody:
			n = max(n, e.Body)
		default:
			n = max(n, e.Body+1)
		}
	}
	return n
}

// askLater asks where nobody waits for it, and has the call decided then.
func (c *call) askLater() *fault {
	p, q := c.p, c.toAsk
	if n := bodyFor(q.who); n > c.bodied && c.hasBody() {
		c.bodied = n
		c.anew()
		c.x.LaterWithBody(n, func(x *engine.Call) { x.Data.(*call).decide() })
		return nil
	}
	var body []byte
	whole := true
	if c.bodied > 0 {
		body, whole = c.x.Body()
	}
	for _, e := range q.who {
		if e.Body > 0 && !e.PartOfBody && (!whole || len(body) > e.Body) {
			c.deniedBy = e.Key.String()
			return errBody
		}
	}
	if p.asking.Add(1) > maxAsking {
		p.asking.Add(-1)
		return errOverflow
	}
	checks := make([]check, len(q.who))
	for i, e := range q.who {
		part := partOf(e, body, whole)
		if e.GRPC {
			checks[i].message = c.checkMessage(q.as, p.principalOf(q.of), part)
			continue
		}
		r, err := c.checkOf(e, part)
		if err != nil {
			p.asking.Add(-1)
			return errAmbiguous
		}
		checks[i].request = r
	}
	c.anew()
	pause := c.x.Later()
	p.work.Go(func() {
		defer p.asking.Add(-1)
		v := &verdict{of: q.of}
		for i, e := range q.who {
			if p.ask(v, e, checks[i]); v.denied != nil {
				break
			}
		}
		pause.Resume(func(x *engine.Call) {
			c := x.Data.(*call)
			c.verdicts = append(c.verdicts, v)
			c.decide()
		})
	})
	return nil
}

// part is what one service is told of a body.
type part struct {
	told  bool
	bytes []byte
	cut   bool // there is more
	raw   bool
}

// partOf returns a copy: the call's own memory is used for other things when it has ended.
func partOf(e *policy.Provider, body []byte, whole bool) part {
	if e.Body == 0 {
		return part{}
	}
	n := min(e.Body, len(body))
	return part{true, bytes.Clone(body[:n]), !whole || n < len(body), e.RawBody}
}

// partialBody is the header that says whether a body is told in part, as Envoy does.
const partialBody = "x-envoy-auth-partial-body"

// hasBody reports whether a body may come. What comes behind a request for another protocol is none: it goes on once that was agreed to.
func (c *call) hasBody() bool {
	r := &c.x.Request
	upgrade := r.Upgrade != nil && r.Framing.Kind == http1.None && mayUpgrade(text(r.Upgrade))
	return !c.raw && r.Framing.Kind != http1.Tunnel && !upgrade
}

// check is what one service is asked, by HTTP or by gRPC.
type check struct {
	request *http.Request
	message []byte
}

// principalOf is the usual identity of a service.
func (p *Proxy) principalOf(svc mesh.ServiceName) string {
	id, err := mesh.WorkloadIdentity(p.current().snap.TrustDomain, svc.Namespace(), svc.Name())
	if err != nil { // a service outside has none
		return ""
	}
	return id.String()
}

// checkOf is what a service is asked: the request with as much of its body and with the headers that it is to see.
func (c *call) checkOf(e *policy.Provider, b part) (*http.Request, error) {
	x := c.x
	path := x.Request.Path
	if c.wire != nil {
		path = c.wire
	}
	r, err := http.NewRequest(string(x.Request.Method), fmt.Sprintf("http://%s:%d%s%s", e.Service.FQDN(), e.Port, e.PathPrefix, path), bytes.NewReader(b.bytes))
	if err != nil {
		return nil, err
	}
	if !e.Service.IsExternal() { // the mesh's own take any
		r.Host = string(c.host())
	}
	for i := range x.Request.Len() {
		f := x.Request.Field(i)
		if low := strings.ToLower(string(f.Name)); e.Sends(low) && passable(low) {
			r.Header.Add(low, string(f.Value))
		}
	}
	for _, h := range e.Adds {
		r.Header.Set(h.Name, string(h.Value))
	}
	if b.told {
		r.Header.Set(partialBody, strconv.FormatBool(b.cut))
	}
	if r.Header["User-Agent"] == nil {
		r.Header["User-Agent"] = []string{""} // net/http would name itself
	}
	return r, nil
}

// passable reports whether a header may come from somebody else's message: it belongs to no connection, and is not the proxy's own.
func passable(low string) bool {
	switch low {
	case "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length", "host", "date":
		return false
	}
	return !dropReserved.Has([]byte(low))
}

// ask has one service decide.
func (p *Proxy) ask(v *verdict, e *policy.Provider, c check) {
	ctx, cancel := context.WithTimeout(p.life, e.Timeout)
	defer cancel()
	var result string
	var err error
	if e.GRPC {
		result, err = p.askGRPC(ctx, v, e, c.message)
	} else {
		result, err = p.askHTTP(v, e, c.request.WithContext(ctx))
	}
	if err != nil {
		result = "failed"
		p.warn("a service that decides about calls fails", "policy", e.Key.String(), "open", e.FailOpen, "err", err)
		if !e.FailOpen {
			v.deny(e, e.StatusOnError)
		}
	}
	p.metrics.asked.With(e.Key.Namespace+"/"+e.Key.Name, result).Inc()
}

// askHTTP has a service decide that is asked with the request itself. Only 200 allows; a failure of the service itself is none of its answers.
func (p *Proxy) askHTTP(v *verdict, e *policy.Provider, r *http.Request) (result string, err error) {
	resp, body, err := p.askOnce(r)
	switch {
	case err != nil:
		return "", err
	case resp.StatusCode == http.StatusOK:
		v.take(e, resp.Header)
		return "allowed", nil
	case resp.StatusCode < 300 || resp.StatusCode >= 500:
		return "", fmt.Errorf("it answers with status %d", resp.StatusCode)
	}
	v.deny(e, resp.StatusCode)
	v.body, v.fields = body, fieldsOf(resp.Header, func(low string) bool { return e.Downstream(low, false) })
	return "denied", nil
}

func (v *verdict) deny(e *policy.Provider, status int) {
	f := *errDenied
	f.code, f.grpc = status, grpcCode(status)
	v.denied, v.by = &f, e.Key.String()
}

// take adds what a service that allows has to say. What the called service is told by it alone it is not told by the client.
func (v *verdict) take(e *policy.Provider, h http.Header) {
	v.reroute = v.reroute || e.Reroutes
	for _, n := range e.UpstreamNames() {
		if passable(n) && h.Get(n) == "" {
			v.request = append(v.request, http1.Pair{Name: n})
		}
	}
	v.request = append(v.request, fieldsOf(h, e.Upstream)...)
	v.fields = append(v.fields, fieldsOf(h, func(low string) bool { return e.Downstream(low, true) })...)
}

func fieldsOf(h http.Header, wanted func(string) bool) (out []http1.Pair) {
	for name, values := range h {
		if low := strings.ToLower(name); wanted(low) && passable(low) {
			for _, v := range values {
				out = append(out, http1.Pair{Name: low, Value: []byte(v)})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b http1.Pair) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// askOnce sends a check. No redirect is followed: that is an answer for the client.
func (p *Proxy) askOnce(r *http.Request) (*http.Response, []byte, error) {
	resp, err := p.asks.RoundTrip(r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal+1))
	if err == nil && len(body) > maxRefusal {
		err = fmt.Errorf("its answer is longer than %d bytes", maxRefusal)
	}
	return resp, body, err
}

// newAsks makes what checks go over: as a program of the host would, they go to the address that the service has here, and so through the
// mesh.
func (p *Proxy) newAsks(grpc bool) *http.Transport {
	speaks := new(http.Protocols)
	speaks.SetHTTP1(!grpc)
	speaks.SetUnencryptedHTTP2(grpc)
	return &http.Transport{Protocols: speaks, MaxIdleConnsPerHost: 64, MaxConnsPerHost: 256, IdleConnTimeout: time.Minute, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			svc, ok := mesh.ParseHost(host, "")
			if !ok {
				return nil, errors.New("it is no service of the mesh")
			}
			vip, err := p.VIP(ctx, svc)
			if err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(vip.String(), port))
		}}
}

// decidedAnswer has the answer say what services that allowed the request want it to.
func (c *call) decidedAnswer(of mesh.ServiceName) {
	for _, v := range c.verdicts {
		if v.of == of {
			c.x.Decision.Response.Set = append(c.x.Decision.Response.Set, v.fields...)
		}
	}
}

// seen is what a field of the request is once services have said what they want it to be. name is in lower case.
func (v *verdict) seen(values []string, name string) []string {
	for _, h := range v.request {
		if strings.ToLower(h.Name) != name {
			continue
		}
		if values = values[:0]; h.Value != nil {
			values = append(values, text(h.Value))
		}
	}
	for _, h := range v.adds {
		if strings.ToLower(h.Name) == name {
			values = append(values, text(h.Value))
		}
	}
	return values
}

// decided has the request say what services that allowed it want it to.
func (c *call) decided(q *http1.Edit, of mesh.ServiceName) {
	for _, v := range c.verdicts {
		if v.of == of {
			for _, h := range v.request {
				q.Set = setTo(q.Set, h)
			}
			q.Add = append(q.Add, v.adds...)
		}
	}
}
