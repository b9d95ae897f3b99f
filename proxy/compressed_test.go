package proxy_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"testing"
)

// bomb is a body that is a thousand times as long once it is decompressed.
func bomb(t testing.TB) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(make([]byte, 2<<20))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestS13NothingIsDecompressed: what is compressed comes out as it went in, on each way: to an application of the same host, through a tunnel, and
// through a gateway, of HTTP/1 and HTTP/2.
func TestS13NothingIsDecompressed(t *testing.T) {
	t.Parallel()
	sent := bomb(t)
	serve := func(on *host, svc string) {
		on.serve(svc, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got, err := io.ReadAll(r.Body)
			if err != nil || !bytes.Equal(got, sent) || r.Header.Get("Content-Encoding") != "gzip" {
				t.Errorf("the application has %d bytes of the %d, %q, %v", len(got), len(sent), r.Header.Get("Content-Encoding"), err)
			}
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(sent)
		}))
	}
	check := func(t *testing.T, a *answer) {
		t.Helper()
		if a.StatusCode != 200 || a.body != string(sent) || a.Header.Get("Content-Encoding") != "gzip" || a.err != nil {
			t.Errorf("%d, the caller has %d bytes of the %d, %v", a.StatusCode, len(a.body), len(sent), a.err)
		}
	}
	both(t, func(t *testing.T, _ *world, c *caller, on *host) {
		serve(on, "zip")
		check(t, c.send(c.request("POST", "zip", "/", bytes.NewReader(sent), "Content-Encoding", "gzip", "Accept-Encoding", "gzip")))
	})
	w, g := edgeWorld(t)
	serve(w.hosts[1], "zip")
	w.apply(gatewayHTTP + `---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: zip}
spec: {hosts: [zip.books.example.com], gateways: [edge], http: [{route: [{destination: {host: zip}}]}]}
`)
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://zip.books.example.com:8081/", bytes.NewReader(sent))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Encoding", "gzip")
	check(t, (&caller{h: g.host, http: g.client(false, nil)}).send(r))
}
