package policy

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// Gateway is a compiled Gateway: what the instances that it selects take in from outside of the mesh.
type Gateway struct {
	Key      mesh.PolicyKey
	Selector mesh.Labels        // of instances of protocol gateway, of Istio's Gateways
	Services []mesh.ServiceName // of protocol gateway, of those of the Gateway API; none is all of their namespace
	Servers  []*GatewayServer
}

// Selects reports whether an instance serves the gateway. As in authorization, the label app is the service's name where an instance
// has none.
func (g *Gateway) Selects(in *mesh.Instance) bool {
	switch {
	case in.Protocol != mesh.Gateway:
		return false
	case g.Key.Group != gatewayGroup:
		return selected(g.Selector, in.Service, in.Labels)
	case len(g.Services) > 0:
		return slices.Contains(g.Services, in.Service)
	}
	return in.Service.Namespace() == g.Key.Namespace
}

// GatewayServer is one port of a gateway, or one of several that share it and differ by their hosts.
type GatewayServer struct {
	Gateway  mesh.PolicyKey
	Index    int
	Name     string
	Port     uint16
	Bind     netip.Addr // the zero value is all addresses
	Protocol EdgeProtocol
	Hosts    []GatewayHost
	TLS      *ServerTLS // nil without TLS
	Redirect bool       // every request is sent to https
	HTTP     []*VirtualHost
	TCP      []*TCPRoute // nil: none; the first that matches counts
}

// Passes reports whether the server passes connections on without ending their TLS.
func (s *GatewayServer) Passes() bool { return s.TLS != nil && s.TLS.Mode == TLSPassthrough }

// GatewayHost is a host that a server takes in, and for whose routes.
type GatewayHost struct {
	Namespace string // of the routes; "" is all
	Name      string // lower case; *.example.com, or * for all
}

// VirtualHost is the routes of a host of a server, which are tried in order.
type VirtualHost struct {
	Host    string // as in GatewayHost
	Invalid string // why everything is denied; empty otherwise
	Routes  []*HTTPRoute
}

// EdgeProtocol is what is spoken at a port of a gateway.
type EdgeProtocol uint8

// The protocols: EdgeHTTPS and EdgeTLS are TLS with requests, with anything else in it.
const (
	EdgeHTTP EdgeProtocol = iota
	EdgeHTTPS
	EdgeTCP
	EdgeTLS
)

// TLSMode is what a server asks of its clients.
type TLSMode uint8

// The modes.
const (
	TLSSimple         TLSMode = iota
	TLSMutual                 // a certificate
	TLSOptionalMutual         // a certificate, if they show one, that is valid
	TLSPassthrough            // nothing: what they say goes on as it comes
	TLSMesh                   // a certificate of the mesh, or of a trust domain that is federated; and shows one of the mesh
)

// ServerTLS is how a server speaks TLS. It is immutable.
type ServerTLS struct {
	Mode         TLSMode
	Files        []CertFiles
	CAFile       string
	CRLFile      string      // beside CAFile: lists of revoked certificates
	Secrets      []SecretRef // without a namespace: in that of the gateway's instance
	CASecret     SecretRef
	HasCAs       bool     // the authorities of clients are CAs,
	CAs          string   // in PEM; "" are none: nobody is let in
	SANs         []string // of clients' certificates, any of them; empty is all
	SPKI, Hash   [][32]byte
	Min, Max     uint16 // versions, as in crypto/tls
	CipherSuites []uint16
}

// CertFiles are paths on the gateway's host.
type CertFiles struct{ Cert, Key string }

// Gateways returns the gateways of the mesh, the oldest first.
func (m *Model) Gateways() []*Gateway {
	if m == nil {
		return nil
	}
	return m.gateways
}

func compileIstioGateway(key mesh.PolicyKey, s *istio.Gateway) (*Gateway, []fieldError) {
	c := &compiler{key: key}
	g := &Gateway{Key: key, Selector: s.Selector}
	if len(s.Selector) == 0 {
		c.fail("selector", "write the labels of gateways, such as {istio: ingressgateway}", "is missing or empty")
	} else if err := g.Selector.Check(); err != nil {
		c.fail("selector", "", "%v", err)
	}
	if len(s.Servers) == 0 {
		c.fail("servers", "write a server", "is missing or empty")
	}
	for i := range s.Servers {
		g.Servers = append(g.Servers, c.server(fmt.Sprintf("servers[%d]", i), i, &s.Servers[i]))
	}
	return g, c.errs
}

var edgeProtocols = map[string]EdgeProtocol{"HTTP": EdgeHTTP, "HTTP2": EdgeHTTP, "GRPC": EdgeHTTP, "HTTPS": EdgeHTTPS, "TCP": EdgeTCP, "TLS": EdgeTLS}

func (c *compiler) server(path string, index int, s *istio.Server) *GatewayServer {
	out := &GatewayServer{Gateway: c.key, Index: index, Name: s.Name, Port: s.Port.Number}
	if s.Port.Number == 0 {
		c.fail(path+".port.number", "", "is missing or 0")
	}
	if s.Port.Name != "" {
		if err := mesh.CheckLabel("name", s.Port.Name); err != nil {
			c.fail(path+".port.name", "", "%v", err)
		}
	}
	p, ok := edgeProtocols[strings.ToUpper(s.Port.Protocol)]
	if out.Protocol = p; !ok {
		c.fail(path+".port.protocol", "write "+strings.Join(slices.Sorted(maps.Keys(edgeProtocols)), ", "), "%q is not supported", s.Port.Protocol)
	}
	if s.Bind != "" {
		a, err := netip.ParseAddr(s.Bind)
		if out.Bind = a.Unmap(); err != nil || a.Zone() != "" {
			c.fail(path+".bind", "write an IP address of the gateway's host, or leave it out for all", "%q is no address", s.Bind)
		}
		if out.Bind.IsUnspecified() {
			out.Bind = netip.Addr{}
		}
	}
	if len(s.Hosts) == 0 {
		c.fail(path+".hosts", `write host names, or "*"`, "is missing or empty")
	}
	for j, h := range s.Hosts {
		out.Hosts = append(out.Hosts, c.gatewayHost(fmt.Sprintf("%s.hosts[%d]", path, j), h))
	}
	if t := s.TLS; t != nil && t.HTTPSRedirect {
		if out.Redirect = true; p != EdgeHTTP {
			c.fail(path+".tls.httpsRedirect", "write it at a server of protocol HTTP", "only requests without TLS are redirected to https")
		}
		if !reflect.DeepEqual(*t, istio.ServerTLS{HTTPSRedirect: true, Mode: t.Mode}) {
			c.fail(path+".tls", "move it to the server of protocol HTTPS", "has settings of TLS, which a server of protocol HTTP does not speak")
		}
		return out
	}
	switch secure := p == EdgeHTTPS || p == EdgeTLS; {
	case s.TLS == nil && secure && ok:
		c.fail(path+".tls", "write mode: SIMPLE and a certificate", "is missing, and the protocol is %s", s.Port.Protocol)
	case s.TLS != nil && !secure && ok:
		c.fail(path+".tls", "write protocol: HTTPS, or remove it", "a server of protocol %s speaks no TLS", s.Port.Protocol)
	case s.TLS != nil:
		if out.TLS = c.serverTLS(path+".tls", s.TLS); out.TLS.Mode == TLSPassthrough {
			out.Protocol = EdgeTLS // requests in it are not read
		}
	}
	return out
}

// gatewayHost reads [namespace/]host.
func (c *compiler) gatewayHost(path, s string) GatewayHost {
	var out GatewayHost
	name := s
	if ns, rest, ok := strings.Cut(s, "/"); ok {
		name = rest
		switch {
		case ns == "*":
		case ns == ".":
			out.Namespace = c.key.Namespace
		default:
			if out.Namespace = ns; mesh.CheckLabel("namespace", ns) != nil {
				c.fail(path, `write the namespace of the routes, "." or "*"`, "%q is no namespace", ns)
			}
		}
	}
	out.Name = strings.ToLower(strings.TrimSuffix(name, "."))
	if !edgeHost(out.Name) {
		c.fail(path, "write a host name, *.example.com or *", "%q is no host", name)
	}
	return out
}

// edgeHost reports whether s is a DNS name in lower case, one with a star for its first labels, or a star.
func edgeHost(s string) bool {
	if s == "*" {
		return true
	}
	s = strings.TrimPrefix(s, "*.")
	for label := range strings.SplitSeq(s, ".") {
		if mesh.CheckLabel("host", strings.ReplaceAll(label, "_", "a")) != nil {
			return false
		}
	}
	_, err := netip.ParseAddr(s)
	return err != nil && len(s) <= 253
}

var tlsVersions = map[string]uint16{"": 0, "TLS_AUTO": 0, "TLSV1_2": tls.VersionTLS12, "TLSV1_3": tls.VersionTLS13}

func (c *compiler) serverTLS(path string, t *istio.ServerTLS) *ServerTLS {
	out := &ServerTLS{SANs: t.SubjectAltNames, CAFile: t.CACertificates, CRLFile: t.CACRL, CASecret: SecretRef{Name: t.CACertCredentialName}}
	switch t.Mode {
	case "", "SIMPLE":
	case "MUTUAL":
		out.Mode = TLSMutual
	case "OPTIONAL_MUTUAL":
		out.Mode = TLSOptionalMutual
	case "PASSTHROUGH":
		if out.Mode = TLSPassthrough; !reflect.DeepEqual(*t, istio.ServerTLS{Mode: t.Mode}) {
			c.fail(path, "remove all but mode, or write mode: SIMPLE", "has settings of a server that ends TLS, and mode PASSTHROUGH does not")
		}
		return out
	case "AUTO_PASSTHROUGH":
		c.fail(path+".mode", "write PASSTHROUGH, and VirtualServices with tls that name the gateway", "AUTO_PASSTHROUGH lets whoever can reach the gateway "+
			"choose any service of the mesh by its name; hosts of a mesh reach each other without gateways")
		return out
	case "ISTIO_MUTUAL":
		out.Mode = TLSMesh
	default:
		c.fail(path+".mode", "write SIMPLE, MUTUAL, OPTIONAL_MUTUAL, ISTIO_MUTUAL or PASSTHROUGH", "%q is not supported", t.Mode)
	}
	if out.Mode == TLSMesh {
		c.meshTLS(path, t)
	} else {
		c.certificates(path, t, out)
		c.clientCertificates(path, t, out)
	}
	version := func(field, s string, def uint16) uint16 {
		v, ok := tlsVersions[s]
		if !ok {
			c.fail(path+"."+field, "write TLSV1_2 or TLSV1_3", "%q is not a version that is spoken", s)
		}
		if v == 0 {
			return def
		}
		return v
	}
	out.Min, out.Max = version("minProtocolVersion", t.MinProtocolVersion, tls.VersionTLS12), version("maxProtocolVersion", t.MaxProtocolVersion, tls.VersionTLS13)
	if out.Min > out.Max {
		c.fail(path+".maxProtocolVersion", "", "is below minProtocolVersion")
	}
	for i, name := range t.CipherSuites {
		n := slices.IndexFunc(cipherSuites, func(s cipherSuite) bool { return s.name == name })
		if n < 0 {
			var names []string
			for _, s := range cipherSuites {
				names = append(names, s.name)
			}
			c.fail(fmt.Sprintf("%s.cipherSuites[%d]", path, i), "write some of "+strings.Join(names, ", ")+"; those of TLS 1.3 cannot be chosen", "%q is not supported", name)
			continue
		}
		out.CipherSuites = append(out.CipherSuites, cipherSuites[n].id)
	}
	return out
}

type cipherSuite struct {
	name string // Istio's
	id   uint16
}

// cipherSuites are those of TLS 1.2 that have forward secrecy and authenticate what they encrypt.
var cipherSuites = []cipherSuite{
	{"ECDHE-ECDSA-AES128-GCM-SHA256", tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	{"ECDHE-RSA-AES128-GCM-SHA256", tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256},
	{"ECDHE-ECDSA-AES256-GCM-SHA384", tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384},
	{"ECDHE-RSA-AES256-GCM-SHA384", tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384},
	{"ECDHE-ECDSA-CHACHA20-POLY1305", tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256},
	{"ECDHE-RSA-CHACHA20-POLY1305", tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256},
}

// certificates finds out where a server's own certificates are: in one way of several.
func (c *compiler) certificates(path string, t *istio.ServerTLS, out *ServerTLS) {
	pair := func(path string, cert, key string) {
		if cert == "" || key == "" {
			c.fail(path, "write serverCertificate and privateKey", "has one of certificate and key without the other")
		}
		c.certFile(path+".serverCertificate", cert)
		c.certFile(path+".privateKey", key)
		out.Files = append(out.Files, CertFiles{cert, key})
	}
	ways := 0
	if t.ServerCertificate != "" || t.PrivateKey != "" {
		ways++
		pair(path, t.ServerCertificate, t.PrivateKey)
	}
	full(c, path+".tlsCertificates", "fill it, or remove it", t.TLSCertificates)
	if len(t.TLSCertificates) > 0 {
		ways++
	}
	for i, x := range t.TLSCertificates {
		p := fmt.Sprintf("%s.tlsCertificates[%d]", path, i)
		pair(p, x.ServerCertificate, x.PrivateKey)
		if x.CACertificates != "" {
			c.fail(p+".caCertificates", "write caCertificates beside tlsCertificates", "one set of authorities counts for all of a server's clients")
		}
	}
	full(c, path+".credentialNames", "fill it, or remove it", t.CredentialNames)
	names := t.CredentialNames
	if len(names) > 0 {
		ways++
	}
	if t.CredentialName != "" {
		ways++
		names = []string{t.CredentialName}
	}
	for _, n := range names {
		c.secretName(path+".credentialName", n)
		out.Secrets = append(out.Secrets, SecretRef{Name: n})
	}
	if ways != 1 {
		c.fail(path, "write credentialName, credentialNames, tlsCertificates, or serverCertificate and privateKey", "has %d of these ways to name a certificate: one is needed", ways)
	}
}

func (c *compiler) secretName(path, name string) {
	for part := range strings.SplitSeq(name, ".") {
		if err := mesh.CheckLabel("name", part); err != nil {
			c.fail(path, "write the metadata.name of a Secret in the namespace of the gateway, or of the rule", "%q is not the name of a Secret", name)
			return
		}
	}
}

// certFile checks a path: the directory that it must be in is the host's to say.
func (c *compiler) certFile(field, p string) {
	if p != "" && (!path.IsAbs(p) || path.Clean(p) != p || strings.ContainsAny(p, "\x00\n")) {
		c.fail(field, "write it as /etc/meshagent/certificates/NAME.pem", "%q is no absolute path", p)
	}
}

// meshTLS checks what may stand beside ISTIO_MUTUAL: certificates are the mesh's own.
func (c *compiler) meshTLS(path string, t *istio.ServerTLS) {
	allowed := istio.ServerTLS{Mode: t.Mode, SubjectAltNames: t.SubjectAltNames, MinProtocolVersion: t.MinProtocolVersion, MaxProtocolVersion: t.MaxProtocolVersion, HTTPSRedirect: t.HTTPSRedirect}
	if !reflect.DeepEqual(*t, allowed) {
		c.fail(path, "remove all but mode, subjectAltNames and versions", "names certificates or ciphers, and with mode ISTIO_MUTUAL the mesh's own are shown and asked for")
	}
	full(c, path+".subjectAltNames", "fill it, or remove it", t.SubjectAltNames)
	for i, s := range t.SubjectAltNames {
		if _, err := mesh.ParseIdentity(s); err != nil {
			c.fail(fmt.Sprintf("%s.subjectAltNames[%d]", path, i), "write it as spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT", "%q is no identity", s)
		}
	}
	if t.MinProtocolVersion == "TLSV1_2" || t.MaxProtocolVersion == "TLSV1_2" {
		c.fail(path, "write TLSV1_3, or leave the versions out", "TLSV1_2: with ISTIO_MUTUAL only TLS 1.3 is spoken")
	}
}

// clientCertificates is what clients are asked for.
func (c *compiler) clientCertificates(path string, t *istio.ServerTLS, out *ServerTLS) {
	c.certFile(path+".caCertificates", t.CACertificates)
	c.certFile(path+".caCrl", t.CACRL)
	if t.CACertCredentialName != "" {
		c.secretName(path+".caCertCredentialName", t.CACertCredentialName)
	}
	full(c, path+".subjectAltNames", "fill it, or remove it", t.SubjectAltNames)
	full(c, path+".verifyCertificateSpki", "fill it, or remove it", t.VerifyCertificateSpki)
	full(c, path+".verifyCertificateHash", "fill it, or remove it", t.VerifyCertificateHash)
	for i, s := range t.VerifyCertificateSpki {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil || len(b) != 32 {
			c.fail(fmt.Sprintf("%s.verifyCertificateSpki[%d]", path, i), "write the SHA-256 of the public key in base64", "%q is none", s)
			continue
		}
		out.SPKI = append(out.SPKI, [32]byte(b))
	}
	for i, s := range t.VerifyCertificateHash {
		b, err := hex.DecodeString(strings.ReplaceAll(s, ":", ""))
		if err != nil || len(b) != 32 {
			c.fail(fmt.Sprintf("%s.verifyCertificateHash[%d]", path, i), "write the SHA-256 of the certificate in hex", "%q is none", s)
			continue
		}
		out.Hash = append(out.Hash, [32]byte(b))
	}
	if t.CACRL != "" && t.CACertificates == "" {
		c.fail(path+".caCrl", "write caCertificates, or put the list as ca.crl into the Secret with the authorities", "stands beside no caCertificates")
	}
	asks := t.CACertificates != "" || t.CACertCredentialName != ""
	demands := len(t.SubjectAltNames)+len(t.VerifyCertificateSpki)+len(t.VerifyCertificateHash) > 0
	switch {
	case out.Mode == TLSSimple && (asks || demands):
		c.fail(path, "write mode: MUTUAL, or remove them", "says what clients' certificates are checked by, and mode SIMPLE asks for none")
	case out.Mode != TLSSimple && len(out.Files) > 0 && t.CACertificates == "" && t.CACertCredentialName == "":
		c.fail(path+".caCertificates", "name a file with the authorities of clients", "is missing, and mode %s asks for certificates", t.Mode)
	case t.CACertificates != "" && t.CACertCredentialName != "":
		c.fail(path+".caCertCredentialName", "remove one", "caCertificates is there, too")
	case t.CACertificates != "" && len(out.Secrets) > 0:
		c.fail(path+".caCertificates", "put them as ca.crt into the Secret, or name one in caCertCredentialName", "certificates are from a Secret here")
	}
}
