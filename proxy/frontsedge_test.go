package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy"
)

// fronted is a gateway behind proxies at networks; web and db, which says who asked for it, are behind it.
func fronted(t *testing.T, f proxy.Fronts, networks ...string) (*world, *gatewayHost) {
	w := newWorld(t)
	for _, n := range networks {
		f.From = append(f.From, netip.MustParsePrefix(n))
	}
	g := w.gateway("edge", func(c *proxy.Config) { c.Fronts = f })
	w.host("b").serve("web", nil)
	w.apply(gatewayHTTP)
	return w, g
}

// TestS36TrustedProxies: what proxies say of clients counts, as far as there are such, for policy and for services; what others say is dropped.
func TestS36TrustedProxies(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		fronts  proxy.Fronts
		from    string
		xff     []string
		proto   string
		client  string
		isHTTPS bool
	}{
		{"one", proxy.Fronts{Hops: 1}, "127.0.0.0/8", []string{"192.0.2.9, 192.0.2.1"}, "https", "192.0.2.1", true},
		{"two", proxy.Fronts{Hops: 2}, "127.0.0.0/8", []string{"192.0.2.9", "192.0.2.1,2001:db8::7"}, "http", "192.0.2.1", false},
		{"IPv6", proxy.Fronts{Hops: 1}, "127.0.0.0/8", []string{"2001:db8::1"}, "", "2001:db8::1", false},
		{"fewer than there should be", proxy.Fronts{Hops: 2}, "127.0.0.0/8", []string{"192.0.2.1"}, "ftp", "127.0.0.1", false},
		{"no address", proxy.Fronts{Hops: 1}, "127.0.0.0/8", []string{"192.0.2.9, unknown"}, "HTTPS", "127.0.0.1", false},
		{"a port", proxy.Fronts{Hops: 1}, "127.0.0.0/8", []string{"192.0.2.1:80"}, "", "127.0.0.1", false},
		{"nothing", proxy.Fronts{Hops: 1}, "127.0.0.0/8", nil, "", "127.0.0.1", false},
		{"none trusted", proxy.Fronts{}, "127.0.0.0/8", []string{"192.0.2.1"}, "https", "127.0.0.1", false},
		{"others", proxy.Fronts{Hops: 1}, "192.0.2.0/24", []string{"192.0.2.1"}, "https", "127.0.0.1", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, g := fronted(t, c.fronts, c.from)
			w.apply(authorization("DENY", "ingressgateway", fmt.Sprintf(`[{from: [{source: {notRemoteIpBlocks: [%q]}}], to: [{operation: {paths: [/asked]}}]}]`, c.client)))
			var headers []string
			for _, v := range c.xff {
				headers = append(headers, "X-Forwarded-For", v)
			}
			if c.proto != "" {
				headers = append(headers, "X-Forwarded-Proto", c.proto)
			}
			proto := "http"
			if c.isHTTPS {
				proto = "https"
			}
			for _, path := range []string{"/x", "/asked"} {
				got := g.ask(g.client(false, nil), "http://shop.example.com:8081"+path, headers...)
				if h := got.seen.Header; got.StatusCode != 200 || strings.Join(h.Values("X-Forwarded-For"), "|") != c.client || strings.Join(h.Values("X-Forwarded-Proto"), "|") != proto {
					t.Errorf("%s: %d, %q, %q; want %s, %s", path, got.StatusCode, h.Values("X-Forwarded-For"), h.Values("X-Forwarded-Proto"), c.client, proto)
				}
			}
		})
	}
}

// TestTrustedProxyRedirect: who came to a proxy by https is not sent there again.
func TestTrustedProxyRedirect(t *testing.T) {
	t.Parallel()
	w, g := fronted(t, proxy.Fronts{Hops: 1}, "127.0.0.1/32")
	w.apply(strings.Replace(gatewayHTTP, `hosts: ["shop.example.com"`, `tls: {httpsRedirect: true}
    hosts: ["shop.example.com"`, 1))
	for proto, want := range map[string]int{"http": 301, "https": 200} {
		if got := g.ask(g.client(false, nil), "http://shop.example.com:8081/x", "X-Forwarded-Proto", proto); got.StatusCode != want {
			t.Errorf("%s: %d, want %d", proto, got.StatusCode, want)
		}
	}
}

// behind is a client of a gateway whose connections begin with a header.
func (g *gatewayHost) behind(header string, cfg *tls.Config) *http.Client {
	t := &http.Transport{TLSClientConfig: cfg, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		_, port, _ := net.SplitHostPort(addr)
		c, err := (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(g.addr.String(), port))
		if err == nil {
			_, err = io.WriteString(c, header)
		}
		return c, err
	}}
	g.w.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

// TestS25ProxyProtocol: connections of proxies begin with a header, plain ones and those of TLS; others, and headers that cannot be read, get nothing.
func TestS25ProxyProtocol(t *testing.T) {
	t.Parallel()
	w, g := fronted(t, proxy.Fronts{Proxy: true}, "127.0.0.0/8")
	p := newPKI(t)
	g.secret("shop", nil, p.server("shop.example.com"))
	w.apply(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: secure}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 8443, name: https, protocol: HTTPS}, hosts: [shop.example.com], tls: {mode: SIMPLE, credentialName: shop}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: secure}
spec:
  hosts: [shop.example.com]
  gateways: [secure]
  http: [{route: [{destination: {host: web}}]}]
`)
	w.apply(authorization("DENY", "ingressgateway", `[{from: [{source: {notIpBlocks: [192.0.2.0/24, 127.0.0.1]}}]}]`))
	for header, want := range map[string]string{
		"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n": "200 192.0.2.1", "PROXY UNKNOWN\r\n": "200 127.0.0.1", "PROXY TCP4 198.51.100.1 192.0.2.2 1000 80\r\n": "403 ",
		"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc0\x00\x02\x02\x01\x02\x03\x04": "200 192.0.2.7", "PROXY TCP4 x y 1 2\r\n": "closed", "": "closed",
	} {
		for _, url := range []string{"http://shop.example.com:8081/", "https://shop.example.com:8443/"} {
			r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := "closed"
			if res, err := g.behind(header, &tls.Config{RootCAs: p.pool()}).Do(r); err == nil {
				res.Body.Close()
				a := g.ask(g.behind(header, &tls.Config{RootCAs: p.pool()}), url)
				got = fmt.Sprintf("%d %s", a.StatusCode, a.seen.Header.Get("X-Forwarded-For"))
			}
			if got != want {
				t.Errorf("%s, %q: %s, want %s", url, header, got, want)
			}
		}
	}
	// A second request on the connection has no header.
	conn, err := net.Dial("tcp", netip.AddrPortFrom(g.addr, 8081).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n")
	br := bufio.NewReader(conn)
	for range 2 {
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
		res, err := http.ReadResponse(br, nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("%v, %v", res, err)
		}
		io.Copy(io.Discard, res.Body)
	}
	// Of who is no proxy nothing is taken for a header.
	_, other := fronted(t, proxy.Fronts{Proxy: true}, "192.0.2.0/24")
	if a := other.ask(other.client(false, nil), "http://shop.example.com:8081/"); a.StatusCode != 200 {
		t.Errorf("%d", a.StatusCode)
	}
	if res, err := other.behind("PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n", nil).Get("http://shop.example.com:8081/"); err == nil {
		if res.Body.Close(); res.StatusCode != 400 {
			t.Errorf("%d", res.StatusCode)
		}
	}
}

// TestProxyProtocolOut: an application of connections is told who called, here and on another host, and by a gateway; then comes what the caller says.
func TestProxyProtocolOut(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		ln := on.listen()
		on.register("db", mesh.TCP, ln)
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					var got []byte
					for one := make([]byte, 1); !strings.HasSuffix(string(got), "hello!"); got = append(got, one...) {
						if _, err := io.ReadFull(conn, one); err != nil {
							return
						}
					}
					conn.Write(got)
				}()
			}
		}()
		for version, begins := range map[string]string{"V1": "PROXY TCP4 " + c.ip.String() + " 127.", "V2": "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + string(c.ip.AsSlice())} {
			w.apply("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: db}\nspec: {host: db, trafficPolicy: {proxyProtocol: {version: " + version + "}}}\n")
			conn := c.dial("db")
			io.WriteString(conn, "hello!")
			b, err := io.ReadAll(conn)
			if got := string(b); err != nil || !strings.HasPrefix(got, begins) || !strings.HasSuffix(got, "hello!") || len(got) > 80 {
				t.Errorf("%s: %q, %v", version, got, err)
			}
		}
	})
}
