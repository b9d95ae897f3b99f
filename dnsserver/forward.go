package dnsserver

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// maxStrangers is how many packets that do not fit the question a socket bears. More look like guessing at the answer,
// and TCP, where guessing is much harder, is asked instead.
const maxStrangers = 3

var (
	errStrangers = errors.New("packets that do not fit the question")
	errTruncated = errors.New("answer truncated")
	errBusy      = errors.New("too many questions in flight")
)

// forward fills r with the answer of an upstream resolver to m, or with SERVFAIL.
func (s *Server) forward(ctx context.Context, m, r *dns.Msg) {
	q := m.Question[0]
	do := false
	if o := m.IsEdns0(); o != nil {
		do = o.Do()
	}
	key := fmt.Sprintf("%s %d %t %t %t", q.Name, q.Qtype, do, m.CheckingDisabled, m.AuthenticatedData)
	// Equal questions share one in flight: many of the same would let an off-path attacker guess one of many ids.
	ch := s.flights.DoChan(key, func() (r any, err error) {
		defer func() {
			if p := recover(); p != nil {
				s.panicked(p)
				err = errors.New("the handler panicked")
			}
		}()
		return s.ask(s.life, s.cfg.Forward, m, do) // not ctx: others may be waiting for the same answer
	})
	select {
	case <-ctx.Done():
		r.Rcode = dns.RcodeServerFailure
		return
	case res := <-ch:
		if res.Err != nil {
			s.logOnce("forward", netip.Addr{}, "dns question got no answer from any upstream resolver", "error", res.Err)
			r.Rcode = dns.RcodeServerFailure
			explain(r, dns.ExtendedErrorCodeNoReachableAuthority, "no upstream resolver answered")
			return
		}
		up := res.Val.(*dns.Msg) // shared: read only
		r.Rcode, r.AuthenticatedData, r.Truncated = up.Rcode, up.AuthenticatedData, up.Truncated
		r.Answer, r.Ns = outside(up.Answer), outside(up.Ns)
		r.Extra = append(outside(up.Extra), r.Extra...)
	}
}

// outside returns the rows that may come from upstream: OPT is between hops, and nobody else speaks for mesh.
func outside(rows []dns.RR) (out []dns.RR) {
	for _, rr := range rows {
		if t := rr.Header().Rrtype; t != dns.TypeOPT && t != dns.TypeTSIG && !inZone(lower(rr.Header().Name), zone) {
			out = append(out, rr)
		}
	}
	return out
}

// ask asks the upstreams in turn, the one that answered last first, until one gives an answer of its own.
func (s *Server) ask(ctx context.Context, ups []netip.AddrPort, m *dns.Msg, do bool) (*dns.Msg, error) {
	select {
	case s.forwards <- struct{}{}:
		defer func() { <-s.forwards }()
	default:
		s.met.upstream.With("none", "busy").Inc()
		return nil, errBusy
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.upstreamTotal)
	defer cancel()
	var last *dns.Msg
	var errs []error
	first := int(s.preferred.Load())
	for i := 0; i < len(ups) && ctx.Err() == nil; i++ {
		n := (first + i) % len(ups)
		up := ups[n]
		r, err := s.askOne(ctx, up, m, do)
		switch {
		case err != nil:
			s.met.upstream.With(up.String(), "error").Inc()
			errs = append(errs, fmt.Errorf("%v: %w", up, err))
		case r.Rcode == dns.RcodeServerFailure || r.Rcode == dns.RcodeRefused || r.Rcode == dns.RcodeNotImplemented:
			s.met.upstream.With(up.String(), "refused").Inc()
			last = r
		default:
			s.met.upstream.With(up.String(), "answered").Inc()
			s.preferred.Store(uint32(n))
			return r, nil
		}
	}
	if last != nil {
		return last, nil
	}
	return nil, errors.Join(errs...)
}

// askOne asks one upstream over UDP, and over TCP when the answer does not fit or somebody guesses at it.
func (s *Server) askOne(ctx context.Context, up netip.AddrPort, m *dns.Msg, do bool) (*dns.Msg, error) {
	q := new(dns.Msg)
	q.Question = m.Question
	q.RecursionDesired, q.CheckingDisabled, q.AuthenticatedData = true, m.CheckingDisabled, m.AuthenticatedData
	q.SetEdns0(maxUDP, do) // the client's own options, as cookies and subnets, are between it and us
	r, err := s.exchange(ctx, "udp", up, q)
	if !errors.Is(err, errTruncated) && !errors.Is(err, errStrangers) {
		return r, err
	}
	full, tcpErr := s.exchange(ctx, "tcp", up, q)
	if tcpErr != nil && r != nil {
		return r, nil // truncated, and marked so: better than nothing
	}
	return full, tcpErr
}

// exchange asks on a fresh socket, so that every question has a port of its own, with an id nobody can foresee.
func (s *Server) exchange(ctx context.Context, network string, up netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, s.limits.upstreamTry)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, network, up.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	var id [2]byte
	rand.Read(id[:]) // never fails
	q = q.Copy()
	q.Id = binary.BigEndian.Uint16(id[:])
	co := &dns.Conn{Conn: c, UDPSize: 4096}
	if err := co.WriteMsg(q); err != nil {
		return nil, err
	}
	for range maxStrangers {
		r, err := co.ReadMsg()
		if err != nil && (network == "tcp" || r == nil && !errors.Is(err, dns.ErrShortRead)) {
			if ctx.Err() != nil {
				err = fmt.Errorf("no answer over %s within %v: %w", network, s.limits.upstreamTry, ctx.Err())
			}
			return nil, err
		}
		if err == nil && fits(r, q) {
			if network == "udp" && r.Truncated {
				return r, errTruncated
			}
			return r, nil
		}
		s.met.dropped("stranger")
		s.logOnce("stranger", up.Addr(), "dns dropped a packet that is no answer to the question asked", "upstream", up)
	}
	return nil, errStrangers
}

// fits reports whether r answers q: the id and the question, letter case aside, are the same.
func fits(r, q *dns.Msg) bool {
	return r.Response && r.Id == q.Id && r.Opcode == dns.OpcodeQuery && len(r.Question) == 1 &&
		r.Question[0].Qtype == q.Question[0].Qtype && r.Question[0].Qclass == q.Question[0].Qclass &&
		strings.EqualFold(r.Question[0].Name, q.Question[0].Name)
}
