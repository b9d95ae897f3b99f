package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/audit"
)

// Remote says how operators of other hosts are served. There everybody must be known, for whatever he asks.
type Remote struct {
	// TLS has the certificate. It may ask for one of the caller; what that says is for Certificate to verify. HTTP/1.1 is spoken alone.
	TLS *tls.Config
	// Hosts are the names and addresses, beside that of the connection, by which callers may call: what Host may be. In lower case.
	Hosts []string
	// Certificate says who has shown a chain, leaf first, and what he may do; an error is for the caller to read. nil: certificates
	// say nothing.
	Certificate func(chain []*x509.Certificate, now time.Time) (name string, role access.Role, err error)
}

// Limits of what comes from afar.
const (
	maxConnsEach = 64 // of one place
	newConns     = 20 // a second, of one place
	newConnsOnce = 100
	callsEach    = 50 // a second, of one place and of one caller
	callsOnce    = 200
	refusalsEach = 0.1 // a second, of one place, that are recorded
	refusalsOnce = 10
	refusalsAll  = 1 // a second, of all places
	refusalsMost = 100
)

// far is what the remote listener remembers.
type far struct {
	calls, refusals, allRefusals rates

	mu   sync.Mutex // guards what follows
	left int        // refusals that were not recorded
}

func newFar() *far {
	return &far{calls: rates{burst: callsOnce, each: callsEach}, refusals: rates{burst: refusalsOnce, each: refusalsEach},
		allRefusals: rates{burst: refusalsMost, each: refusalsAll}}
}

// listener returns ln with its limits and TLS.
func (r *Remote) listener(ln net.Listener) net.Listener {
	cfg := r.TLS.Clone()
	cfg.NextProtos = []string{"http/1.1"}
	cfg.SessionTicketsDisabled = true // a session outlives neither a certificate nor the word on it
	cfg.MinVersion = tls.VersionTLS12
	return tls.NewListener(limit(&paced{Listener: ln, new: rates{burst: newConnsOnce, each: newConns}, open: map[string]int{}}, maxConns), cfg)
}

// paced is a listener that closes at once what comes too often, or too much, from one place.
type paced struct {
	net.Listener
	new rates

	mu   sync.Mutex // guards what follows
	open map[string]int
}

func (l *paced) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := place(c.RemoteAddr().String())
		if l.new.take(from, time.Now()) && l.enter(from) {
			return &limitedConn{Conn: c, release: sync.OnceFunc(func() { l.leave(from) })}, nil
		}
		c.Close()
	}
}

func (l *paced) enter(from string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[from] >= maxConnsEach {
		return false
	}
	l.open[from]++
	return true
}

func (l *paced) leave(from string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[from]--; l.open[from] == 0 {
		delete(l.open, from)
	}
}

// forHere refuses a request for a host that is not this one: a name of an attacker's that resolves to here, in a browser that has a
// certificate of its user. SECURITY 63.
func (r *Remote) forHere(req *http.Request) error {
	host := strings.ToLower(hostOf(req.Host))
	if slices.Contains(r.Hosts, host) {
		return nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if at, ok := req.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
			if here, err := netip.ParseAddrPort(at.String()); err == nil && here.Addr().Unmap() == ip.Unmap() {
				return nil
			}
		}
	}
	return api.NewError(api.CodeForbidden, "Host "+quote(req.Host)+" is no name of this API", "api.hosts in the configuration of the agent has its names")
}

// certificate reads who has shown a certificate on the connection.
func (r *Remote) certificate(req *http.Request, o *Operator) error {
	if r.Certificate == nil || req.TLS == nil || len(req.TLS.PeerCertificates) == 0 {
		return nil
	}
	var err error
	if o.User, o.Local, err = r.Certificate(req.TLS.PeerCertificates, time.Now()); err != nil {
		return api.NewError(api.CodeUnauthorized, err.Error(), "")
	}
	return nil
}

// refused records that somebody was not let in, or may not what he asked for. There are limits, so that nobody can drown the log: what
// was left out is counted.
func (s *Server) refused(c *call, act access.Action, why error) error {
	told, ok := errorOf(why)
	if s.cfg.Audit == nil || !ok || told.Code != api.CodeUnauthorized && told.Code != api.CodeForbidden {
		return nil
	}
	s.far.mu.Lock()
	now := time.Now()
	if !s.far.refusals.take(c.op.Place, now) || !s.far.allRefusals.take("", now) {
		s.far.left++
		s.far.mu.Unlock()
		return nil
	}
	left := s.far.left
	s.far.left = 0
	s.far.mu.Unlock()
	e := audit.Event{What: "refuse", Who: cmp.Or(c.who.Name, c.op.User), Token: c.who.Token, From: c.op.From, Call: c.r.Method + " " + c.r.URL.RequestURI(), Result: string(told.Code), Left: left}
	e.Actions = []string{act.String()}
	if _, err := s.cfg.Audit(e); err != nil {
		return fmt.Errorf("refused, but that could not be recorded: %w", err)
	}
	return nil
}

// RemoteHandler returns the handler of the listener for operators of other hosts; Config.Remote is not nil.
func (s *Server) RemoteHandler() http.Handler { return s.handler(fromAfar) }

// remoteServer is httpServer for that.
func (s *Server) remoteServer() *http.Server {
	h := s.httpServer(fromAfar)
	h.ConnContext = func(ctx context.Context, _ net.Conn) context.Context { return ctx } // nobody of this host is at the other end
	h.Protocols = new(http.Protocols)
	h.Protocols.SetHTTP1(true)
	return h
}
