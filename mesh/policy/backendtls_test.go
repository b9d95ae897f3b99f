package policy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// authority is the certificate of an authority, in PEM.
func authority(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func configMap(name, ca string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata: {ca.crt: %q}\n", name, ca)
}

func backendPolicy(name, spec string) string {
	return fmt.Sprintf("---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: %s}\nspec: %s\n", name, spec)
}

const outsideAPI = `
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside}
spec: {hosts: [api.example.com, other.example.com, said.example.com], location: MESH_EXTERNAL, resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: admin, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec: {hosts: [db.default.svc.cluster.local], location: MESH_INTERNAL, resolution: STATIC, endpoints: [{address: 192.0.2.1}], ports: [{number: 80, name: http, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: said}
spec: {host: said.example.com, trafficPolicy: {tls: {mode: SIMPLE, sni: said.example.org}}, subsets: [{name: plain, trafficPolicy: {tls: {mode: DISABLE}}}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api}
spec: {host: api.example.com, subsets: [{name: v1, labels: {v: v1}}, {name: own, trafficPolicy: {portLevelSettings: [{port: {number: 81}, tls: {mode: SIMPLE, sni: own.example.org}}]}}]}
`

// TestBackendTLSPolicies: which of them says how a port is called; what is not there is trusted by nobody.
func TestBackendTLSPolicies(t *testing.T) {
	one, two := authority(t), authority(t)
	ps, err := Parse("x", []byte(strings.TrimPrefix(outsideAPI, "\n---\n")+configMap("one", one)+configMap("two", two)+
		backendPolicy("all", `{targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: outside}], validation: {hostname: all.example.org, wellKnownCACertificates: System}}`)+
		backendPolicy("port", `{targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: outside, sectionName: admin}], validation: {hostname: port.example.org, caCertificateRefs: [{group: "", kind: ConfigMap, name: one}, {group: "", kind: ConfigMap, name: two}],
 subjectAltNames: [{type: Hostname, hostname: a.example.org}, {type: URI, uri: "spiffe://x/y"}]}}`)+
		backendPolicy("service", `{targetRefs: [{group: "", kind: Service, name: db}], validation: {hostname: db.example.org, caCertificateRefs: [{group: "", kind: ConfigMap, name: gone}]}}`)+
		backendPolicy("younger", `{targetRefs: [{group: "", kind: Service, name: db}], validation: {hostname: x.example.org, wellKnownCACertificates: System}}`)+
		backendPolicy("ours", `{targetRefs: [{group: "", kind: Service, name: web}], validation: {hostname: x.example.org, wellKnownCACertificates: System}}`)+
		backendPolicy("noport", `{targetRefs: [{group: "", kind: Service, name: db, sectionName: x}], validation: {hostname: x.example.org, wellKnownCACertificates: System}}`)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range ps {
		ps[i].Created = uint64(i + 1)
	}
	m := Compile(td, 1, ps)
	both := one + "\n" + two + "\n"
	for _, c := range []struct {
		host, subset string
		port         uint16
		want         TLS
	}{
		{"api.example.com", "", 80, TLS{On: true, Set: true, SNI: "all.example.org"}},
		{"api.example.com", "v1", 80, TLS{On: true, Set: true, SNI: "all.example.org"}},
		{"api.example.com", "v1", 81, TLS{On: true, Set: true, SNI: "port.example.org", CA: both, SANs: "a.example.org,spiffe://x/y"}},
		{"api.example.com", "own", 81, TLS{On: true, Set: true, SNI: "own.example.org"}},
		{"other.example.com", "", 80, TLS{On: true, Set: true, SNI: "all.example.org"}},
		{"other.example.com", "", 81, TLS{On: true, Set: true, SNI: "port.example.org", CA: both, SANs: "a.example.org,spiffe://x/y"}},
		{"said.example.com", "", 80, TLS{On: true, Set: true, SNI: "said.example.org"}},
		{"said.example.com", "plain", 81, TLS{Set: true}},
		{"db.default.svc.cluster.local", "", 80, TLS{On: true, Set: true, SNI: "db.example.org", Untrusted: true}},
		{"web.default.svc.cluster.local", "", 80, TLS{}},
	} {
		svc, ok := m.ResolveHost(c.host, "default")
		got, _, ok2 := m.Service(svc).Destination.For(c.subset, c.port)
		if !ok || !ok2 || got.TLS != c.want {
			t.Errorf("%s %s %d: %+v, want %+v", c.host, c.subset, c.port, got.TLS, c.want)
		}
	}
	if noPolicy.Destination.Traffic.TLS.Set {
		t.Error("the default of all services has changed")
	}
	if got, want := problems(m), "IST0101 default/service, Conflicted default/younger, IST0101 default/ours, IST0101 default/noport"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestBackendTLSPolicyThatIsNotUnderstood denies what it is for.
func TestBackendTLSPolicyThatIsNotUnderstood(t *testing.T) {
	for target, want := range map[string]string{`{group: "", kind: Service, name: web}`: "web", `{group: networking.istio.io, kind: ServiceEntry, name: x}`: ""} {
		m := Compile(td, 1, []mesh.Policy{{PolicyKey: mesh.PolicyKey{Group: gatewayGroup, Kind: "BackendTLSPolicy", Namespace: "default", Name: "x"},
			APIVersion: gatewayGroup + "/v1", Source: []byte(strings.TrimPrefix(backendPolicy("x", "{targetRefs: ["+target+"], newer: 1}"), "---\n"))}})
		if got := m.Service(mesh.MustServiceName("web")).Invalid != ""; got != (want == "web") {
			t.Errorf("%s: web is denied: %v", target, got)
		}
		id, err := mesh.WorkloadIdentity(td, "default", "a")
		if err != nil {
			t.Fatal(err)
		}
		d := m.Authorize(&Target{Service: mesh.MustServiceName("web"), Port: 80}, &Request{Method: "GET", Path: "/", Source: Source{Identity: id}})
		if d.Allow != (want == "web") {
			t.Errorf("%s: %+v", target, d)
		}
	}
}
