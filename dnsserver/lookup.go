package dnsserver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// ErrNoAddress says that a name does not exist or has no address: the resolvers know.
var ErrNoAddress = errors.New("no address")

// Lookup asks the upstream resolvers (Config.Resolvers) for the addresses of a name outside of the mesh: those of IPv4, or of IPv6 where
// there are none. They are good for ttl. Errors: ErrNoAddress, or that nobody answered.
func (s *Server) Lookup(ctx context.Context, host string) (addrs []netip.Addr, ttl time.Duration, err error) {
	ups := s.cfg.Forward
	if s.cfg.Resolvers != nil {
		ups = s.cfg.Resolvers()
	}
	if len(ups) == 0 {
		return nil, 0, errors.New("dns: no resolver is known: set dns.resolvers")
	}
	for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
		m := new(dns.Msg)
		m.SetQuestion(dns.Fqdn(host), t)
		r, err := s.ask(ctx, ups, m, false)
		switch {
		case err != nil:
			return nil, 0, err
		case r.Rcode == dns.RcodeNameError:
			return nil, 0, fmt.Errorf("%w: %s does not exist", ErrNoAddress, host)
		case r.Rcode != dns.RcodeSuccess:
			return nil, 0, fmt.Errorf("dns: %s: the resolvers answer %s", host, dns.RcodeToString[r.Rcode])
		case r.Truncated:
			return nil, 0, fmt.Errorf("dns: %s: the answer is cut", host)
		}
		if addrs, ttl = chain(r, dns.Fqdn(host), t); len(addrs) > 0 {
			return addrs, ttl, nil
		}
	}
	return nil, 0, fmt.Errorf("%w: %s has none", ErrNoAddress, host)
}

// chain follows the aliases in an answer to the addresses at their end.
func chain(r *dns.Msg, owner string, t uint16) (addrs []netip.Addr, ttl time.Duration) {
	least := uint32(1<<31 - 1)
	owner = lower(owner)
	for range len(r.Answer) + 1 { // of aliases that go in circles none is followed for ever
		alias := ""
		for _, rr := range r.Answer {
			if h := rr.Header(); lower(h.Name) != owner || h.Class != dns.ClassINET || h.Rrtype != t && h.Rrtype != dns.TypeCNAME {
				continue
			}
			var ip []byte
			switch v := rr.(type) {
			case *dns.A:
				ip = v.A.To4()
			case *dns.AAAA:
				ip = v.AAAA.To16()
			case *dns.CNAME:
				alias = lower(v.Target)
			}
			if a, ok := netip.AddrFromSlice(ip); ok {
				addrs = append(addrs, a.Unmap())
			}
			least = min(least, rr.Header().Ttl)
		}
		if len(addrs) > 0 || alias == "" {
			break
		}
		owner = alias
	}
	return addrs, time.Duration(least) * time.Second
}
