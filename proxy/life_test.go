package proxy_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy"
)

// idle opens a connection and makes one request on it.
func (c *caller) idle(svc string) (*net.TCPConn, *bufio.Reader) {
	c.h.w.t.Helper()
	conn := c.dial(svc)
	fmt.Fprintf(conn, "GET /idle HTTP/1.1\r\nHost: web\r\n\r\n")
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		c.h.w.t.Fatal(err)
	}
	io.Copy(io.Discard, res.Body)
	return conn, r
}

// TestE29LastCalls: while a host ends, an application that is still asked by another host may call others for it; then no more.
func TestE29LastCalls(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	inside, release := make(chan struct{}), make(chan struct{})
	own := b.caller("web")
	a.serve("stock", nil)
	b.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		inside <- struct{}{}
		<-release
		got := own.get("stock", "/")
		rw.WriteHeader(got.StatusCode)
	}))
	c := a.caller("frontend")
	answers := make(chan *answer, 1)
	go func() { answers <- c.get("web", "/") }()
	<-inside
	at := b.vip("stock")
	b.quit()
	close(release)
	if got := <-answers; got.StatusCode != 200 {
		t.Errorf("the call that the application made for its last one: %d", got.StatusCode)
	}
	<-b.ended
	if _, err := own.dialer().Dial("tcp", at); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a connection after that: %v", err)
	}
}

// TestDrain: at the end of an agent what is under way ends well, from here and from other hosts, and nothing new begins.
func TestDrain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	inside, release := make(chan struct{}), make(chan struct{})
	app := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			inside <- struct{}{}
			<-release
			io.WriteString(rw, "done")
		}
	})
	b.serve("web", app)
	b.serveTCP("db", "hello\n")
	local, remote := b.caller("frontend"), a.caller("frontend")
	answers := make(chan *answer, 3)
	for _, c := range []*caller{local, local.h2caller()} {
		r := c.request("GET", "web", "/wait", nil)
		go func() { answers <- c.send(r) }()
		<-inside
	}
	tcp := local.dial("db")
	io.ReadFull(tcp, make([]byte, 6))
	_, idle := local.idle("web")
	b.quit()
	if _, err := idle.ReadByte(); !errors.Is(err, io.EOF) { // no listener is open any more when idle connections are closed
		t.Errorf("an idle connection: %v", err)
	}
	for _, svc := range []string{"web", "db"} {
		if _, err := local.dialer().Dial("tcp", b.vip0(svc)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a new connection to %s: %v", svc, err)
		}
	}
	if _, err := b.VIP(t.Context(), mesh.MustServiceName("nothing")); err == nil {
		t.Error("an address for a service that is not there")
	}
	// Agents that have not heard yet are served.
	if got := remote.get("web", "/"); got.StatusCode != 200 {
		t.Errorf("a call from another host: %d %s", got.StatusCode, got.Header.Get("Mesh-Error"))
	}
	fmt.Fprint(tcp, "ping\n")
	if _, err := io.ReadFull(tcp, make([]byte, 5)); err != nil {
		t.Errorf("a connection under way: %v", err)
	}
	tcp.Close()
	close(release)
	for range 2 {
		if got := <-answers; got.StatusCode != 200 || got.body != "done" || got.err != nil {
			t.Errorf("a call under way: %d %q %v", got.StatusCode, got.body, got.err)
		}
	}
	<-b.ended
	lines := 0
	for len(b.lines) > 0 {
		if l := <-b.lines; l.Path == "/wait" {
			lines++
		}
	}
	if lines != 2 {
		t.Errorf("%d of 2 calls are in the log when the proxy has ended", lines)
	}
	if held := b.Held(); held["calls"] != 0 {
		t.Errorf("%v", held)
	}
}

// vip0 is vip for a service that has its address already, also when the proxy ends.
func (h *host) vip0(svc string) string {
	a, _ := h.VIP(context.Background(), mesh.MustServiceName(svc))
	return netip.AddrPortFrom(a, servicePort).String()
}

// TestDrainTimeIsUp: what does not end in time is cut, and says so.
func TestDrainTimeIsUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	inside := make(chan struct{}, 3)
	a.serve("web", switching(inside))
	a.serve("slow", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { inside <- struct{}{}; <-r.Context().Done() }))
	a.serveTCP("db", "hello\n")
	c := a.caller("frontend")
	tcp := c.dial("db")
	io.ReadFull(tcp, make([]byte, 6))
	_, up := c.upgrade(t, "web")
	<-inside
	slow := make(chan error)
	r := c.request("GET", "slow", "/", nil)
	go func() {
		res, err := c.http.Do(r)
		if err == nil && res.StatusCode == http.StatusOK {
			err = errors.New("an answer")
		}
		slow <- err
	}()
	<-inside
	if err := a.DrainFor(50 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if got, is := closed(tcp); got != "" || !is {
		t.Errorf("%q, closed %v", got, is)
	}
	if b, err := io.ReadAll(up); len(b) > 0 && string(b) != "bye\n" {
		t.Errorf("%q %v", b, err)
	}
	if err := <-slow; err != nil && err.Error() == "an answer" {
		t.Error(err)
	}
	for range 3 {
		if l := a.line("outbound"); l.Flags != "UC" {
			t.Errorf("%+v", l)
		}
	}
}

// TestRollingEnd: no call fails when one of two hosts ends as it should.
func TestRollingEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b, c := w.host("a"), w.host("b"), w.host("c")
	leaving := b.serve("web", nil)
	c.serve("web", nil)
	f := a.caller("frontend")
	for n := range 60 {
		switch n {
		case 10:
			b.quit() // before the others have heard
		case 30:
			<-b.ended
			b.cut()
		case 50:
			leaving.remove()
		}
		if got := f.get("web", "/"); got.StatusCode != 200 {
			t.Errorf("call %d: %d %s", n, got.StatusCode, got.Header.Get("Mesh-Error"))
		}
	}
}

// TestVIPs: a service keeps its address, over restarts too, and all its ports are open on it.
func TestVIPs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	within, file := vipRange(), filepath.Join(t.TempDir(), "vips.json")
	kept := func(c *proxy.Config) { c.VIPRange, c.VIPFile = within, file }
	a := w.host("a", kept)
	a.serve("web", nil)
	was := a.vip("web")
	for range 3 {
		if got := a.vip("web"); got != was {
			t.Errorf("%s, then %s", was, got)
		}
	}
	at := netip.MustParseAddrPort(was)
	if !within.Contains(at.Addr()) {
		t.Errorf("%v is not of %v", at, within)
	}
	if svc, ok := a.ServiceOf(at.Addr()); !ok || svc != mesh.MustServiceName("web") {
		t.Errorf("%v, %v", svc, ok)
	}
	if _, ok := a.ServiceOf(at.Addr().Next()); ok {
		t.Error("an address that nobody has is somebody's")
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", fi, err)
	}
	// Ports that are added are opened, without anybody asking.
	a.serve("web", nil, func(in *mesh.Instance) { in.ServicePort, in.ID = 9090, "second" })
	c := a.caller("frontend")
	r := c.request("GET", "web", "/", nil)
	r.URL.Host = netip.AddrPortFrom(at.Addr(), 9090).String()
	if got := c.send(r); got.seen.Instance != "second" {
		t.Errorf("%d %+v", got.StatusCode, got.seen)
	}
	a.stop()

	b := w.host("b", kept) // as the agent that starts again: the address answers before anybody asks for it
	app := b.serve("web", nil)
	c = b.caller("frontend")
	r = c.request("GET", "web", "/", nil)
	r.URL.Host = was
	if got := c.send(r); got.seen.Instance != app.id || b.vip("web") != was {
		t.Errorf("%d %+v", got.StatusCode, got.seen)
	}
	if d := w.host("d", func(c *proxy.Config) { c.VIPRange = netip.PrefixFrom(within.Addr(), within.Bits()) }); d.hashed("web") != at.Addr() {
		t.Error("without its file a service has another address, though its first choice is free")
	}
}

// hashed is the address that a service would get.
func (h *host) hashed(svc string) netip.Addr {
	a, _ := h.VIP(context.Background(), mesh.MustServiceName(svc)) // the ports are taken: an error
	return a
}

// TestVIPFile: what is wrong with it is said, and what is not of the range is forgotten.
func TestVIPFile(t *testing.T) {
	t.Parallel()
	within, file := vipRange(), filepath.Join(t.TempDir(), "vips.json")
	for text, want := range map[string]string{
		"{": "unexpected end of JSON input", `{"version": 2}`: "version 2 is not known", `{"version": 1, "vips": {"default/a": "x"}}`: `ParseAddr("x"): unable to parse IP`,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := proxy.New(proxy.Config{Snapshots: newSnapshots(), TLS: noCerts{}, Callers: &host{}, VIPRange: within, VIPFile: file, Log: slog.New(slog.DiscardHandler)})
		if want := "proxy: addresses of services in " + file + ": " + want + ": remove the file to allocate new ones"; err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	first := within.Addr().Next()
	if err := os.WriteFile(file, fmt.Appendf(nil, `{"version": 1, "vips": {"default/a": "%v", "default/b": "10.0.0.1", "default/c": "%v", "a.b": "%v"}}`, first, first, first.Next()), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	h := w.host("a", func(c *proxy.Config) { c.VIPRange, c.VIPFile = within, file })
	got := map[netip.Addr]bool{}
	for _, svc := range []string{"a", "b", "c"} {
		h.serve(svc, nil)
		at := netip.MustParseAddrPort(h.vip(svc)).Addr()
		if got[at] || !within.Contains(at) {
			t.Errorf("%s has %v", svc, at)
		}
		got[at] = true
	}
	if !got[first] {
		t.Errorf("nobody kept %v: %v", first, got)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	full := proxy.Config{Snapshots: newSnapshots(), TLS: noCerts{}, Callers: &host{}, Log: slog.New(slog.DiscardHandler)}
	if _, err := proxy.New(proxy.Config{}); err == nil || err.Error() != "proxy: Snapshots, TLS, Callers and Log are required" {
		t.Error(err)
	}
	for _, s := range []string{"10.0.0.0/8", "127.0.0.1/31", "::1/128", "127.0.0.1/32"} {
		c := full
		c.VIPRange = netip.MustParsePrefix(s)
		if _, err := proxy.New(c); err == nil || err.Error() != "proxy: VIP range "+s+": give an IPv4 loopback prefix of /30 or wider" {
			t.Errorf("%s: %v", s, err)
		}
	}
}

// TestEndAfterHandOver: a proxy that has handed over and is told to end lets the calls that it has end, as others do.
func TestEndAfterHandOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	x := hold(a, "web")
	c := a.caller("frontend")
	r, came := c.request("GET", "web", "/", nil), make(chan *answer, 1)
	go func() { came <- c.send(r) }()
	<-x.inside
	told, end := context.WithCancel(t.Context())
	a.HandOver(told)
	a.quit()
	end()
	select {
	case got := <-came:
		t.Fatalf("cut with %d %s", got.StatusCode, got.Header.Get("Mesh-Error"))
	case <-time.After(200 * time.Millisecond): // what cuts does so at once
	}
	close(x.answer)
	if got := <-came; got.StatusCode != 200 || !got.Close {
		t.Errorf("%d, is it the last: %v", got.StatusCode, got.Close)
	}
	<-a.ended
}

// TestVIPsAreKept: when another process gives addresses, services have those that they had, and no new ones.
func TestVIPsAreKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	file := filepath.Join(t.TempDir(), "vips.json")
	a := w.host("a", func(c *proxy.Config) { c.VIPFile = file })
	a.serve("web", nil)
	a.serve("api", nil)
	had := a.vip("web")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	a.Keep()
	if now := a.vip("web"); now != had {
		t.Errorf("%v, before it was %v", now, had)
	}
	if at, err := a.VIP(t.Context(), mesh.MustServiceName("api")); err == nil || !strings.Contains(err.Error(), "another process of this host is about to give addresses") {
		t.Errorf("%v, %v", at, err)
	}
	if after, _ := os.ReadFile(file); string(after) != string(before) {
		t.Error("the file has changed")
	}
}

// TestVIPsAreUsedUp: a range with no address left says so, and what to do.
func TestVIPsAreUsedUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	within := netip.PrefixFrom(vipRange().Addr(), 30)
	a := w.host("a", func(c *proxy.Config) { c.VIPRange = within })
	for _, svc := range []string{"a", "b", "c"} {
		a.serve(svc, nil)
		at, err := a.VIP(t.Context(), mesh.MustServiceName(svc))
		if svc != "c" && (err != nil || !within.Contains(at)) {
			t.Errorf("%s: %v %v", svc, at, err)
		}
		if want := fmt.Sprintf("proxy: no free address for default/c in %v: widen proxy.vipRange", within); svc == "c" && (err == nil || err.Error() != want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// warnings gathers what a proxy warns of.
type warnings chan string

func (w warnings) Write(b []byte) (int, error) { w <- string(b); return len(b), nil }

func (w warnings) to(c *proxy.Config) { c.Log = slog.New(slog.NewTextHandler(w, nil)) }

// TestHTTPPort: the lowest HTTP port of a service is there at the port that people leave out, too, unless it has that itself.
func TestHTTPPort(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const port = 18180
	a := w.host("a", func(c *proxy.Config) { c.HTTPPort = port })
	on := func(p uint16, id string) func(*mesh.Instance) {
		return func(in *mesh.Instance) { in.ServicePort, in.ID = p, id }
	}
	a.serve("web", nil, on(9000, "high"))
	a.serve("web", nil, on(servicePort, "low"))
	a.register("web", mesh.TCP, a.listen(), on(1000, "tcp"))
	c := a.caller("frontend")
	ask := func() string {
		r := c.request("GET", "web", "/", nil)
		r.URL.Host = netip.AddrPortFrom(netip.MustParseAddrPort(r.URL.Host).Addr(), port).String()
		return c.send(r).seen.Instance
	}
	if got := ask(); got != "low" {
		t.Errorf("%q answers", got)
	}
	a.serve("web", nil, on(port, "own"))
	if got := ask(); got != "own" {
		t.Errorf("%q answers where the service has the port itself", got)
	}
}

// TestPortTaken: a port that cannot be opened is said, and leaves the others open; when none can, the caller hears why.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	said := make(warnings, 10)
	within := vipRange()
	a := w.host("a", func(c *proxy.Config) { c.VIPRange = within })
	a.serve("web", nil)
	at := a.vip("web")
	a.stop()
	ln, err := net.Listen("tcp", at) // where the next host, with the same range, will have the service
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	b := w.host("b", said.to, func(c *proxy.Config) { c.VIPRange = within })
	_, err = b.VIP(t.Context(), mesh.MustServiceName("web"))
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.HasPrefix(err.Error(), "proxy: listen for default/web: ") {
		t.Errorf("%v", err)
	}
	if got := <-said; !strings.Contains(got, `msg="a port of a service cannot be opened" service=default/web err="proxy: listen for default/web: `) {
		t.Errorf("%s", got)
	}
	b.serve("web", nil, func(in *mesh.Instance) { in.ServicePort, in.ID = 9090, "free" })
	if _, err := b.VIP(t.Context(), mesh.MustServiceName("web")); err != nil {
		t.Errorf("one port is free: %v", err)
	}
}

// TestProtocolChanges: a port whose service now speaks something else is opened anew for that.
func TestProtocolChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.host("a")
	old := a.serveTCP("web", "hello\n")
	c := a.caller("frontend")
	if _, err := io.ReadFull(c.dial("web"), make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	old.remove()
	a.serve("web", nil)
	if got := c.get("web", "/"); got.StatusCode != 200 {
		t.Errorf("%d", got.StatusCode)
	}
}

// TestNothingIsKept: of services, instances and hosts that are gone nothing remains. It runs alone: it counts goroutines.
func TestNothingIsKept(t *testing.T) {
	w := newWorld(t)
	a := w.host("a")
	b := w.host("b")
	c := a.caller("frontend")
	const rounds = 30
	var goroutines int
	for n := range rounds {
		svc, here := fmt.Sprint("web", n), fmt.Sprint("here", n)
		apps := []*app{b.serve(svc, nil), a.serve(here, nil)}
		c.get(svc, "/")
		c.get(here, "/")
		a.line("outbound")
		a.line("outbound")
		b.line("inbound")
		c.http.CloseIdleConnections()
		for _, app := range apps {
			app.remove()
			app.srv.Close()
		}
		for name, h := range map[string]*host{"caller's host": a, "called host": b} {
			held := h.Held()
			delete(held, "calls") // its line was written, and it is about to end
			if held["callers"] > 1 {
				t.Fatalf("round %d: the %s holds %v", n, name, held)
			}
			delete(held, "callers")
			if slices.Max(slices.Collect(maps.Values(held))) > 0 {
				t.Fatalf("round %d: the %s holds %v", n, name, held)
			}
		}
		if n == 5 {
			goroutines = runtime.NumGoroutine()
		}
	}
	// Each service leaves two listeners, which answer callers that remember the address; 15 more are those that are just ending.
	if more, want := runtime.NumGoroutine()-goroutines, 2*(rounds-6)+15; more > want {
		t.Errorf("%d goroutines more after %d rounds: want at most %d", more, rounds-6, want)
	}
	// A host that is gone takes its tunnels with it.
	b.serve("web", nil)
	c.get("web", "/")
	if held := a.Held(); held["links"] != 1 {
		t.Errorf("%v", held)
	}
	w.change(func() { b.rec.Node.Status = mesh.Left })
	if held := a.Held(); held["links"] != 0 || held["endpoints"] != 0 {
		t.Errorf("%v", held)
	}
}

// blocked takes nothing.
type blocked chan struct{}

func (b blocked) Write([]byte) (int, error) { <-b; return 0, errors.New("the disk is full") }

// TestBlockedLog (line 33 of BEHAVIOURS): who does not take the lines of the access log blocks neither traffic nor the end; what is
// lost is counted.
func TestBlockedLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := make(blocked)
	a := w.host("a", func(c *proxy.Config) { c.AccessLog = b })
	a.serve("web", nil)
	w.apply(virtualService("  - {directResponse: {status: 204}}\n"))
	conn := a.caller("frontend").dial("web")
	const calls = 4200 // the queue has 4096 places
	go io.WriteString(conn, strings.Repeat("GET / HTTP/1.1\r\nHost: web\r\n\r\n", calls))
	r := bufio.NewReader(conn)
	for range calls {
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.StatusCode != 204 {
			t.Fatalf("%v %v", res, err)
		}
	}
	if n := a.metric("meshagent_access_log_dropped_total"); n < calls-4096-1 || n > calls-4096 {
		t.Errorf("%v lines are counted as lost", n)
	}
	conn.Close()
	start := time.Now()
	a.quit()
	<-a.ended
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the end took %v", took)
	}
	close(b)
}
