//go:build process && linux

package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshagent/meshagent/test/lab"
)

// at returns an address of a host. The ports of its addresses are the test's own.
func at(h *lab.Host, port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(h.Addr()), uint16(port))
}

// awaitListening waits until a program accepts connections.
func awaitListening(t *testing.T, at netip.AddrPort) {
	t.Helper()
	lab.Await(t, fmt.Sprintf("a listener at %v", at), 20*time.Second, func() error {
		c, err := net.DialTimeout("tcp", at.String(), time.Second)
		if err == nil {
			c.Close()
		}
		return err
	})
}

// startNginx starts nginx in one process with what stands in its http block.
func startNginx(t *testing.T, servers string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "big"), big, 0o600); err != nil {
		t.Fatal(err)
	}
	var temp strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temp, "%s_temp_path %s;\n", kind, filepath.Join(dir, kind))
	}
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf("daemon off;\nmaster_process off;\npid %s/pid;\nevents { worker_connections 1024; }\nhttp {\n", dir) +
		fmt.Sprintf("access_log off;\nroot %s;\n%s%s}\n", dir, &temp, servers)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	lab.Spawn(t, t.Output(), installed(t, "nginx", "nginx"), "-p", dir, "-c", conf, "-e", "stderr")
}

// httpClient speaks one version of HTTP without TLS.
func httpClient(t *testing.T, version int) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols), MaxIdleConnsPerHost: 100, DisableCompression: true}
	tr.Protocols.SetHTTP1(version == 1)
	tr.Protocols.SetUnencryptedHTTP2(version == 2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// call makes a request and returns the answer with its body, or with as much of it as came.
func call(c *http.Client, method, url string, body io.Reader, header ...string) (*http.Response, []byte, error) {
	r, err := http.NewRequest(method, url, body)
	if err != nil {
		return nil, nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

// manyCalls makes n calls, 20 at a time, and returns what failed.
func manyCalls(n int, one func() error) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	turns := make(chan bool, 20)
	for range n {
		turns <- true
		wg.Go(func() {
			if err := one(); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
			<-turns
		})
	}
	wg.Wait()
	if len(errs) > 0 {
		return fmt.Errorf("%d of %d calls failed: %w", len(errs), n, errors.Join(errs[:min(3, len(errs))]...))
	}
	return nil
}

// TestNginxApplication: nginx behind the mesh, over HTTP/1.1 with connections that it closes often, and over HTTP/2.
func TestNginxApplication(t *testing.T) {
	app, caller := twoHops(t, 135)
	listens := map[string]netip.AddrPort{"http": at(app, 9001), "http2": at(app, 9002)}
	const server = `server {
listen %s;
keepalive_requests 7;
client_max_body_size 100k;
if_modified_since before;
location = /big { gzip on; gzip_types *; }
location = /nothing { return 204; }
location = /gone { return 410 "it is gone\n"; }
location = /moved { return 301 /big; }
}
`
	startNginx(t, fmt.Sprintf(server+server, listens["http"], listens["http2"].String()+" http2"))
	for _, protocol := range []string{"http", "http2"} {
		awaitListening(t, listens[protocol])
		app.Define("nginx-"+protocol, protocol, listens[protocol])
		url := "http://" + caller.Reach("nginx-"+protocol).String()
		for version := 1; version <= 2; version++ {
			if os.Getenv("DIRECT") != "" && (version == 2) != (protocol == "http2") {
				continue
			}
			t.Run(fmt.Sprintf("%s, called over HTTP/%d", protocol, version), func(t *testing.T) { nginxCases(t, httpClient(t, version), url) })
		}
	}
}

func nginxCases(t *testing.T, c *http.Client, url string) {
	for _, k := range []struct {
		name, method, path string
		body               io.Reader
		header             []string
		status             int
		want               func(*http.Response, []byte) bool
	}{
		{"a file", "GET", "/big", nil, nil, 200, func(r *http.Response, b []byte) bool {
			return bytes.Equal(b, big) && r.ContentLength == int64(len(big))
		}},
		{"its head", "HEAD", "/big", nil, nil, 200, func(r *http.Response, b []byte) bool {
			return len(b) == 0 && r.ContentLength == int64(len(big))
		}},
		{"a part of it", "GET", "/big", nil, []string{"Range", "bytes=16-31"}, 206, func(r *http.Response, b []byte) bool {
			return string(b) == "0123456789abcdef"
		}},
		{"two parts of it", "GET", "/big", nil, []string{"Range", "bytes=0-1,16-17"}, 206, func(r *http.Response, b []byte) bool {
			return strings.HasPrefix(r.Header.Get("Content-Type"), "multipart/byteranges") && bytes.Count(b, []byte("\r\n01\r\n")) == 2
		}},
		{"no part of it", "GET", "/big", nil, []string{"Range", "bytes=99999999-"}, 416, nil},
		{"not modified", "GET", "/big", nil, []string{"If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT"}, 304, func(r *http.Response, b []byte) bool {
			return len(b) == 0
		}},
		{"compressed", "GET", "/big", nil, []string{"Accept-Encoding", "gzip"}, 200, func(r *http.Response, b []byte) bool {
			return r.Header.Get("Content-Encoding") == "gzip" && len(b) < len(big)/10
		}},
		{"nothing", "GET", "/nothing", nil, nil, 204, func(r *http.Response, b []byte) bool {
			return len(b) == 0
		}},
		{"gone", "GET", "/gone", nil, nil, 410, func(r *http.Response, b []byte) bool {
			return string(b) == "it is gone\n"
		}},
		{"a method that nginx does not let", "POST", "/big", strings.NewReader("x"), nil, 405, nil},
		{"a body that is too large", "POST", "/nothing", bytes.NewReader(big), nil, 413, nil},
		{"a body that nobody reads", "POST", "/nothing", io.MultiReader(bytes.NewReader(big)), nil, 204, nil},
	} {
		t.Run(k.name, func(t *testing.T) {
			resp, body, err := call(c, k.method, url+k.path, k.body, k.header...)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != k.status || k.want != nil && !k.want(resp, body) {
				t.Errorf("%s %v, %d bytes: %.200s", resp.Status, resp.Header, len(body), body)
			}
		})
	}
	for _, method := range []string{"GET", "POST"} {
		t.Run("1000 times "+method+" on connections that end", func(t *testing.T) { // BEHAVIOURS 1, 2
			err := manyCalls(1000, func() error {
				var body io.Reader
				if method == "POST" {
					body = strings.NewReader(strings.Repeat("x", 1000))
				}
				resp, _, err := call(c, method, url+"/nothing", body)
				if err == nil && resp.StatusCode != 204 {
					err = fmt.Errorf("%s, mesh-error %q", resp.Status, resp.Header.Get("Mesh-Error"))
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestProxiesBefore: proxies that call the mesh as any program does: HAProxy over HTTP/1.1, HTTP/2 and as TCP, and nginx, which speaks
// HTTP/1.0 unless it is told.
func TestProxiesBefore(t *testing.T) {
	app, caller := twoHops(t, 136)
	serve(t, app, "before-http", "http", application())
	serve(t, app, "before-http2", "http2", application())
	fronts := map[string]netip.AddrPort{}
	for i, name := range []string{"haproxy 1.1", "haproxy 2", "haproxy tcp", "nginx 1.0", "nginx 1.1"} {
		fronts[name] = at(caller, 9001+i)
	}
	to1, to2 := caller.Reach("before-http"), caller.Reach("before-http2")
	startHAProxy(t, caller, fmt.Sprintf(`
listen one
  bind %s
  http-reuse always
  server mesh %s
listen two
  bind %s
  http-reuse always
  server mesh %s proto h2
listen tcp
  mode tcp
  bind %s
  server mesh %s
`, fronts["haproxy 1.1"], to1, fronts["haproxy 2"], to2, fronts["haproxy tcp"], to1))
	startNginx(t, fmt.Sprintf(`
upstream mesh { server %[1]s; keepalive 8; }
server { listen %[2]s; client_max_body_size 0; location / { proxy_pass http://%[1]s; } }
server { listen %[3]s; client_max_body_size 0; location / {
proxy_pass http://mesh; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_request_buffering off; } }
`, to1, fronts["nginx 1.0"], fronts["nginx 1.1"]))
	for name, front := range fronts {
		awaitListening(t, front)
		t.Run(name, func(t *testing.T) { beforeCases(t, httpClient(t, 1), "http://"+front.String()) })
	}
}

func startHAProxy(t *testing.T, h *lab.Host, sections string) {
	t.Helper()
	conf := h.Write("haproxy.cfg", "global\n  maxconn 1000\ndefaults\n  mode http\n"+
		"  timeout connect 2s\n  timeout client 20s\n  timeout server 20s\n"+sections)
	lab.Spawn(t, t.Output(), installed(t, "haproxy", "haproxy"), "-db", "-f", conf)
}

func beforeCases(t *testing.T, c *http.Client, url string) {
	for _, k := range []struct {
		name, method, path string
		body               []byte
		want               string
	}{
		{"get", "GET", "/x", nil, "GET /x\n"},
		{"stream", "GET", "/stream", nil, "part 9\n"},
		{"download of 10 MB", "GET", "/big", nil, string(big)},
		{"upload of 10 MB", "POST", "/count", big, "10485760 bytes, <nil>"},
		{"both ways", "POST", "/echo", big[:100_000], string(big[:100_000])},
	} {
		t.Run(k.name, func(t *testing.T) {
			resp, body, err := call(c, k.method, url+k.path, bytes.NewReader(k.body))
			if err != nil || resp.StatusCode != 200 || !strings.Contains(string(body), k.want) {
				t.Errorf("%v, %d bytes: %v", resp, len(body), err)
			}
		})
	}
	t.Run("1000 calls", func(t *testing.T) {
		err := manyCalls(1000, func() error {
			resp, body, err := call(c, "POST", url+"/echo", strings.NewReader("hello"))
			if err == nil && (resp.StatusCode != 200 || string(body) != "hello") {
				err = fmt.Errorf("%s, mesh-error %q: %q", resp.Status, resp.Header.Get("Mesh-Error"), body)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// TestHAProxyBeforeStreams: the suites of gRPC and of WebSocket call HAProxy, and that calls the mesh.
func TestHAProxyBeforeStreams(t *testing.T) {
	app, caller := twoHops(t, 137)
	startInterop(t, app)
	program := startWebSocket(t, app)
	grpc, websocket := at(caller, 9001), at(caller, 9002)
	startHAProxy(t, caller, fmt.Sprintf(`
listen grpc
  bind %s proto h2
  server mesh %s proto h2
listen websocket
  bind %s
  server mesh %s
`, grpc, caller.Reach("interop"), websocket, caller.Reach("websocket")))
	awaitListening(t, grpc)
	awaitListening(t, websocket)
	t.Run("grpc", func(t *testing.T) { callInterop(t, grpc) })
	t.Run("websocket", func(t *testing.T) { callWebSocket(t, program, websocket) })
}
