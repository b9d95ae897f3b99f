package dnsserver

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime/debug"
	"strings"

	"github.com/miekg/dns"
)

const (
	headerLen = 12
	// maxUDP is the largest datagram sent: it fits every path without fragments (DNS flag day 2020).
	maxUDP = 1232
)

// handle answers one packet; nil means that nothing is sent back: the packet is an answer itself or not DNS at all.
// udp bounds the size of the answer to what the client can take.
func (s *Server) handle(ctx context.Context, pkt []byte, from netip.Addr, udp bool) (out []byte) {
	if len(pkt) < headerLen || pkt[2]&0x80 != 0 { // a QR bit: answering answers makes loops between servers
		s.met.dropped("malformed")
		return nil
	}
	defer func() {
		if p := recover(); p != nil {
			s.panicked(p)
			out = bare(pkt, dns.RcodeServerFailure)
		}
	}()
	m := new(dns.Msg)
	if rcode := precheck(pkt); rcode != dns.RcodeSuccess {
		s.met.count("other", rcode, udp)
		return bare(pkt, rcode)
	}
	if err := m.Unpack(pkt); err != nil || len(m.Question) != 1 {
		s.met.count("other", dns.RcodeFormatError, udp)
		return bare(pkt, dns.RcodeFormatError)
	}
	r := s.answer(ctx, m, from)
	s.met.count(typeLabel(m.Question[0].Qtype), r.Rcode, udp)
	limit := dns.MaxMsgSize
	if udp {
		limit = udpLimit(m)
	}
	out, err := pack(r, limit)
	if err != nil {
		s.logOnce("pack", from, "dns answer cannot be encoded", "question", m.Question[0].Name, "error", err)
		return bare(pkt, dns.RcodeServerFailure)
	}
	return out
}

func (s *Server) panicked(p any) {
	s.met.panics.Inc()
	if s.once.Allow("panic") {
		s.log.Error("dns question made the handler panic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	}
}

// precheck looks at the header alone, so that what cannot be right is refused before it is decoded.
func precheck(pkt []byte) int {
	count := func(i int) uint16 { return binary.BigEndian.Uint16(pkt[4+2*i:]) }
	switch {
	case pkt[2]>>3&0xf != dns.OpcodeQuery:
		return dns.RcodeNotImplemented
	case count(0) != 1, count(1) > 1, count(2) > 1, count(3) > 8:
		return dns.RcodeFormatError
	}
	return dns.RcodeSuccess
}

// bare is an answer of a header alone, for packets whose question cannot be trusted to be one.
func bare(pkt []byte, rcode int) []byte {
	out := make([]byte, headerLen)
	copy(out, pkt[:2])
	out[2] = 0x80 | pkt[2]&0x79 // QR; opcode and RD as asked
	out[3] = byte(rcode & 0xf)
	return out
}

// udpLimit is what the client says it takes, 512 bytes without EDNS0, and never more than maxUDP.
func udpLimit(m *dns.Msg) int {
	if o := m.IsEdns0(); o != nil {
		return min(max(int(o.UDPSize()), dns.MinMsgSize), maxUDP)
	}
	return dns.MinMsgSize
}

// pack encodes the answer in at most limit bytes. Rows that only save the client a question go first and silently; TC is
// set when rows of the answer had to go.
func pack(r *dns.Msg, limit int) ([]byte, error) {
	r.Compress = true
	b, err := r.Pack()
	if err != nil || len(b) <= limit {
		return b, err
	}
	opt := r.IsEdns0()
	if r.Extra = nil; opt != nil {
		r.Extra = []dns.RR{opt}
	}
	r.Truncate(limit)
	r.Compress = true
	return r.Pack()
}

// answer answers a well-formed question.
func (s *Server) answer(ctx context.Context, m *dns.Msg, from netip.Addr) *dns.Msg {
	r := new(dns.Msg)
	r.SetReply(m)
	r.AuthenticatedData = false
	opts := 0
	for _, rr := range m.Extra {
		if o, ok := rr.(*dns.OPT); ok {
			if opts++; opts > 1 || o.Hdr.Name != "." {
				r.Rcode = dns.RcodeFormatError // RFC 6891 section 6.1.1
				return r
			}
		}
	}
	local := s.cfg.Local(from)
	r.RecursionAvailable = local && len(s.cfg.Forward) > 0
	if o := m.IsEdns0(); o != nil {
		r.SetEdns0(maxUDP, o.Do())
		if o.Version() != 0 {
			r.Rcode = dns.RcodeBadVers
			return r
		}
	}
	q := m.Question[0]
	switch {
	case q.Qclass != dns.ClassINET, q.Qtype == dns.TypeAXFR, q.Qtype == dns.TypeIXFR:
		r.Rcode = dns.RcodeRefused
		return r
	case q.Qtype == dns.TypeNone, q.Qtype == dns.TypeOPT:
		r.Rcode = dns.RcodeFormatError
		return r
	case q.Qtype == dns.TypeTKEY, q.Qtype == dns.TypeTSIG, q.Qtype == dns.TypeMAILA, q.Qtype == dns.TypeMAILB:
		r.Rcode = dns.RcodeNotImplemented
		return r
	}
	if s.authoritative(ctx, r, q, from, local) {
		return r
	}
	if !local || !m.RecursionDesired || len(s.cfg.Forward) == 0 {
		s.refuse(r)
		return r
	}
	if s.cfg.RegistryOnly != nil && s.cfg.RegistryOnly() && !s.declared(lower(m.Question[0].Name)) {
		r.Rcode = dns.RcodeRefused
		explain(r, dns.ExtendedErrorCodeProhibited, "no ServiceEntry declares the name, and the mesh's Sidecar says REGISTRY_ONLY")
		return r
	}
	s.forward(ctx, m, r)
	return r
}

// authoritative fills r with what the zone says; false when the name is none of ours.
func (s *Server) authoritative(ctx context.Context, r *dns.Msg, q dns.Question, from netip.Addr, local bool) bool {
	name := lower(q.Name)
	v := s.current()
	if v == nil {
		if !inZone(name, zone) && !inZone(name, loopback4) {
			return false
		}
		r.Rcode = dns.RcodeServerFailure
		explain(r, dns.ExtendedErrorCodeNotReady, "the agent has no snapshot yet")
		return true
	}
	p, ours := s.find(v, name)
	if !ours && local {
		var err error
		if p, v, ours, err = s.findOutside(ctx, v, name, q.Qtype); err != nil { // not forwarded: the caller would go there without the proxy
			s.logOnce("outside", from, "dns has no answer for a name below a wildcard of a ServiceEntry", "question", q.Name, "error", err)
			r.Rcode = dns.RcodeServerFailure
			explain(r, dns.ExtendedErrorCodeNoReachableAuthority, "no resolver answered for a name that a ServiceEntry declares")
			return true
		}
	}
	if !ours {
		return false
	}
	r.Authoritative = true
	if p.kind == absent {
		r.Rcode = dns.RcodeNameError
	} else {
		a := &asker{s: s, v: v, ctx: ctx, name: q.Name, local: local}
		rows, err := a.records(p, q.Qtype)
		if err != nil {
			s.logOnce("vip", from, "dns has no address for a local caller", "question", q.Name, "error", err)
			r.Authoritative, r.Rcode = false, dns.RcodeServerFailure
			explain(r, dns.ExtendedErrorCodeOther, "the proxy gave no address for the service")
			return true
		}
		r.Answer = rows
		r.Extra = append(a.extra, r.Extra...)
	}
	if len(r.Answer) == 0 {
		r.Ns = []dns.RR{s.soa(p.zone, v)}
	}
	return true
}

func (s *Server) refuse(r *dns.Msg) {
	r.Rcode = dns.RcodeRefused
	explain(r, dns.ExtendedErrorCodeNotAuthoritative, "only names below mesh. are answered here")
}

// explain adds an extended error (RFC 8914) when the client speaks EDNS0.
func explain(r *dns.Msg, code uint16, text string) {
	if o := r.IsEdns0(); o != nil {
		o.Option = append(o.Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: text})
	}
}

// lower lowers ASCII letters only, as RFC 4343 has it.
func lower(s string) string {
	for i := 0; i < len(s); i++ {
		if c := s[i]; 'A' <= c && c <= 'Z' {
			return strings.Map(func(r rune) rune {
				if 'A' <= r && r <= 'Z' {
					return r + 'a' - 'A'
				}
				return r
			}, s)
		}
	}
	return s
}

// newQuery makes a question out of text.
func newQuery(name, qtype string) (*dns.Msg, error) {
	t, ok := dns.StringToType[strings.ToUpper(qtype)]
	if !ok {
		return nil, fmt.Errorf("dns: type %.20q is not known: use A, AAAA, SRV, PTR, TXT, SOA or NS", qtype)
	}
	if a, err := netip.ParseAddr(name); err == nil && t == dns.TypePTR {
		if name, err = dns.ReverseAddr(a.Unmap().WithZone("").String()); err != nil {
			return nil, fmt.Errorf("dns: %v: %w", a, err)
		}
	}
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		return nil, fmt.Errorf("dns: %.80q is not a domain name: labels have 1 to 63 characters, a name at most 253", name)
	}
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), t)
	return m, nil
}

// logOnce logs a warning once per source, reason and minute.
func (s *Server) logOnce(reason string, from netip.Addr, msg string, kv ...any) {
	if s.once.Allow(reason + " " + from.String()) {
		s.log.Warn(msg, append(kv, "from", from)...)
	}
}
