package checks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/agent/registry"
	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
)

// apps is what answers on this host, over pipes: an application for each address, and a log of who was dialled.
type apps struct {
	t      *testing.T
	mu     sync.Mutex // guards what follows
	at     map[string]http.HandlerFunc
	dialed []string
	when   []time.Time
	open   int // connections
	most   int
}

// pipes is a listener of one connection.
type pipes struct {
	conn chan net.Conn
	done chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conn:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// counted tells when it is closed.
type counted struct {
	net.Conn
	closed func()
}

func (c counted) Close() error { c.closed(); return c.Conn.Close() }

func (a *apps) dial(_ context.Context, network, addr string) (net.Conn, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dialed, a.when = append(a.dialed, network+" "+addr), append(a.when, time.Now())
	h := a.at[addr]
	if h == nil {
		return nil, errors.New("connection refused")
	}
	if a.open++; a.open > a.most {
		a.most = a.open
	}
	ours, theirs := net.Pipe()
	ln := pipes{make(chan net.Conn, 1), make(chan struct{})}
	ln.conn <- theirs
	srv := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go srv.Serve(ln)
	return counted{ours, sync.OnceFunc(func() {
		a.mu.Lock()
		a.open--
		a.mu.Unlock()
		close(ln.done)
		srv.Close()
	})}, nil
}

func (a *apps) set(addr string, h http.HandlerFunc) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at[addr] = h
}

// dials returns how often was dialled since the last call.
func (a *apps) dials() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := len(a.dialed)
	a.dialed, a.when = nil, nil
	return n
}

// seen returns how many connections are open, how many were at a time, and when was dialled.
func (a *apps) seen() (open, most int, when []time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.open, a.most, slices.Clone(a.when)
}

// says answers with a status and a text.
func says(status int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, text)
	}
}

func hangs(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func services(t *testing.T, defs ...string) (out []registry.Registered) {
	t.Helper()
	ds, err := registry.Parse("test", []byte(strings.Join(defs, "\n---\n")))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range ds {
		out = append(out, registry.Registered{Definition: d, Source: "api"})
	}
	return out
}

// web is a service with checks.
func web(checks ...string) string {
	return "{name: web, port: 80, protocol: http, checks: [" + strings.Join(checks, ", ") + "]}"
}

var webKey = Key{mesh.MustServiceName("web"), "web"}

// bubble runs f in virtual time beside Checks that dial apps.
func bubble(t *testing.T, f func(t *testing.T, c *Checks, a *apps)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := &apps{t: t, at: map[string]http.HandlerFunc{}}
		c := New(Config{Dial: a.dial, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		synctest.Wait()
		f(t, c, a)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// stands returns the verdict of web as one line: its health, then that of each check.
func stands(c *Checks) string {
	synctest.Wait()
	m, _ := c.Load()
	v, ok := m[webKey]
	if !ok {
		return "none"
	}
	var s strings.Builder
	s.WriteString(v.Health.String())
	for _, r := range v.Checks {
		fmt.Fprintf(&s, " %s=%v", r.Name, r.Health)
	}
	return s.String()
}

func output(c *Checks, check int) string {
	synctest.Wait()
	m, _ := c.Load()
	return m[webKey].Checks[check].Output
}

func TestNewInstanceIsCriticalUntilAnswered(t *testing.T) {
	bubble(t, func(t *testing.T, c *Checks, a *apps) {
		a.set("127.0.0.1:80", func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(70 * time.Millisecond)
			says(200, "fine")(w, r)
		})
		c.Set(services(t, web("{type: http}"), "{name: plain, port: 81, protocol: tcp}"))
		if m, _ := c.Load(); len(m) != 1 {
			t.Errorf("an instance without checks has a verdict: %v", m)
		}
		if got, out := stands(c), output(c, 0); got != "critical http=critical" || out != "not asked yet" {
			t.Errorf("at first: %s, %q", got, out)
		}
		time.Sleep(71 * time.Millisecond)
		if got, out := stands(c), output(c, 0); got != "passing http=passing" || out != "200 OK: fine" {
			t.Errorf("after the first answer: %s, %q", got, out)
		}
	})
}

func TestWorstCheckCounts(t *testing.T) {
	bubble(t, func(t *testing.T, c *Checks, a *apps) {
		a.set("127.0.0.1:80", says(200, ""))
		a.set("127.0.0.1:81", says(429, ""))
		c.Set(services(t, web("{type: http}", "{type: tcp}", "{name: load, type: http, http: {port: 81}}", "{name: admin, type: tcp, tcp: {port: 82}}")))
		if got := stands(c); got != "critical http=passing tcp=passing load=warning admin=critical" {
			t.Error(got)
		}
		a.set("127.0.0.1:82", says(200, ""))
		time.Sleep(11 * time.Second)
		if got := stands(c); got != "warning http=passing tcp=passing load=warning admin=passing" {
			t.Error(got)
		}
		a.set("127.0.0.1:81", says(204, ""))
		time.Sleep(11 * time.Second)
		if got := stands(c); got != "passing http=passing tcp=passing load=passing admin=passing" {
			t.Error(got)
		}
	})
}

// TestThresholds walks a check through answers: p passing, w warning, c critical; the health after each is told.
func TestThresholds(t *testing.T) {
	for _, c := range []struct {
		successes, failures int
		answers, want       string
	}{
		{1, 1, "pcpwcw", "pcpwcw"},
		{1, 3, "pccpcccp", "pppppp" + "cp"},
		{3, 1, "pppcpwpp", "ccpccc" + "pp"},
		{2, 2, "wwpcwccpp", "cwpp" + "wwccp"},
		{2, 2, "pcpcpp", "cccccp"},
	} {
		k := newCheck(c.successes, c.failures)
		var got strings.Builder
		for _, a := range c.answers {
			got.WriteString(answer(k, healthOf[a]))
		}
		if got.String() != c.want {
			t.Errorf("successes %d, failures %d: %s gives %s, want %s", c.successes, c.failures, c.answers, got.String(), c.want)
		}
	}
}

var healthOf = map[rune]mesh.Health{'p': mesh.Passing, 'w': mesh.Warning, 'c': mesh.Critical}

func newCheck(successes, failures int) *check {
	return &check{cfg: registry.Check{Type: "http", Successes: successes, Failures: failures}, result: Result{Health: mesh.Critical}}
}

func answer(k *check, h mesh.Health) string {
	New(Config{Log: slog.New(slog.DiscardHandler)}).take(k, h, "")
	return k.result.Health.String()[:1]
}

// FuzzThresholds: the counters agree with a twin that looks at all answers each time.
func FuzzThresholds(f *testing.F) {
	f.Add(uint8(2), uint8(3), []byte("pccwcccpp"))
	f.Fuzz(func(t *testing.T, successes, failures uint8, answers []byte) {
		up, down := int(successes%5)+1, int(failures%5)+1
		k, twin := newCheck(up, down), mesh.Critical
		for i := range answers {
			answers[i] %= 3
			answer(k, mesh.Health(answers[i]))
			serving := func(b byte) bool { return mesh.Health(b).Serving() }
			n := 1 // the length of the run of good or bad answers that ends here
			for i-n >= 0 && serving(answers[i-n]) == serving(answers[i]) {
				n++
			}
			switch h := mesh.Health(answers[i]); {
			case h.Serving() && (twin.Serving() || n >= up), !h.Serving() && n >= down:
				twin = h
			}
			if k.result.Health != twin {
				t.Fatalf("successes %d, failures %d, answers %v: %v, the twin says %v", up, down, answers[:i+1], k.result.Health, twin)
			}
		}
	})
}

func TestTimeout(t *testing.T) {
	bubble(t, func(t *testing.T, c *Checks, a *apps) {
		a.set("127.0.0.1:80", hangs)
		c.Set(services(t, web("{type: http, interval: 2s, timeout: 300ms}")))
		time.Sleep(300*time.Millisecond + 1)
		if got, out := stands(c), output(c, 0); got != "critical http=critical" || out != "no answer within 300ms" {
			t.Errorf("%s, %q", got, out)
		}
		if open, _, _ := a.seen(); open != 0 {
			t.Errorf("%d connections are open", open)
		}
	})
}

// TestInterval: asked at once, then at the interval with a little jitter, also when answers take long; never two at a time.
func TestInterval(t *testing.T) {
	bubble(t, func(t *testing.T, c *Checks, a *apps) {
		var n atomic.Int32
		a.set("127.0.0.1:80", func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1)%2 == 0 {
				hangs(w, r)
			}
		})
		start := time.Now()
		c.Set(services(t, web("{type: http, interval: 1s, timeout: 900ms, failures: 100}")))
		time.Sleep(100 * time.Second)
		_, most, when := a.seen()
		if when[0] != start {
			t.Errorf("first asked after %v", when[0].Sub(start))
		}
		gaps := map[time.Duration]bool{}
		for i := range when[1:] {
			d := when[i+1].Sub(when[i])
			if gaps[d] = true; d < 950*time.Millisecond || d > 1050*time.Millisecond {
				t.Errorf("asked after %v", d)
			}
		}
		if len(gaps) < 50 {
			t.Errorf("only %d different intervals of %d", len(gaps), len(when))
		}
		if most != 1 {
			t.Errorf("%d at a time", most)
		}
	})
}

func TestParallelIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &apps{t: t, at: map[string]http.HandlerFunc{"127.0.0.1:80": hangs}}
		c := New(Config{Dial: a.dial, Parallel: 3, Log: slog.New(slog.DiscardHandler)})
		var checks []string
		for i := range 12 {
			checks = append(checks, fmt.Sprintf("{name: c%d, type: http, interval: 4s, timeout: 1s}", i))
		}
		c.Set(services(t, web(checks...)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		time.Sleep(4*time.Second + 1)
		synctest.Wait()
		m, _ := c.Load()
		for _, r := range m[webKey].Checks {
			if r.Output != "no answer within 1s" {
				t.Errorf("%s: %s", r.Name, r.Output)
			}
		}
		if _, most, _ := a.seen(); most != 3 {
			t.Errorf("%d at a time", most)
		}
		cancel()
		<-done
	})
}

// TestSet: what did not change goes on, what changed is asked anew, what is gone is left alone.
func TestSet(t *testing.T) {
	bubble(t, func(t *testing.T, c *Checks, a *apps) {
		a.set("127.0.0.1:80", says(200, ""))
		c.Set(services(t, web("{type: http}", "{type: tcp}")))
		if got := stands(c); got != "passing http=passing tcp=passing" || a.dials() != 2 {
			t.Fatal(got)
		}
		_, version := c.Load()
		c.Set(services(t, web("{type: http}", "{type: tcp}")))
		c.Set(services(t, "{name: web, port: 80, protocol: http, weight: 7, checks: [{type: http}, {type: tcp}]}"))
		synctest.Wait()
		if _, v := c.Load(); v != version || a.dials() != 0 {
			t.Errorf("nothing changed: version %d after %d", v, version)
		}

		a.set("127.0.0.1:80", hangs)
		c.Set(services(t, web("{type: http, interval: 1s}", "{type: tcp}")))
		if got := stands(c); got != "passing http=passing tcp=passing" || a.dials() != 1 {
			t.Errorf("a check that changed is out of balancing: %s", got)
		}
		time.Sleep(time.Second + 1) // its timeout
		if got := stands(c); got != "critical http=critical tcp=passing" {
			t.Error(got)
		}

		a.set("127.0.0.1:81", says(200, ""))
		a.mu.Lock() // until then nobody is dialled
		c.Set(services(t, "{name: web, port: 81, protocol: http, checks: [{type: http}, {type: tcp}]}"))
		m, _ := c.Load()
		a.mu.Unlock()
		if m[webKey].Checks[1].Output != "not asked yet" {
			t.Errorf("another port is another application: %+v", m)
		}
		if got := stands(c); got != "passing http=passing tcp=passing" {
			t.Error(got)
		}

		c.Set(nil)
		a.dials()
		time.Sleep(time.Minute)
		if got, n := stands(c), a.dials(); got != "none" || n != 0 {
			t.Errorf("after its removal: %s, dialled %d times", got, n)
		}
	})
}

// TestRemovedWhileAsked: an answer that comes after the removal changes nothing.
func TestRemovedWhileAsked(t *testing.T) {
	bubble(t, func(t *testing.T, c *Checks, a *apps) {
		a.set("127.0.0.1:80", hangs)
		c.Set(services(t, web("{type: http}")))
		synctest.Wait()
		c.Set(nil)
		synctest.Wait()
		_, v := c.Load()
		time.Sleep(time.Minute)
		synctest.Wait()
		open, _, _ := a.seen()
		if _, got := c.Load(); got != v || open != 0 {
			t.Errorf("version %d after %d, %d connections", got, v, open)
		}
	})
}

func TestTTL(t *testing.T) {
	bubble(t, func(t *testing.T, c *Checks, a *apps) {
		c.Set(services(t, web("{name: self, type: ttl, ttl: {ttl: 10s}}", "{type: tcp}")))
		a.set("127.0.0.1:80", says(200, ""))
		time.Sleep(time.Hour)
		if got, out := stands(c), output(c, 0); got != "critical self=critical tcp=passing" || out != "the application has not said anything yet" {
			t.Errorf("at first: %s, %q", got, out)
		}
		say := func(h mesh.Health) {
			t.Helper()
			if err := c.Update(webKey, "self", h, "word\x1b[31m"); err != nil {
				t.Error(err)
			}
		}
		for range 5 {
			say(mesh.Passing)
			if got, out := stands(c), output(c, 0); got != "passing self=passing tcp=passing" || out != "word [31m" {
				t.Errorf("%s, %q", got, out)
			}
			time.Sleep(9 * time.Second)
		}
		say(mesh.Warning)
		time.Sleep(10*time.Second - 1)
		if got := stands(c); got != "warning self=warning tcp=passing" {
			t.Error(got)
		}
		time.Sleep(time.Nanosecond)
		if got, out := stands(c), output(c, 0); got != "critical self=critical tcp=passing" || out != "the application has not said anything for 10s" {
			t.Errorf("%s, %q", got, out)
		}
		say(mesh.Critical)
		say(mesh.Passing)
		time.Sleep(5 * time.Second)
		c.Set(services(t, web("{name: self, type: ttl, ttl: {ttl: 20s}}", "{type: tcp}")))
		time.Sleep(15*time.Second - 1)
		if got := stands(c); got != "passing self=passing tcp=passing" {
			t.Errorf("a longer ttl: %s", got)
		}
		time.Sleep(time.Nanosecond)
		if got := stands(c); got != "critical self=critical tcp=passing" {
			t.Errorf("a longer ttl is over: %s", got)
		}
		for _, u := range []struct {
			key    Key
			check  string
			health mesh.Health
			kind   error
			want   string
		}{
			{webKey, "none", mesh.Passing, ErrNotFound, `no such check on this host: check "none" of service default/web, id "web"`},
			{Key{webKey.Service, "x"}, "self", mesh.Passing, ErrNotFound, `no such check on this host: check "self" of service default/web, id "x"`},
			{webKey, "tcp", mesh.Passing, ErrNotTTL, `not a check that waits for the application's word: check tcp of service default/web is of type tcp`},
			{webKey, "self", mesh.Maintenance, ErrInvalid, `invalid word: health maintenance: say passing, warning or critical`},
		} {
			if err := c.Update(u.key, u.check, u.health, ""); !errors.Is(err, u.kind) || err.Error() != u.want {
				t.Errorf("got %v, want %s", err, u.want)
			}
		}
	})
}

// TestWordAtTheLastMoment: a word that comes while the one before is being declared over counts.
func TestWordAtTheLastMoment(t *testing.T) {
	bubble(t, func(t *testing.T, c *Checks, a *apps) {
		c.Set(services(t, web("{type: ttl, ttl: {ttl: 10s}}")))
		if err := c.Update(webKey, "ttl", mesh.Passing, ""); err != nil {
			t.Fatal(err)
		}
		c.expire(c.instances[webKey][0])
		if got := stands(c); got != "passing ttl=passing" {
			t.Error(got)
		}
	})
}

// TestBeforeRun: verdicts and words are there before anything runs.
func TestBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &apps{t: t, at: map[string]http.HandlerFunc{}}
		c := New(Config{Dial: a.dial, Log: slog.New(slog.DiscardHandler)})
		c.Set(services(t, web("{type: ttl, ttl: {ttl: 10s}}")))
		if got := stands(c); got != "critical ttl=critical" {
			t.Error(got)
		}
		if err := c.Update(webKey, "ttl", mesh.Passing, ""); err != nil || stands(c) != "passing ttl=passing" {
			t.Errorf("%v, %s", err, stands(c))
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		time.Sleep(11 * time.Second)
		if got := stands(c); got != "critical ttl=critical" {
			t.Errorf("the word is over: %s", got)
		}
		cancel()
		<-done
		c.Set(services(t, web("{type: tcp}")))
		synctest.Wait()
		if a.dials() != 0 {
			t.Error("asked after the end")
		}
	})
}

// TestResume: checks go on as another process left them, once.
func TestResume(t *testing.T) {
	bubble(t, func(t *testing.T, c *Checks, a *apps) {
		a.set("127.0.0.1:80", says(200, ""))
		web := web("{type: http}", "{name: word, type: ttl, ttl: {ttl: 10s}}", "{name: other, type: tcp, tcp: {port: 81}}")
		c.Resume(map[Key]Verdict{webKey: {Checks: []Result{{Name: "http", Type: "http", Health: mesh.Passing}, {Name: "word", Type: "ttl", Health: mesh.Warning},
			{Name: "other", Type: "http", Health: mesh.Passing}}}})
		c.Set(services(t, web))
		if got := stands(c); got != "critical http=passing word=warning other=critical" {
			t.Error(got)
		}
		time.Sleep(10 * time.Second)
		if got := stands(c); !strings.Contains(got, "word=critical") {
			t.Errorf("the word is over: %s", got)
		}
		c.Set(nil)
		c.Set(services(t, web))
		if got := stands(c); !strings.Contains(got, "word=critical") {
			t.Errorf("another instance of the name: %s", got)
		}
	})
}

// TestWatch: a change of health is a new version, and a new output alone is not.
func TestWatch(t *testing.T) {
	bubble(t, func(t *testing.T, c *Checks, a *apps) {
		var n, status atomic.Int32
		status.Store(200)
		a.set("127.0.0.1:80", func(w http.ResponseWriter, r *http.Request) {
			says(int(status.Load()), fmt.Sprint("answer ", n.Add(1)))(w, r)
		})
		c.Set(services(t, web("{type: http, interval: 1s}")))
		time.Sleep(5500 * time.Millisecond)
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		_, v, err := c.Watch(ctx, 0)
		if err != nil || output(c, 0) != fmt.Sprint("200 OK: answer ", n.Load()) || n.Load() < 5 {
			t.Errorf("%s, %v", output(c, 0), err)
		}
		got := make(chan Verdict, 1)
		go func() {
			m, _, _ := c.Watch(ctx, v)
			got <- m[webKey]
		}()
		time.Sleep(5 * time.Second)
		if synctest.Wait(); len(got) > 0 {
			t.Fatal("woken by an output")
		}
		status.Store(500)
		start := time.Now()
		if w := <-got; w.Health != mesh.Critical || w.Checks[0].Since.Before(start) {
			t.Errorf("%+v", w)
		}
		cancel()
		if _, _, err := c.Watch(ctx, 1<<40); !errors.Is(err, context.Canceled) {
			t.Errorf("at the end: %v", err)
		}
	})
}

// TestLogAndMetrics: a check that flaps is counted always and logged seldom.
func TestLogAndMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		m := telemetry.NewMetrics()
		a := &apps{t: t, at: map[string]http.HandlerFunc{}}
		var asked atomic.Int32
		a.set("127.0.0.1:80", func(w http.ResponseWriter, r *http.Request) {
			says(200+300*int(asked.Add(1)%2), "")(w, r)
		})
		c := New(Config{Dial: a.dial, Log: slog.New(slog.NewTextHandler(&log, nil)), Metrics: m})
		c.Set(services(t, web("{type: http, interval: 100ms}")))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		time.Sleep(9 * time.Second)
		cancel()
		<-done
		if got := log.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "level=WARN") ||
			!strings.Contains(got, `msg="check changed" service=default/web id=web check=http from=critical to=passing output="200 OK"`) {
			t.Errorf("the log has %s", got)
		}
		n := asked.Load()
		w := httptest.NewRecorder()
		m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		for _, want := range []string{
			fmt.Sprintf(`meshagent_check_runs_total{health="critical",type="http"} %d`, (n+1)/2),
			fmt.Sprintf(`meshagent_check_runs_total{health="passing",type="http"} %d`, n/2),
			fmt.Sprintf(`meshagent_check_instances{health="critical"} %d`, n%2),
			fmt.Sprintf(`meshagent_check_instances{health="passing"} %d`, (n+1)%2),
			`meshagent_check_instances{health="warning"} 0`,
		} {
			if !slices.Contains(strings.Split(w.Body.String(), "\n"), want) {
				t.Errorf("no %s", want)
			}
		}
	})
}
