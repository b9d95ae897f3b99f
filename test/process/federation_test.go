//go:build process && linux

package process

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/test/lab"
)

// TestFederation: a service of one mesh calls one of another through that one's gateway, with the certificates that both meshes give anyway. Policy there
// knows it by its own name, and it is shut out at once when its trust domain is.
func TestFederation(t *testing.T) {
	a, b := lab.NewDomain(t, "a.mesh", 127, 1, 0).Host(1), lab.NewDomain(t, "b.mesh", 128, 1, 0).Host(1)
	federate := func(at, with *lab.Host, td string) {
		if _, err := at.API.Federate(t.Context(), api.Federate{TrustDomain: td, Bundle: with.CLI("ca", "export-bundle", "--format", "spiffe")}); err != nil {
			t.Fatal(err)
		}
	}
	apply := func(at *lab.Host, docs string) {
		var writes []api.Write
		for doc := range strings.SplitSeq(docs, "---\n") {
			writes = append(writes, api.Write{Source: doc})
		}
		if _, err := at.API.Apply(t.Context(), api.Apply{Writes: writes}); err != nil {
			t.Fatal(err)
		}
	}
	allow := func(principal string) {
		apply(b, fmt.Sprintf(`apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: partners}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  rules: [{from: [{source: {principals: [%s]}}]}]
`, principal))
	}
	federate(b, a, "a.mesh")
	serve(b, "v1")
	if _, err := b.API.Register(t.Context(), []byte("name: ingressgateway\nprotocol: gateway\nlabels: {istio: ingressgateway}\n")); err != nil {
		t.Fatal(err)
	}
	b.AwaitUsable("web", 1)
	allow("a.mesh/ns/default/sa/caller")
	apply(b, `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8443, name: https, protocol: HTTPS}
    tls: {mode: ISTIO_MUTUAL}
    hosts: [web.b.example]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web.b.example]
  gateways: [edge]
  http:
  - route: [{destination: {host: web}}]
`)
	a.Calls()
	apply(a, fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: other}
spec:
  hosts: [web.b.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: %s, ports: {http: 8443}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: other}
spec:
  host: web.b.example
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL, subjectAltNames: ["spiffe://b.mesh/ns/default/sa/ingressgateway"]}}
`, b.Addr()))
	client := newClient(t, a)
	call := func(want int) func() error {
		return func() error {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://web.b.example/", nil)
			if err != nil {
				return err
			}
			resp, err := client.Do(r)
			if err != nil {
				return err
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				return fmt.Errorf("%s, mesh-error %q", resp.Status, resp.Header.Get("mesh-error"))
			}
			return nil
		}
	}
	await := func(what string, want int) {
		t.Helper()
		lab.Await(t, what, 20*time.Second, call(want))
	}
	await("a refusal: the caller's mesh does not know the other one", http.StatusServiceUnavailable)
	federate(a, b, "b.mesh")
	await("a call of one mesh to the other", http.StatusOK)
	if st, err := a.API.CA(t.Context()); err != nil || len(st.Federated) != 1 || len(st.Federated[0].Roots) != 1 || st.Federated[0].TokenKeys != 1 {
		t.Errorf("a.mesh knows %+v, %v", st.Federated, err)
	}

	allow("a.mesh/ns/default/sa/somebody")
	await("a refusal by policy: it is another service's call", http.StatusForbidden)
	allow("b.mesh/ns/default/sa/caller")
	await("a refusal by policy: the same name of the other trust domain is somebody else", http.StatusForbidden)
	allow("a.mesh/ns/default/sa/caller")
	await("a call as before", http.StatusOK)

	if c, err := tls.Dial("tcp", b.Addr()+":8443", &tls.Config{InsecureSkipVerify: true, ServerName: "web.b.example"}); err == nil { // TLS 1.3: who is refused learns it when it reads
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err = c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("a client without a certificate is not refused: %v", err)
		}
		c.Close()
	}
	if _, err := b.API.Federate(t.Context(), api.Federate{TrustDomain: "a.mesh", Remove: true}); err != nil {
		t.Fatal(err)
	}
	await("a refusal: its trust domain is not known any more", http.StatusServiceUnavailable)
}

func isTimeout(err error) bool {
	n, ok := err.(net.Error)
	return ok && n.Timeout()
}
