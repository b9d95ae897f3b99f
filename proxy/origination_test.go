package proxy_test

import (
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// TestTLSOutside: an application speaks plainly, and a host outside of the mesh gets TLS, of HTTP/1 and HTTP/2; who is not the one that
// policy names gets nothing.
func TestTLSOutside(t *testing.T) {
	t.Parallel()
	for i, c := range []struct {
		protocol, proto, tls, want string
		status                     int
	}{
		{"HTTP", "HTTP/1.1", "sni: example.com", "", 200}, {"HTTP2", "HTTP/2.0", "sni: example.com", "", 200},
		{"GRPC", "HTTP/2.0", "sni: other.example.org, subjectAltNames: [example.com]", "", 200},
		{"HTTP", "", "sni: other.example.org", "UF connection failed", 503}, {"HTTP", "", "sni: example.com, subjectAltNames: [example.org]", "UF connection failed", 503},
	} {
		t.Run(fmt.Sprint(c.protocol, i), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			a := w.host("a")
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, r.Proto, " ", r.TLS != nil) }))
			srv.EnableHTTP2, srv.Config.ErrorLog = true, log.New(io.Discard, "", 0)
			srv.StartTLS()
			t.Cleanup(srv.Close)
			ca := filepath.Join(t.TempDir(), "ca.pem")
			if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
				t.Fatal(err)
			}
			w.apply(entry("api.example.net", c.protocol, netip.MustParseAddrPort(srv.Listener.Addr().String()), ""))
			w.apply(fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: api}\nspec: {host: api.example.net, trafficPolicy: {portLevelSettings: [{port: {number: %d}, tls: {mode: SIMPLE, caCertificates: %q, %s}}]}}\n",
				servicePort, ca, c.tls))
			f := a.caller("frontend")
			for range 2 {
				got := f.send(f.external("GET", "api.example.net", "/"))
				if c.status != 200 {
					got.expect(t, c.status, c.want)
				} else if got.StatusCode != 200 || got.body != c.proto+" true" {
					t.Errorf("%d %q %s, want %s", got.StatusCode, got.body, got.Header.Get("Mesh-Error"), c.proto)
				}
			}
		})
	}
}
