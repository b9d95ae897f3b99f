package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// host is a directory of services, a state file and the registry of both.
type host struct {
	*Registry
	t    *testing.T
	dir  string
	file string
	log  bytes.Buffer
}

func newHost(t *testing.T) *host {
	h := &host{t: t, dir: filepath.Join(t.TempDir(), "services.d"), file: filepath.Join(t.TempDir(), "services.json")}
	if err := os.Mkdir(h.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h.restart()
	return h
}

// restart forgets what is not on disk.
func (h *host) restart() {
	h.Registry = New(Config{Dir: h.dir, StateFile: h.file, Log: slog.New(slog.NewTextHandler(&h.log, nil)),
		HostAddrs: func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("10.0.0.7")}, nil }})
	h.watch = func(string) (*watch, error) { return nil, errors.ErrUnsupported } // in virtual time nobody waits for the kernel
}

func (h *host) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, name), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) load() {
	h.t.Helper()
	if err := h.Load(); err != nil {
		h.t.Fatal(err)
	}
}

// services returns "namespace/name id source" of all, with "!" behind those in maintenance.
func (h *host) services() (out []string) {
	for _, s := range h.State().Services {
		mark := ""
		if s.Maintenance {
			mark = "! " + s.Reason
		}
		out = append(out, fmt.Sprint(s.Service(), " ", s.ID, " ", strings.ReplaceAll(s.Source, h.dir+string(filepath.Separator), ""), mark))
	}
	return out
}

func (h *host) want(want ...string) {
	h.t.Helper()
	if got := h.services(); !slices.Equal(got, want) {
		h.t.Errorf("got %q, want %q", got, want)
	}
}

func (h *host) problems(want ...string) {
	h.t.Helper()
	got := slices.Clone(h.State().Problems)
	for i := range got {
		got[i] = strings.ReplaceAll(got[i], h.dir+string(filepath.Separator), "")
	}
	if !slices.Equal(got, want) {
		h.t.Errorf("problems\n got %q\nwant %q", got, want)
	}
}

func def(name string, more ...string) string {
	return fmt.Sprintf("name: %s\nport: 80\nprotocol: http\n%s\n", name, strings.Join(more, "\n"))
}

func TestLoad(t *testing.T) {
	h := newHost(t)
	h.write("b.yaml", def("web"))
	h.write("a.yaml", def("api", "namespace: shop")+"---\n"+def("web", "id: web-2"))
	h.write("README", "no YAML: [")
	h.write(".hidden.yaml", "no YAML: [")
	h.load()
	h.want("default/web web file b.yaml", "default/web web-2 file a.yaml", "shop/api api file a.yaml")
	h.problems()
	if v := h.State().Version; v != 1 {
		t.Errorf("first version is %d", v)
	}
	h = newHost(t)
	h.dir += "/none"
	h.restart()
	h.load()
	h.want()
}

// TestReservedAddresses: an instance where the proxy listens would be called by the proxy itself, without end.
func TestReservedAddresses(t *testing.T) {
	h := newHost(t)
	h.cfg.Reserved = netip.MustParsePrefix("127.64.0.0/10")
	const sentence = "address: 127.65.0.1 is one of those that the proxy gives to services (proxy.vipRange 127.64.0.0/10); let the application listen elsewhere, or move proxy.vipRange"
	h.write("a.yaml", def("web", "address: 127.65.0.1"))
	if err := h.Load(); err == nil || err.Error() != filepath.Join(h.dir, "a.yaml")+":1: "+sentence {
		t.Errorf("in a file: %v", err)
	}
	h.write("a.yaml", def("web", "address: 127.0.0.2"))
	h.load()
	if _, err := h.Register(t.Context(), []byte(def("api", "address: 127.65.0.1"))); err == nil || err.Error() != "definition:1: "+sentence {
		t.Errorf("over the API: %v", err)
	}
	h.want("default/web web file a.yaml")
}

// TestBadFilesStopTheStart: each names the file and says what to do.
func TestBadFilesStopTheStart(t *testing.T) {
	for _, c := range []struct {
		files map[string]string
		want  string
	}{
		{map[string]string{"a.yaml": def("web"), "b.yaml": def("web", "prot: 1")}, `DIR/b.yaml:4: prot: unknown field; did you mean "port"?`},
		{map[string]string{"a.yaml": "x: ["}, `DIR/a.yaml:1: not YAML: did not find expected node content`},
		{map[string]string{"a.yaml": def("web"), "b.yaml": "# here\n" + def("web")},
			`DIR/b.yaml:2: id: "web" is that of service default/web at DIR/a.yaml:1; remove one of the two, or give one another id`},
		{map[string]string{"a.yaml": def("web") + "---\n" + def("web", "namespace: shop")},
			`DIR/a.yaml:6: id: "web" is that of service default/web at DIR/a.yaml:1; remove one of the two, or give one another id`},
		{map[string]string{"a.yml": def("web")}, `DIR/a.yml: only files that end in .yaml are read; rename it to a.yaml, or move it away`},
		{map[string]string{"a.json": "{}"}, `DIR/a.json: only files that end in .yaml are read; rename it to a.yaml, or move it away`},
		{map[string]string{"a.yaml": strings.Repeat("#", 4<<20+1)}, `DIR/a.yaml: 4194305 bytes: at most 4194304 are read`},
		{map[string]string{"a.yaml": "naem: x", "b.yaml": "naem: x"},
			"DIR/a.yaml:1: naem: unknown field; did you mean \"name\"?\nDIR/b.yaml:1: naem: unknown field; did you mean \"name\"?"},
	} {
		h := newHost(t)
		for name, text := range c.files {
			h.write(name, text)
		}
		err := h.Load()
		if err == nil || strings.ReplaceAll(filepath.ToSlash(err.Error()), filepath.ToSlash(h.dir), "DIR") != c.want {
			t.Errorf("got  %v\nwant %s", err, c.want)
		}
		if s := h.State(); s.Version != 0 || len(s.Services) > 0 {
			t.Errorf("%s: half of it counts: %+v", c.want, s)
		}
	}
	h := newHost(t)
	if err := os.Mkdir(filepath.Join(h.dir, "d.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := h.Load(); err == nil || !strings.HasSuffix(err.Error(), "d.yaml: is not a file; move it away") {
		t.Errorf("a directory: %v", err)
	}
	h = newHost(t)
	h.write("a.yaml", strings.Join(slices.Collect(func(yield func(string) bool) {
		for i := range MaxServices + 1 {
			yield(def(fmt.Sprint("s", i)))
		}
	}), "---\n"))
	if err := h.Load(); err == nil || !strings.HasSuffix(err.Error(), "services.d: 1025 services: at most 1024 are possible") {
		t.Errorf("many services: %v", err)
	}
}

// run runs f beside the registry, in virtual time.
func (h *host) run(f func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- h.Run(ctx) }()
	f()
	cancel()
	if err := <-done; err != nil {
		h.t.Errorf("Run: %v", err)
	}
}

// polls lets the registry look at the directory n times.
func polls(n int) {
	time.Sleep(time.Duration(n)*pollEvery + time.Millisecond)
	synctest.Wait()
}

func TestHotReload(t *testing.T) {
	h := newHost(t)
	synctest.Test(t, func(t *testing.T) {
		h.write("a.yaml", def("web"))
		h.load()
		h.run(func() {
			h.log.Reset()
			h.write(".a.yaml.swp", "an editor's")
			polls(4)
			if h.log.Len() > 0 {
				t.Errorf("logged about nothing: %s", h.log.String())
			}
			if v := h.State().Version; v != 1 {
				t.Errorf("nothing changed, and the version is %d", v)
			}
			h.write("b.yaml", def("api"))
			polls(1)
			h.want("default/web web file a.yaml") // it may still be being written
			polls(1)
			h.want("default/api api file b.yaml", "default/web web file a.yaml")

			h.log.Reset()
			h.write("b.yaml", def("api", "prot: http"))
			h.write("a.yaml", def("web2")) // good, but the directory counts as a whole
			polls(2)
			h.want("default/api api file b.yaml", "default/web web file a.yaml")
			h.problems(`b.yaml:4: prot: unknown field; did you mean "port"?`)
			polls(10)
			if got := h.log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `b.yaml:4: prot: unknown field; did you mean \"port\"?`) {
				t.Errorf("the log has %q", got)
			}

			h.write("b.yaml", def("api", "weight: 2"))
			polls(2)
			h.want("default/api api file b.yaml", "default/web2 web2 file a.yaml")
			h.problems()

			v := h.State().Version
			h.write("a.yaml", "# comment\n"+def("web2"))
			polls(2)
			if h.State().Version != v {
				t.Error("a comment made a new version")
			}
			os.Remove(filepath.Join(h.dir, "a.yaml"))
			polls(2)
			h.want("default/api api file b.yaml")
			os.RemoveAll(h.dir)
			polls(2)
			h.want()
		})
	})
}

// TestHalfWrittenFileIsNotRead: a file that changes with every look is left alone until it stops.
func TestHalfWrittenFileIsNotRead(t *testing.T) {
	h := newHost(t)
	synctest.Test(t, func(t *testing.T) {
		h.load()
		h.run(func() {
			text := def("web")
			for i := 1; i <= len(text); i++ {
				h.write("a.yaml", text[:i])
				polls(1)
				h.want()
				h.problems()
			}
			polls(1)
			h.want("default/web web file a.yaml")
		})
		seen := scan(h.dir)
		h.write("a.yaml", def("another")) // after the look, before it is read; kernels before 6.13 tell times to 4 ms, so the size differs
		h.reload(seen)
		h.want("default/web web file a.yaml")
	})
}

func TestWatch(t *testing.T) {
	h := newHost(t)
	synctest.Test(t, func(t *testing.T) {
		h.load()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if s, err := h.Watch(ctx, 0); err != nil || s.Version != 1 {
			t.Errorf("at once: %+v, %v", s, err)
		}
		got := make(chan State, 1)
		go func() {
			s, _ := h.Watch(ctx, 1)
			got <- s
		}()
		synctest.Wait()
		if len(got) > 0 {
			t.Fatal("returned before a change")
		}
		if _, err := h.Register(ctx, []byte(def("web"))); err != nil {
			t.Fatal(err)
		}
		if s := <-got; s.Version != 2 || len(s.Services) != 1 {
			t.Errorf("after a change: %+v", s)
		}
		cancel()
		if _, err := h.Watch(ctx, 2); !errors.Is(err, context.Canceled) {
			t.Errorf("at the end: %v", err)
		}
	})
}

func TestRegister(t *testing.T) {
	h := newHost(t)
	h.write("a.yaml", def("web"))
	h.load()
	register := func(source string) error {
		_, err := h.Register(t.Context(), []byte(source))
		return err
	}
	r, err := h.Register(t.Context(), []byte(def("api", "address: 10.0.0.7")))
	if err != nil || r.Source != "api" || r.ID != "api" || r.Weight != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := register(`{"name": "job", "namespace": "shop", "port": 1, "protocol": "tcp"}`); err != nil {
		t.Fatal(err)
	}
	v := h.State().Version
	if err := register(def("api", "address: 10.0.0.7")); err != nil || h.State().Version != v {
		t.Errorf("the same again: %v, version %d after %d", err, h.State().Version, v)
	}
	if err := register(def("api", "weight: 5")); err != nil || h.State().Services[0].Weight != 5 {
		t.Errorf("replaced: %v, %+v", err, h.State().Services[0])
	}
	all := []string{"default/api api api", "default/web web file a.yaml", "shop/job job api"}
	h.want(all...)
	for _, c := range []struct{ in, want string }{
		{def("web"), `id "web" of service default/web: defined in a file: DIR/a.yaml:1; change it there, or use another id`},
		{def("other", "id: web", "namespace: shop"), `id "web" of service default/web: defined in a file: DIR/a.yaml:1; change it there, or use another id`},
		{def("job"), `id "job" is that of service shop/job, of another namespace: use another id`},
		{def("x", "address: 10.0.0.8"), `definition:1: address: 10.0.0.8 is not an address of this host; over the API a service may only be where this host is; define others in a file`},
		{def("x", "address: 169.254.169.254"), `definition:4: address: 169.254.169.254 is not one to dial; give the one at which the application is reached on this host, such as 127.0.0.1`},
		{def("x", "checks: [{type: script, args: [/bin/sh]}]"),
			`definition:4: checks[0].args: unknown field; it is one of name, type, http, tcp, grpc, ttl, interval, timeout, successes, failures`},
		{def("x") + "---\n" + def("y"), `definition: 2 documents: one is wanted`},
		{"", `definition: 0 documents: one is wanted`},
		{strings.Repeat("#", MaxSource+1), `definition: 65537 bytes: at most 65536 are read`},
	} {
		err := register(c.in)
		if err == nil || strings.ReplaceAll(filepath.ToSlash(err.Error()), filepath.ToSlash(h.dir), "DIR") != c.want {
			t.Errorf("got  %v\nwant %s", err, c.want)
		}
		if _, invalid := errors.AsType[*InvalidError](err); invalid == errors.Is(err, ErrFile) {
			t.Errorf("%v is of the wrong kind", err)
		}
	}
	h.want(all...)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Register(ctx, []byte(def("late"))); !errors.Is(err, context.Canceled) {
		t.Errorf("registered after the caller had gone: %v", err)
	}

	h.restart()
	h.load()
	h.want(all...)
	if s := h.State().Services[0]; s.Weight != 5 {
		t.Errorf("after a restart: %+v", s)
	}
	for _, c := range []struct{ ns, id, want string }{
		{"default", "job", "no such service on this host: default/job"},
		{"default", "none", "no such service on this host: default/none"},
		{"default", "web", "default/web: defined in a file: DIR/a.yaml:1; remove it there"},
	} {
		if err := h.Deregister(c.ns, c.id); err == nil || strings.ReplaceAll(filepath.ToSlash(err.Error()), filepath.ToSlash(h.dir), "DIR") != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	if err := h.Deregister("shop", "job"); err != nil {
		t.Error(err)
	}
	h.want(all[:2]...)
	h.restart()
	h.load()
	h.want(all[:2]...)
}

// TestFileCountsOverAPI: a service that moves from the API to a file is there all the time, and the leftover is told.
func TestFileCountsOverAPI(t *testing.T) {
	h := newHost(t)
	synctest.Test(t, func(t *testing.T) {
		h.load()
		if _, err := h.Register(t.Context(), []byte(def("web"))); err != nil {
			t.Fatal(err)
		}
		if err := h.SetMaintenance("default", "web", true, "disk"); err != nil {
			t.Fatal(err)
		}
		problem := `service default/web, registered over the API, does not count: a.yaml:1 defines its id "web"; deregister it`
		h.run(func() {
			h.write("a.yaml", def("web"))
			polls(2)
			h.want("default/web web file a.yaml! disk")
			h.problems(problem)
			if n := strings.Count(h.log.String(), "does not count: "); n != 1 {
				t.Errorf("logged %d times", n)
			}
		})
		h.restart()
		h.load()
		h.want("default/web web file a.yaml! disk")
		h.problems(problem)
		if err := h.Deregister("default", "web"); err != nil {
			t.Fatal(err)
		}
		h.want("default/web web file a.yaml! disk")
		h.problems()
	})
}

func TestMaintenance(t *testing.T) {
	h := newHost(t)
	synctest.Test(t, func(t *testing.T) {
		h.write("a.yaml", def("web"))
		h.load()
		if _, err := h.Register(t.Context(), []byte(def("api"))); err != nil {
			t.Fatal(err)
		}
		set := func(ns, id string, on bool, reason, want string) {
			t.Helper()
			if err := h.SetMaintenance(ns, id, on, reason); want == "" && err != nil || want != "" && (err == nil || err.Error() != want) {
				t.Errorf("got %v, want %q", err, want)
			}
		}
		set("default", "none", true, "", "no such service on this host: default/none")
		set("shop", "web", true, "", "no such service on this host: shop/web")
		set("default", "web", true, "a\nb", "reason: one line of at most 256 bytes is possible")
		set("default", "web", true, strings.Repeat("x", 257), "reason: one line of at most 256 bytes is possible")
		set("default", "web", true, "", "")
		set("default", "api", true, "disk is swapped", "")
		h.want("default/api api api! disk is swapped", "default/web web file a.yaml! no reason was given")
		v := h.State().Version
		set("default", "api", true, "disk is swapped", "")
		if h.State().Version != v {
			t.Error("the same again made a new version")
		}
		h.restart()
		h.load()
		h.want("default/api api api! disk is swapped", "default/web web file a.yaml! no reason was given")

		// It outlives the absence of the file, but not a deregistration.
		h.run(func() {
			os.Rename(filepath.Join(h.dir, "a.yaml"), filepath.Join(h.dir, "a.off"))
			polls(2)
			h.want("default/api api api! disk is swapped")
			os.Rename(filepath.Join(h.dir, "a.off"), filepath.Join(h.dir, "a.yaml"))
			polls(2)
			h.want("default/api api api! disk is swapped", "default/web web file a.yaml! no reason was given")
			os.Remove(filepath.Join(h.dir, "a.yaml"))
			polls(2)
			set("default", "web", false, "", "")
			set("default", "web", false, "", "no such service on this host: default/web")
		})
		if err := h.Deregister("default", "api"); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Register(t.Context(), []byte(def("api"))); err != nil {
			t.Fatal(err)
		}
		h.want("default/api api api")
		set("default", "api", false, "", "") // not on: no change
	})
}

// TestStateFile: it is for its owner alone, and what cannot be read stops the start and says what to do.
func TestStateFile(t *testing.T) {
	h := newHost(t)
	h.load()
	if _, err := h.Register(t.Context(), []byte(def("web"))); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(h.file); err != nil || runtime.GOOS != "windows" && st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if es, err := os.ReadDir(filepath.Dir(h.file)); err != nil || len(es) != 1 {
		t.Errorf("beside the state file: %v, %v", es, err)
	}
	for _, c := range []struct{ text, want string }{
		{"{", "FILE is damaged (unexpected end of JSON input): restore it from a backup, or remove it and register its services again"},
		{"", "FILE is damaged (unexpected end of JSON input): restore it from a backup, or remove it and register its services again"},
		{"{}", "FILE is damaged (it has no version): restore it from a backup, or remove it and register its services again"},
		{`{"version": 1, "services": ["name: A"]}`, "FILE is damaged (services[0]:1: name: invalid name: service name \"A\": character 'A' is not allowed here: use a-z, 0-9 and inner hyphens\n" +
			"services[0]:1: port: is needed; give the one at which the application listens\n" +
			"services[0]:1: protocol: is needed; it is one of http, http2, grpc, tcp, tls, auto, gateway): restore it from a backup, or remove it and register its services again"},
		{`{"version": 1, "services": [""]}`, "FILE is damaged (services[0]: 0 documents): restore it from a backup, or remove it and register its services again"},
		{`{"version": 2, "services": {}}`, "FILE was written by a newer meshagent (version 2, this one reads up to 1): install that one"},
	} {
		if err := os.WriteFile(h.file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		h.restart()
		if err := h.Load(); err == nil || strings.ReplaceAll(err.Error(), h.file, "FILE") != c.want {
			t.Errorf("%s\n got %v\nwant %s", c.text, err, c.want)
		}
	}
}

// TestNothingChangesWhenTheDiskFails: what could not be kept does not count.
func TestNothingChangesWhenTheDiskFails(t *testing.T) {
	h := newHost(t)
	h.load()
	if _, err := h.Register(t.Context(), []byte(def("web"))); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(filepath.Dir(h.file))
	v := h.State().Version
	_, err := h.Register(t.Context(), []byte(def("api")))
	for _, err := range []error{err, h.SetMaintenance("default", "web", true, ""), h.Deregister("default", "web")} {
		if err == nil || !strings.HasPrefix(err.Error(), "not kept, so nothing has changed: ") {
			t.Errorf("got %v", err)
		}
	}
	h.want("default/web web api")
	if h.State().Version != v {
		t.Error("a new version")
	}
}

func TestAPIIsBounded(t *testing.T) {
	h := newHost(t)
	h.load()
	for i := range MaxServices { // as if registered: each on its own is written to disk
		d := Definition{Name: fmt.Sprint("s", i), Namespace: "default", ID: fmt.Sprint("s", i)}
		h.api[d.ID] = apiService{def: d}
	}
	_, err := h.Register(t.Context(), []byte(def("web")))
	if want := "1024 services are registered over the API, and no more are possible: deregister some"; err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
	if _, err := h.Register(t.Context(), []byte(def("s7"))); err != nil {
		t.Errorf("one that is there is replaced: %v", err)
	}
}

func TestHostAddrs(t *testing.T) {
	as, err := interfaceAddrs()
	if err != nil || !slices.ContainsFunc(as, netip.Addr.IsLoopback) {
		t.Errorf("%v, %v", as, err)
	}
}

// BenchmarkScan is the look at 20 files that happens with every poll.
func BenchmarkScan(b *testing.B) {
	dir := b.TempDir()
	for i := range 20 {
		os.WriteFile(filepath.Join(dir, fmt.Sprint(i, ".yaml")), []byte(def("web")), 0o644)
	}
	for b.Loop() {
		scan(dir)
	}
}
