package dnsserver

import (
	"strconv"

	"github.com/miekg/dns"

	"github.com/meshagent/meshagent/internal/telemetry"
)

// metrics are the server's. Invariant: no label takes its value from a packet as it is; types and rcodes come from lists.
type metrics struct {
	queries  *telemetry.CounterVec
	drops    *telemetry.CounterVec
	upstream *telemetry.CounterVec
	panics   telemetry.Counter
	conns    telemetry.Gauge
}

func newMetrics(m *telemetry.Metrics) metrics {
	return metrics{
		queries:  m.Counter("meshagent_dns_queries_total", "Questions answered.", "transport", "type", "rcode"),
		drops:    m.Counter("meshagent_dns_dropped_total", "Packets and connections dropped without an answer.", "reason"),
		upstream: m.Counter("meshagent_dns_upstream_total", "Tries at upstream resolvers.", "upstream", "result"),
		panics:   m.Counter("meshagent_dns_panics_total", "Questions that made the handler panic: each is a bug.").With(),
		conns:    m.Gauge("meshagent_dns_tcp_connections", "Open TCP connections.").With(),
	}
}

func (m *metrics) dropped(reason string) { m.drops.With(reason).Inc() }

func (m *metrics) count(qtype string, rcode int, udp bool) {
	transport := "tcp"
	if udp {
		transport = "udp"
	}
	code, ok := dns.RcodeToString[rcode]
	if !ok {
		code = "RCODE" + strconv.Itoa(rcode&0xfff) // from an upstream: 4096 values at most
	}
	m.queries.With(transport, qtype, code).Inc()
}

// typeLabel returns the type's name for the types that this server knows or often sees, "other" for the rest.
func typeLabel(t uint16) string {
	switch t {
	case dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeTXT, dns.TypeSOA, dns.TypeNS, dns.TypeANY, dns.TypeMX,
		dns.TypeCNAME, dns.TypeHTTPS, dns.TypeSVCB, dns.TypeDS, dns.TypeDNSKEY:
		return dns.TypeToString[t]
	}
	return "other"
}
