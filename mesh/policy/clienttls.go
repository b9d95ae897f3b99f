package policy

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// tls compiles the tls of a trafficPolicy.
func (c *destinationCompiler) tls(path string, t *istio.ClientTLS) (out TLS) {
	files := []struct{ field, value string }{{"clientCertificate", t.ClientCertificate}, {"privateKey", t.PrivateKey}, {"caCertificates", t.CACertificates}, {"caCrl", t.CACRL}}
	byFile := files
	files = append(files, struct{ field, value string }{"credentialName", t.CredentialName})
	ours := c.ours && !c.maybe
	switch t.Mode {
	case "DISABLE", "ISTIO_MUTUAL":
		if t.Mode == "ISTIO_MUTUAL" && !c.ours {
			return c.meshTLS(path, t, files)
		}
		for _, f := range append(files, struct{ field, value string }{"sni", t.SNI}) {
			if f.value != "" {
				c.fail(path+"."+f.field, "remove it", "has no effect with mode: %s", t.Mode)
			}
		}
		if t.SubjectAltNames != nil {
			c.fail(path+".subjectAltNames", "remove it", "has no effect with mode: %s", t.Mode)
		}
		switch {
		case t.Mode == "DISABLE" && ours:
			c.fail(path+".mode", "write ISTIO_MUTUAL, or leave out tls", "DISABLE: between hosts of the mesh calls are always encrypted, and both sides prove who they are")
		}
		out.Set = true
		return out
	case "SIMPLE", "MUTUAL":
	default:
		c.fail(path+".mode", "write SIMPLE, MUTUAL, ISTIO_MUTUAL or DISABLE", "%q is no mode", t.Mode)
		return out
	}
	if ours {
		c.fail(path+".mode", "write ISTIO_MUTUAL, or leave out tls", "%s: it is for hosts outside of the mesh, and calls within are always mutual TLS", t.Mode)
	}
	if t.CredentialName != "" {
		c.secretName(path+".credentialName", t.CredentialName)
	}
	for _, f := range byFile {
		if f.value != "" && t.CredentialName != "" {
			c.fail(path+"."+f.field, "put it into the Secret, and remove it here", "stands beside credentialName")
		}
		if f.value != "" && !filepath.IsAbs(f.value) {
			c.fail(path+"."+f.field, "write its whole path", "%q is not the path of a file on the hosts that call", f.value)
		}
	}
	switch certs := [2]bool{t.ClientCertificate != "", t.PrivateKey != ""}; {
	case t.Mode == "MUTUAL" && certs != [2]bool{true, true} && t.CredentialName == "":
		c.fail(path, "write both, or credentialName", "MUTUAL needs clientCertificate and privateKey")
	case t.Mode == "SIMPLE" && certs != [2]bool{}:
		c.fail(path+".mode", "write MUTUAL, or remove clientCertificate and privateKey", "SIMPLE: shows no certificate")
	}
	if t.InsecureSkipVerify {
		c.fail(path+".insecureSkipVerify", "put the certificate of the other side, or of who signed it, into a file, and name that in caCertificates",
			"anybody on the way could take the place of the other side")
	}
	if t.SNI != "" && !isHost(t.SNI) {
		c.fail(path+".sni", "write a name such as api.example.com", "%q is not a name", t.SNI)
	}
	full(c.compiler, path+".subjectAltNames", "name one, or remove it: then it is the host's", t.SubjectAltNames)
	for i, s := range t.SubjectAltNames {
		if s == "" || strings.ContainsAny(s, ", \t\n*") {
			c.fail(fmt.Sprintf("%s.subjectAltNames[%d]", path, i), "write a DNS name, an address or a URI", "%q is no name of a certificate", s)
		}
	}
	out = TLS{On: true, Set: true, CertFile: t.ClientCertificate, KeyFile: t.PrivateKey, CAFile: t.CACertificates, CRLFile: t.CACRL, SNI: t.SNI, SANs: strings.Join(t.SubjectAltNames, ",")}
	if t.CredentialName != "" {
		out.Credential, out.Anonymous = SecretRef{c.key.Namespace, t.CredentialName}, t.Mode == "SIMPLE"
	}
	return out
}

// meshTLS compiles ISTIO_MUTUAL for a host outside: a gateway of another mesh, whose trust domain is federated with ours.
func (c *destinationCompiler) meshTLS(path string, t *istio.ClientTLS, files []struct{ field, value string }) TLS {
	for _, f := range files {
		if f.value != "" {
			c.fail(path+"."+f.field, "remove it", "has no effect with mode: ISTIO_MUTUAL: the caller's own certificate is shown")
		}
	}
	if t.SNI != "" && !isHost(t.SNI) {
		c.fail(path+".sni", "write a name such as api.example.com", "%q is not a name", t.SNI)
	}
	if len(t.SubjectAltNames) == 0 {
		c.fail(path+".subjectAltNames", "write who it is, as spiffe://OTHER-TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT of its gateway, or mode SIMPLE or MUTUAL",
			"is missing, and a host outside of the mesh is known by its identity with mode: ISTIO_MUTUAL")
	}
	for i, s := range t.SubjectAltNames {
		if _, err := mesh.ParseIdentity(s); err != nil {
			c.fail(fmt.Sprintf("%s.subjectAltNames[%d]", path, i), "write it as spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT", "%q is no identity", s)
		}
	}
	return TLS{On: true, Set: true, Mesh: true, SNI: t.SNI, SANs: strings.Join(t.SubjectAltNames, ",")}
}

// tunnel compiles the tunnel of a trafficPolicy.
func (c *destinationCompiler) tunnel(path string, t *istio.Tunnel) string {
	if c.ours && !c.maybe {
		c.fail(path, "name a forward proxy outside, which a ServiceEntry declares", "is for hosts outside of the mesh")
	}
	if t.Protocol != "" && t.Protocol != "CONNECT" {
		c.fail(path+".protocol", "write CONNECT, which forward proxies speak, or leave it out", "%q is not supported", t.Protocol)
	}
	ip, err := netip.ParseAddr(t.TargetHost)
	if !isHost(t.TargetHost) && (err != nil || ip.Zone() != "") {
		c.fail(path+".targetHost", "write a name such as api.example.com, or an address", "%q is no host", t.TargetHost)
	}
	if t.TargetPort == 0 || t.TargetPort > 65535 {
		c.fail(path+".targetPort", "write the port that the proxy is to connect to", "%d is no port", t.TargetPort)
	}
	return net.JoinHostPort(t.TargetHost, fmt.Sprint(t.TargetPort))
}

// isHost reports whether s is a DNS name.
func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil || len(s) > 253 {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if mesh.CheckLabel("part", strings.ToLower(part)) != nil {
			return false
		}
	}
	return true
}
