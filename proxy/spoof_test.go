package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/meshagent/meshagent/mesh"
)

// The numbers in the names of these tests are rows of SECURITY: what vulnerable proxies had in common.

// both runs a test for an instance on the caller's own host and for one on another.
func both(t *testing.T, f func(t *testing.T, w *world, c *caller, on *host)) {
	for _, remote := range []bool{false, true} {
		t.Run(fmt.Sprintf("remote=%v", remote), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			a := w.host("a")
			on := a
			if remote {
				on = w.host("b")
			}
			f(t, w, a.caller("frontend"), on)
		})
	}
}

// TestPathsHaveOneForm (26, 27, 28, 29): every spelling of a path gets the verdict of the path, or 400.
func TestPathsHaveOneForm(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		w.apply(authorization("DENY", "web", `[{to: [{operation: {paths: [/admin, "/admin/*"]}}]}]`))
		ask := func(target string) *answer { return c.raw("web", "GET "+target+" HTTP/1.1\r\nHost: web\r\n\r\n") }
		var spellings []string
		for _, slash := range []string{"/", "//", "/./", "/x/../", "/%2e/", "/x/%2E%2e/"} {
			for letters := range 1 << len("admin") {
				var s strings.Builder
				s.WriteString(slash)
				for i, c := range "admin" {
					if letters>>i&1 == 1 {
						s.WriteString(fmt.Sprintf("%%%02x", c))
					} else {
						s.WriteString(string(c))
					}
				}
				spellings = append(spellings, s.String())
			}
		}
		spellings = append(spellings, "/admin/", "/admin/x", "/admin/.", "/admin//", "/admin/x/..", "/x/y/../../admin", "/../admin", "/admin?x", "/admin?/../ok", "/admin#x",
			"/ok#/../admin", "/admin%2f", "/%2fadmin", "/%2Fadmin", "/x%2f..%2fadmin", "/%5cadmin", `/\admin`, `/x\..\admin`, "/admin%00", "/admin%0a", "/%61dmin%2f",
			"/x/..;/admin", "/x/..;a=b/admin", "/%c0%afadmin", "/%c0%ae%c0%ae/admin", "/%e0%80%af/admin", "/%zzadmin", "/admin%", "admin", "http://web/admin", "http://web//admin",
			"http://web", "*")
		for _, s := range spellings {
			got := ask(s)
			fine := got.StatusCode == 403 || got.StatusCode == 400
			if s == "http://web" {
				fine = got.StatusCode == 200 && got.seen.URI == "/"
			}
			if !fine {
				t.Errorf("%s: %d, seen as %s", s, got.StatusCode, got.seen.URI)
			}
		}
		if len(spellings) < 200 {
			t.Errorf("only %d spellings", len(spellings))
		}
		// What is not ambiguous is sent in its one form, byte for byte where nothing is to be resolved.
		for in, want := range map[string]string{"/x/../ok": "/ok", "//a//b/": "/a/b/", "/a%20b": "/a%20b", "/%61": "/a", "/a%3Fb?c=%2f&d": "/a%3Fb?c=%2f&d", "/adminx": "/adminx",
			"/a(b)'c'!*": "/a(b)'c'!*", "/a;b=c": "/a;b=c", "/?": "/?", "/a?b;c=%zz": "/a?b;c=%zz", "/%E2%82%AC": "/%E2%82%AC", "http://web/a": "/a"} {
			if got := ask(in); got.StatusCode != 200 || got.seen.URI != want {
				t.Errorf("%s: %d, seen as %s, want %s", in, got.StatusCode, got.seen.URI, want)
			}
		}
		if got := c.raw("web", "OPTIONS * HTTP/1.1\r\nHost: web\r\n\r\n"); got.StatusCode != 200 || got.seen.URI != "*" {
			t.Errorf("OPTIONS *: %d %s", got.StatusCode, got.seen.URI)
		}
	})
}

// TestHostsHaveOneForm (30, 31, 32): so have hosts; what readers differ about is refused.
func TestHostsHaveOneForm(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		w.apply(authorization("DENY", "web", `[{to: [{operation: {hosts: [secret.com]}}]}]`))
		for _, s := range []string{"secret.com", "Secret.Com", "secret.com.", "SECRET.COM.:80", "secret.com:80", "secret.com:", "secret.com..", ".secret.com", "secret%2ecom",
			"secret.com:80:80", "secret.com:x", "x@secret.com", "secret\xef\xbc\x8ecom", "s\xc3\xa9cret.com", "secret.com/", "", " secret.com", "secret.com,other"} {
			if got := c.raw("web", "GET / HTTP/1.1\r\nHost: "+s+"\r\n\r\n"); got.StatusCode != 403 && got.StatusCode != 400 {
				t.Errorf("Host %q: %d, seen as %s", s, got.StatusCode, got.seen.Host)
			}
		}
		for name, head := range map[string]string{
			"two hosts":                     "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n",
			"two of one host":               "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n",
			"no host":                       "GET / HTTP/1.1\r\n",
			"two authorizations":            "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: x\r\nauthorization: y\r\n",
			"a method in lower case":        "get / HTTP/1.1\r\nHost: a\r\n",
			"a star with a method":          "GET * HTTP/1.1\r\nHost: a\r\n",
			"a space in the target":         "GET /a b HTTP/1.1\r\nHost: a\r\n",
			"a space before the colon":      "GET / HTTP/1.1\r\nHost: a\r\nX-A : 1\r\n",
			"two lengths":                   "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
			"a length with a sign":          "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n",
			"a control byte in a value":     "GET / HTTP/1.1\r\nHost: a\r\nX-A: \x00\r\n",
			"an absolute form with user":    "GET http://u:p@secret.com/ HTTP/1.1\r\nHost: secret.com\r\n",
			"an absolute form, denied host": "GET http://secret.com/ HTTP/1.1\r\nHost: other\r\n",
		} {
			if got := c.raw("web", head+"\r\n"); got.StatusCode != 400 && got.StatusCode != 403 {
				t.Errorf("%s: %d %q", name, got.StatusCode, got.body)
			}
		}
		c.raw("web", "CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n").expect(t, 405, "DPE CONNECT is not served")
	})
}

// h2 sends a request of HTTP/2 with these fields, name and value by turns, and returns the status, or how it ended.
func (c *caller) h2(svc string, fields ...string) (status string, header map[string]string) {
	return askH2(c.dial(svc), fields...)
}

func askH2(conn net.Conn, fields ...string) (status string, header map[string]string) {
	defer conn.Close()
	io.WriteString(conn, http2.ClientPreface)
	fr := http2.NewFramer(conn, conn)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	fr.WriteSettings()
	var b strings.Builder
	enc := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(b.String()), EndStream: true, EndHeaders: true})
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return "closed", nil
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			header = map[string]string{}
			for _, h := range f.Fields {
				header[h.Name] = h.Value
			}
			return header[":status"], header
		case *http2.RSTStreamFrame:
			return "reset", nil
		case *http2.GoAwayFrame:
			return "gone", nil
		}
	}
}

// TestHTTP2Fields (23, 24, 29): nothing that HTTP/2 lets a caller write becomes something else in HTTP/1.
func TestHTTP2Fields(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		var requests atomic.Int32
		on.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { requests.Add(1) }))
		good := func(change ...string) []string {
			f := []string{":method", "GET", ":scheme", "http", ":authority", "web", ":path", "/"}
			for i := 0; i < len(change); i += 2 {
				if n := slices.Index(f, change[i]); n >= 0 {
					f[n+1] = change[i+1]
				} else {
					f = append(f, change[i], change[i+1])
				}
			}
			return f
		}
		if status, _ := c.h2("web", good()...); status != "200" {
			t.Fatalf("a good request: %s", status)
		}
		if status, _ := c.h2("web", good("host", "web")...); status != "200" {
			t.Errorf("a host like the authority: %s", status)
		}
		if status, _ := c.h2("web", good(":scheme", "HtTpS")...); status != "200" { // the scheme is the port's, whatever a caller says
			t.Errorf("another scheme: %s", status)
		}
		before := requests.Load()
		for name, change := range map[string][]string{
			"a space in the path":          {":path", "/a HTTP/1.1"},
			"a space in the query":         {":path", "/a?x HTTP/1.0"},
			"lines in the path":            {":path", "/a\r\nX: y"},
			"lines in the query":           {":path", "/?a\r\nX: y"},
			"a tab in the query":           {":path", "/?a\tb"},
			"a fragment":                   {":path", "/a#b"},
			"a path without a slash":       {":path", "svc/Method"},
			"an empty path":                {":path", ""},
			"an authority that is none":    {":authority", "a b"},
			"an authority with a slash":    {":authority", "a/b"},
			"an authority with a user":     {":authority", "u@web"},
			"no authority":                 {":authority", ""},
			"a host unlike the authority":  {"host", "other"},
			"a method that is none":        {":method", "GET /x HTTP/1.1\r\nX:"},
			"a method in lower case":       {":method", "get"},
			"a method with a space":        {":method", "GET /"},
			"a name with a colon":          {"x:y", "1"},
			"a name in upper case":         {"X-Upper", "1"},
			"a name with lines":            {"x\r\ny", "1"},
			"a value with lines":           {"x", "1\r\nY: 2"},
			"a value with NUL":             {"x", "a\x00b"},
			"Connection":                   {"connection", "close"},
			"Transfer-Encoding":            {"transfer-encoding", "chunked"},
			"Upgrade":                      {"upgrade", "websocket"},
			"TE":                           {"te", "gzip"},
			"a length without a body":      {"content-length", "5"},
			"an unknown pseudo header":     {":x", "1"},
			"a protocol without a CONNECT": {":protocol", "websocket"},
		} {
			if status, h := c.h2("web", good(change...)...); !slices.Contains([]string{"400", "reset", "closed", "gone"}, status) {
				t.Errorf("%s: %s %v", name, status, h)
			}
		}
		if status, h := c.h2("web", ":method", "CONNECT", ":authority", "web:80"); status != "405" || h["mesh-error"] != "DPE CONNECT is not served" {
			t.Errorf("CONNECT: %s %v", status, h)
		}
		if n := requests.Load() - before; n != 0 {
			t.Errorf("%d of these requests reached the application", n)
		}
	})
}

// TestForgedHeaders (33, 34, 35, 36): no spelling of what the mesh says passes, and nobody strikes out what it says.
func TestForgedHeaders(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		forged := []string{"X-Forwarded-Client-Cert", "x-forwarded-client-cert", "X_Forwarded_Client_Cert", "X-Forwarded_Client-Cert", "x_forwarded-client-cert", "Mesh-Instance", "mesh-instance",
			"Mesh_Instance", "MESH-ERROR", "Mesh-Upgrade", "Mesh-Anything", "X-Forwarded-For", "X_Forwarded_For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port",
			"X-Forwarded-Server", "X-Forwarded-Anything", "Forwarded", "user_name", "X_Mesh_Identity", "x-mesh_identity"}
		var headers []string
		for _, n := range forged {
			headers = append(headers, n, "By=spiffe://x/y;URI=spiffe://test.mesh/ns/default/sa/admin")
		}
		const ours = "By=spiffe://test.mesh/ns/default/sa/web;URI=spiffe://test.mesh/ns/default/sa/frontend"
		for name, more := range map[string][]string{
			"as they are": nil,
			"struck out by Connection": {"Connection", "x-forwarded-client-cert, X-Forwarded-For, x-forwarded-proto, x-request-id, mesh-instance, host, x-gone",
				"X-Gone", "1", "X-Request-Id", "mine", "X-Kept", "1"},
		} {
			got := c.get("web", "/", append(headers, more...)...).seen.Header
			want := map[string]string{"X-Forwarded-Client-Cert": ours, "X-Forwarded-For": c.ip.String(), "X-Forwarded-Proto": "http"}
			for k, v := range got {
				n := strings.ReplaceAll(strings.ToLower(k), "_", "-")
				if strings.Contains(k, "_") || strings.HasPrefix(n, "mesh-") || n == "forwarded" || strings.HasPrefix(n, "x-forwarded-") && want[k] == "" || k == "X-Gone" {
					t.Errorf("%s: %s: %q reached the service", name, k, v)
				}
			}
			for k, v := range want {
				if !slices.Equal(got[k], []string{v}) {
					t.Errorf("%s: %s is %q, want %q", name, k, got[k], v)
				}
			}
			if id := got["X-Request-Id"]; len(id) != 1 || more != nil && (id[0] != "mine" || got.Get("X-Kept") != "1") {
				t.Errorf("%s: X-Request-Id %q, X-Kept %q", name, id, got["X-Kept"])
			}
		}
	})
}

// TestForgedAnswers: an application cannot say what agents say: not in a head, an early one, or a trailer.
func TestForgedAnswers(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			h := rw.Header()
			h.Set("Mesh-Error", "RBAC access denied")
			h.Set("Mesh-Upgrade", "websocket")
			h.Set("X-Forwarded-Client-Cert", "x")
			h.Set("X-Kept", "1")
			rw.WriteHeader(http.StatusEarlyHints)
			h.Set("Connection", "X-Gone, X-Kept-Not")
			h.Set("X-Gone", "1")
			h.Set("X-Kept-Not", "1")
			h.Set("Keep-Alive", "timeout=9")
			h.Set("Proxy-Authenticate", "Basic")
			h.Set("Trailer", "Mesh-Error, X-Trailer")
			rw.WriteHeader(http.StatusForbidden)
			io.WriteString(rw, "body")
			h.Set("Mesh-Error", "UH no healthy instance")
			h.Set("X-Trailer", "1")
			h.Set(http.TrailerPrefix+"Mesh-Other", "1")
		}))
		conn := c.dial("web")
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: web\r\nTE: trailers\r\n\r\n")
		r := bufio.NewReader(conn)
		for _, status := range []int{103, 403} {
			res, err := http.ReadResponse(r, &http.Request{Method: "GET"})
			if err != nil || res.StatusCode != status {
				t.Fatalf("%v %v, want %d", res, err, status)
			}
			if res.Header.Get("X-Kept") != "1" {
				t.Errorf("%d: a header is lost: %v", status, res.Header)
			}
			if status > 200 {
				io.Copy(io.Discard, res.Body)
				if res.Trailer.Get("X-Trailer") != "1" {
					t.Errorf("the trailers are %v", res.Trailer)
				}
			}
			for _, h := range []http.Header{res.Header, res.Trailer} {
				for _, n := range []string{"Mesh-Error", "Mesh-Upgrade", "Mesh-Other", "X-Forwarded-Client-Cert", "X-Gone", "X-Kept-Not", "Keep-Alive", "Proxy-Authenticate"} {
					if h[n] != nil {
						t.Errorf("%d: the caller sees %s: %q", status, n, h[n])
					}
				}
			}
		}
		if l := c.h.line("outbound"); l.Flags != "-" || l.Status != 403 {
			t.Errorf("what the application said is taken for the proxy's: %+v", l)
		}
	})
}

// TestForgedTrailers: callers' trailers are held to the same as their headers.
func TestForgedTrailers(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		got := c.raw("web", "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nTrailer: X-Good, Mesh-Instance\r\n\r\n2\r\nhi\r\n0\r\n"+
			"X-Good: 1\r\nX-Unannounced: 2\r\nMesh-Instance: x\r\nX-Forwarded-Client-Cert: y\r\nX_Forwarded_For: z\r\n\r\n")
		for k, v := range got.seen.Trailer {
			if k != "X-Good" && k != "X-Unannounced" && v != nil {
				t.Errorf("trailer %s: %q reached the service", k, v)
			}
		}
		if got.seen.Body != "hi" || got.seen.Trailer.Get("X-Good") != "1" {
			t.Errorf("%d %+v", got.StatusCode, got.seen)
		}
	})
}

// scripted is an application that answers each connection's request with the next of the texts, and keeps the connection open.
func scripted(t testing.TB, h *host, svc string, texts ...string) *app {
	ln := h.listen()
	go func() { // ends with the listener
		for _, text := range texts {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			go func() { // ends with the connection
				if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					io.Copy(io.Discard, r.Body)
					io.WriteString(c, text)
				}
			}()
		}
	}()
	return h.register(svc, mesh.HTTP, ln)
}

const okSecond = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond"

// TestSmuggledAnswers (20, 21): what an application sends beyond its answer never becomes the answer to somebody else.
func TestSmuggledAnswers(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		const smuggled = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled"
		other := c.h.caller("batch")
		for n, e := range []struct{ name, answer, request, want string }{
			{"an upgrade that was refused", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + smuggled, "GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "200 ok"},
			{"a plain request", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + smuggled, "GET / HTTP/1.1\r\nHost: web\r\n\r\n", "200 ok"},
			{"HEAD with a body", "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled", "HEAD / HTTP/1.1\r\nHost: web\r\n\r\n", "200 "},
			{"204 with a body", "HTTP/1.1 204 No Content\r\n\r\n" + smuggled, "GET / HTTP/1.1\r\nHost: web\r\n\r\n", "204 "},
			{"a switch that nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + smuggled, "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n", "502 UPE"},
			{"a switch to another protocol", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n" + smuggled,
				"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "502 UPE"},
			{"a switch without Connection", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n" + smuggled,
				"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "502 UPE"},
			{"no HTTP", "SSH-2.0-x\r\n\r\n", "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n", "502 UPE"},
			{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok" + smuggled, "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n", "502 UPE"},
			{"a head without end", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-Long: "+strings.Repeat("y", 1000)+"\r\n", 100), "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n", "502 UPE"},
		} {
			svc := fmt.Sprint("web", n)
			scripted(t, on, svc, e.answer, okSecond)
			w.apply(strings.ReplaceAll(virtualService("  - {retries: {attempts: 0}, route: [{destination: {host: web}}]}\n"), "web", svc))
			got := c.raw(svc, e.request)
			if n == 0 && on != c.h { // a tunnel has no way to say that it was answered and not switched
				e.want = "502 UPE"
			}
			text := fmt.Sprintf("%d %s", got.StatusCode, got.body)
			if flag, _, ok := strings.Cut(got.Header.Get("Mesh-Error"), " "); ok {
				text = fmt.Sprintf("%d %s", got.StatusCode, flag)
			}
			if text != e.want {
				t.Errorf("%s: %q, want %q", e.name, text, e.want)
			}
			if got := other.get(svc, "/"); got.body != "second" {
				t.Errorf("%s: another caller gets %d %q", e.name, got.StatusCode, got.body)
			}
		}
	})
}

// TestUpgradesThatAreNot (19): no caller leaves HTTP/1.1 for another version, and so the sight of policy.
func TestUpgradesThatAreNot(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serve("web", nil)
		for _, v := range []string{"h2c", "H2C", "h2c, websocket", "websocket, h2c", "HTTP/2.0", "TLS/1.0", "h2", "web socket", "x/y z", "\"x\"", ","} {
			got := c.raw("web", "GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: "+v+"\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
			if got.StatusCode != 200 || got.seen.Header["Upgrade"] != nil || got.seen.Header["Http2-Settings"] != nil {
				t.Errorf("Upgrade: %s: %d %v", v, got.StatusCode, got.seen.Header)
			}
		}
	})
}

// TestLogLines (45): whatever a caller writes, it is one line, of bounded length.
func TestLogLines(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	a.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Grpc-Status", strings.Repeat("9", 5000))
	}))
	c := a.caller("frontend")
	long := strings.Repeat("x", 5000)
	c.get("web", "/"+long+"%22%E2%80%A8%FF<>", "X-Request-Id", long, "Traceparent", long+`","src":"spiffe://evil`)
	l := a.line("outbound") // which is read as one line, or the test fails
	if len(l.raw) > 5*2048+1000 || l.Src != "spiffe://test.mesh/ns/default/sa/frontend" || len(l.RequestID) != 2048 || len(l.GRPCStatus) != 2048 || len(l.Path) != 2048 {
		t.Errorf("%d bytes: %s", len(l.raw), l.raw)
	}
	if status, _ := c.h2("web", ":method", "GET", ":scheme", "http", ":authority", "web", ":path", "/x", "x-request-id", "a\tb"); status != "200" {
		t.Fatal(status)
	}
	if l := a.line("outbound"); l.RequestID != "a\tb" || strings.Contains(l.raw, "\t") {
		t.Errorf("%q", l.raw)
	}
}
