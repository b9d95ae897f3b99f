package proxy_test

import (
	"bufio"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// forwardProxy connects to where it is asked to, if that is allowed.
func forwardProxy(t *testing.T, allowed string, asked chan<- string, secure *tls.Config) netip.AddrPort {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if secure != nil {
		ln = tls.NewListener(ln, secure)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				br := bufio.NewReader(c)
				r, err := http.ReadRequest(br)
				if err != nil {
					return
				}
				asked <- r.Method + " " + r.Host
				if r.Host != allowed {
					io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
					return
				}
				to, err := net.Dial("tcp", allowed)
				if err != nil {
					return
				}
				defer to.Close()
				io.WriteString(c, "HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n")
				go io.Copy(to, br)
				io.Copy(c, to)
			}()
		}
	}()
	return netip.MustParseAddrPort(ln.Addr().String())
}

// TestForwardProxy: a host outside is reached through a forward proxy, by requests, and by connections in TLS with that proxy; what that does not connect to cannot be called.
func TestForwardProxy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	tcp := a.listen()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello\n")
			c.Close()
		}
	}()
	web := a.serve("web", nil)
	asked, p, ca := make(chan string, 20), newPKI(t), filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	rule := func(host, target, more string) {
		target, port, _ := net.SplitHostPort(target)
		w.apply(fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: %s}\nspec: {host: %s, trafficPolicy: {tunnel: {targetHost: %s, targetPort: %s}%s}}\n", host, host, target, port, more))
	}
	w.apply(entry("api.example.net", "HTTP", forwardProxy(t, web.addr, asked, nil), ""))
	rule("api.example.net", web.addr, "")
	w.apply(entry("db.example.net", "TCP", forwardProxy(t, tcp.Addr().String(), asked, &tls.Config{Certificates: []tls.Certificate{p.server("db.example.net")}}), ""))
	rule("db.example.net", tcp.Addr().String(), fmt.Sprintf(", tls: {mode: SIMPLE, caCertificates: %q}", ca))
	f := a.caller("frontend")
	for range 2 {
		if got := f.send(f.external("GET", "api.example.net", "/x")); got.StatusCode != 200 || got.seen.URI != "/x" {
			t.Errorf("%d %+v", got.StatusCode, got.seen)
		}
	}
	name, err := mesh.ParseExternal("db.example.net")
	if err != nil {
		t.Fatal(err)
	}
	vip, err := a.VIP(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := f.dialer().Dial("tcp", net.JoinHostPort(vip.String(), fmt.Sprint(servicePort)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if b, err := io.ReadAll(conn); string(b) != "hello\n" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if got := []string{<-asked, <-asked}; got[0] != "CONNECT "+web.addr || got[1] != "CONNECT "+tcp.Addr().String() || len(asked) > 0 {
		t.Errorf("it was asked %q", got)
	}
	rule("api.example.net", "192.0.2.1:443", "")
	f.send(f.external("GET", "api.example.net", "/x")).expect(t, 503, "UF connection failed")
	if len(asked) == 0 {
		t.Fatal("it was not asked")
	}
	if got := <-asked; got != "CONNECT 192.0.2.1:443" {
		t.Errorf("it was asked %q", got)
	}
}
