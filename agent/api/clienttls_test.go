package api_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/api/apitest"
)

// TestWhoIsCalled: which certificates of an API a client takes.
func TestWhoIsCalled(t *testing.T) {
	spiffe := func(id string) []*url.URL { return []*url.URL{{Scheme: "spiffe", Host: "test.mesh", Path: id}} }
	node := apitest.Node(1).String()
	ca, mesh, other := apitest.NewAuthority("a"), apitest.NewAuthority("a", spiffe("")...), apitest.NewAuthority("a", &url.URL{Scheme: "spiffe", Host: "other.mesh"})
	below, wrong, plain := ca.Below(spiffe("")...), other.Below(spiffe("")...), ca.Below()
	local := []net.IP{net.IPv4(127, 0, 0, 1)}
	for _, c := range []struct {
		what  string
		by    *apitest.Authority
		cert  x509.Certificate
		roots []byte
		want  string
	}{
		{"named by its address", ca, x509.Certificate{IPAddresses: local}, ca.PEM(), ""},
		{"of another host", ca, x509.Certificate{DNSNames: []string{"mesh.example"}}, ca.PEM(), "127.0.0.1"},
		{"of nobody", ca, x509.Certificate{}, ca.PEM(), "127.0.0.1"},
		{"of an authority that is not known", ca, x509.Certificate{IPAddresses: local}, nil, "of an authority that is not known here"},
		{"of another authority", ca, x509.Certificate{IPAddresses: local}, mesh.PEM(), "of an authority that is not known here"},
		{"not for servers", ca, x509.Certificate{IPAddresses: local, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca.PEM(), "incompatible key usage"},
		{"a server of the mesh", mesh, x509.Certificate{URIs: spiffe("/server/" + node)}, mesh.PEM(), ""},
		{"one of two roots", mesh, x509.Certificate{URIs: spiffe("/server/" + node)}, append(ca.PEM(), mesh.PEM()...), ""},
		{"a host of the mesh", mesh, x509.Certificate{URIs: spiffe("/node/" + node)}, mesh.PEM(), "which is no server of the mesh, and names no host"},
		{"a service of the mesh", mesh, x509.Certificate{URIs: spiffe("/ns/default/sa/web")}, mesh.PEM(), "which is no server of the mesh, and names no host"},
		{"a server that has a name, too", mesh, x509.Certificate{URIs: spiffe("/server/" + node), DNSNames: []string{"mesh.example"}}, mesh.PEM(), "127.0.0.1"},
		{"a server by an authority of another mesh", other, x509.Certificate{URIs: spiffe("/server/" + node)}, other.PEM(), "is of an authority that is not of its mesh"},
		{"a server by an authority of no mesh", ca, x509.Certificate{URIs: spiffe("/server/" + node)}, ca.PEM(), "is of an authority that is not of its mesh"},
		{"a server by the mesh's authority below another", below, x509.Certificate{URIs: spiffe("/server/" + node)}, ca.PEM(), ""},
		{"a server by an authority below that of another mesh", wrong, x509.Certificate{URIs: spiffe("/server/" + node)}, other.PEM(), "is of an authority that is not of its mesh"},
		{"a server by another authority below that", plain, x509.Certificate{URIs: spiffe("/server/" + node)}, ca.PEM(), "is of an authority that is not of its mesh"},
		{"a server, by the system's authorities", mesh, x509.Certificate{URIs: spiffe("/server/" + node)}, nil, "127.0.0.1"},
	} {
		asked := false
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked = true; w.Write([]byte(`{}`)) }))
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{c.by.Sign(&c.cert)}}
		srv.Config.ErrorLog = log.New(io.Discard, "", 0)
		srv.StartTLS()
		client, err := api.NewClientTLS(srv.URL, "secret", api.TLS{CA: c.roots})
		if err == nil {
			_, err = client.Status(t.Context())
		}
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) || asked != (c.want == "") {
			t.Errorf("%s: %v, asked %v; want %q", c.what, err, asked, c.want)
		}
		srv.Close()
	}
}

func TestBadFilesForTLS(t *testing.T) {
	ca := apitest.NewAuthority("a")
	cert, key := apitest.PEM(ca.Sign(&x509.Certificate{}))
	_, other := apitest.PEM(ca.Sign(&x509.Certificate{}))
	for want, how := range map[string]api.TLS{
		"the file of authorities has no certificate in PEM":        {CA: []byte("x")},
		"a certificate and its key are needed, not one of them":    {Certificate: cert},
		"certificate and key: tls: private key does not match":     {Certificate: cert, Key: other},
		"certificate and key: tls: failed to find any PEM data in": {Certificate: []byte("x"), Key: key},
	} {
		if _, err := api.NewClientTLS("https://a:1", "", how); err == nil || !strings.HasPrefix(err.Error(), `address "https://a:1": `+want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
