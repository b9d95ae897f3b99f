package resolve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// rig is a Resolver with a world of names, in virtual time.
type rig struct {
	*Resolver
	mu      sync.Mutex
	answers map[string]answer
	asked   map[string]int
	told    []mesh.Resolved
}

type answer struct {
	addrs []netip.Addr
	ttl   time.Duration
	err   error
}

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func newRig(t *testing.T, allow ...netip.Prefix) *rig {
	r := &rig{answers: map[string]answer{}, asked: map[string]int{}}
	r.Resolver = New(Config{Allow: allow, Log: slog.New(slog.DiscardHandler), Changed: func(now mesh.Resolved) { r.told = append(r.told, now) },
		Lookup: func(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.asked[host]++
			a, ok := r.answers[host]
			if !ok {
				return nil, 0, ErrNotFound
			}
			return a.addrs, a.ttl, a.err
		}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { r.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r
}

func (r *rig) set(host string, a answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers[host] = a
}

func (r *rig) count(host string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked[host]
}

func entry(t *testing.T, host string, res mesh.Resolution, endpoints ...string) *mesh.Entry {
	n, err := mesh.ParseExternal(host)
	if err != nil {
		t.Fatal(err)
	}
	e := &mesh.Entry{Host: n, Resolution: res}
	for _, h := range endpoints {
		e.Endpoints = append(e.Endpoints, mesh.Endpoint{Host: h})
	}
	return e
}

func (r *rig) want(t *testing.T, want string) {
	t.Helper()
	synctest.Wait()
	if got := fmt.Sprint(map[string][]netip.Addr(r.Load())); got != want {
		t.Errorf("known is %s, want %s", got, want)
	}
}

// TestResolves: names are asked for when their time is up, within bounds; a failure keeps the last good answer and is asked again soon.
func TestResolves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.set("a.example.com", answer{addrs("192.0.2.2", "192.0.2.1"), time.Second, nil})
		r.set("b.example.com", answer{addrs("192.0.2.3"), time.Hour, nil})
		r.Set([]*mesh.Entry{entry(t, "a.example.com", mesh.DNS), entry(t, "x.example.com", mesh.DNS, "b.example.com"), entry(t, "s.example.com", mesh.Static)})
		r.want(t, "map[a.example.com:[192.0.2.1 192.0.2.2] b.example.com:[192.0.2.3]]")
		time.Sleep(MinTTL - 1)
		synctest.Wait()
		if n := r.count("a.example.com"); n != 1 {
			t.Errorf("asked %d times before the least time was up", n)
		}
		r.set("a.example.com", answer{addrs("192.0.2.1", "192.0.2.2"), time.Minute, nil})
		told := len(r.told)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if n := r.count("a.example.com"); n != 2 || len(r.told) != told {
			t.Errorf("asked %d times; the same addresses in another order are told of: %v", n, len(r.told) != told)
		}
		r.set("a.example.com", answer{err: errors.New("nobody answers")})
		time.Sleep(time.Minute)
		r.want(t, "map[a.example.com:[192.0.2.1 192.0.2.2] b.example.com:[192.0.2.3]]")
		r.set("a.example.com", answer{addrs("192.0.2.9"), time.Minute, nil})
		time.Sleep(minRetry)
		r.want(t, "map[a.example.com:[192.0.2.9] b.example.com:[192.0.2.3]]")
		if n := r.count("b.example.com"); n != 1 {
			t.Errorf("b was asked %d times in a minute", n)
		}
		time.Sleep(MaxTTL)
		synctest.Wait()
		if n := r.count("b.example.com"); n != 2 {
			t.Errorf("b was asked %d times in %v", n, MaxTTL)
		}
		r.set("a.example.com", answer{err: ErrNotFound})
		time.Sleep(time.Minute)
		r.want(t, "map[b.example.com:[192.0.2.3]]")
		r.Set(nil)
		r.want(t, "map[]")
	})
}

// TestOrder: DNS_ROUND_ROBIN goes by the order of answers.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.set("a.example.com", answer{addrs("192.0.2.2", "192.0.2.1"), MinTTL, nil})
		r.Set([]*mesh.Entry{entry(t, "a.example.com", mesh.DNSFirst)})
		r.want(t, "map[a.example.com:[192.0.2.2 192.0.2.1]]")
		r.set("a.example.com", answer{addrs("192.0.2.1", "192.0.2.2"), MinTTL, nil})
		time.Sleep(MinTTL)
		r.want(t, "map[a.example.com:[192.0.2.1 192.0.2.2]]")
	})
}

// TestReserved: no name leads to this host or its link, as an attacker's own name server could say.
func TestReserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, netip.MustParsePrefix("127.9.0.0/16"))
		r.set("a.example.com", answer{addrs("127.0.0.1", "169.254.169.254", "::1", "fe80::1", "0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "::ffff:127.0.0.1", "192.0.2.1"), time.Minute, nil})
		r.set("b.example.com", answer{addrs("127.0.0.1"), time.Minute, nil})
		r.set("c.example.com", answer{addrs("127.9.0.1"), time.Minute, nil})
		r.Set([]*mesh.Entry{entry(t, "a.example.com", mesh.DNS), entry(t, "b.example.com", mesh.DNS), entry(t, "c.example.com", mesh.DNS)})
		r.want(t, "map[a.example.com:[192.0.2.1] c.example.com:[127.9.0.1]]")
	})
}

// TestWant: a name below a wildcard is resolved when it is asked for, and forgotten when nobody asks for it.
func TestWant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.set("a.wild.example.com", answer{addrs("192.0.2.1"), time.Minute, nil})
		r.set("bad.wild.example.com", answer{err: errors.New("nobody answers")})
		r.set("db.example.com", answer{addrs("192.0.2.5"), time.Minute, nil})
		r.Set([]*mesh.Entry{entry(t, "*.wild.example.com", mesh.DNS), entry(t, "own.wild.example.com", mesh.DNS), entry(t, "*.fixed.example.com", mesh.Static),
			entry(t, "*.db.example.com", mesh.DNS, "db.example.com")})
		for host, want := range map[string]error{"a.wild.example.com": nil, "none.wild.example.com": ErrNotFound, "own.wild.example.com": ErrNotFound,
			"other.example.com": ErrNotFound, "web.service.mesh": ErrNotFound, "x.fixed.example.com": nil, "y.db.example.com": nil} {
			if err := r.Want(t.Context(), host); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", host, err, want)
			}
		}
		if err := r.Want(t.Context(), "bad.wild.example.com"); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("a name that nobody can say anything of: %v", err)
		}
		const known = "map[a.wild.example.com:[192.0.2.1] db.example.com:[192.0.2.5] x.fixed.example.com:[] y.db.example.com:[]]"
		r.want(t, known)
		r.set("a.wild.example.com", answer{err: errors.New("nobody answers")})
		time.Sleep(forget - time.Hour)
		if err := r.Want(t.Context(), "a.wild.example.com"); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Hour)
		r.want(t, "map[a.wild.example.com:[192.0.2.1]]")
		r.Set(nil)
		r.want(t, "map[]")
	})
}

// TestBounds: callers make names up, but not without end.
func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.Set([]*mesh.Entry{entry(t, "*.fixed.example.com", mesh.Static)})
		for i := range MaxWild {
			if err := r.Want(t.Context(), fmt.Sprintf("x%d.fixed.example.com", i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Want(t.Context(), "more.fixed.example.com"); !errors.Is(err, ErrFull) {
			t.Error(err)
		}
		if err := r.Want(t.Context(), "x7.fixed.example.com"); err != nil {
			t.Errorf("a known name: %v", err)
		}
	})
}

// TestRestore: after a start without resolvers what was known last counts, names below wildcards too.
func TestRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		last := mesh.Resolved{"a.example.com": addrs("192.0.2.1"), "x.wild.example.com": addrs("192.0.2.2"), "y.fixed.example.com": nil, "gone.example.org": addrs("192.0.2.3")}
		r.Restore(last)
		for host := range last {
			r.set(host, answer{err: errors.New("nobody answers")})
		}
		r.Set([]*mesh.Entry{entry(t, "a.example.com", mesh.DNS), entry(t, "*.wild.example.com", mesh.DNS), entry(t, "*.fixed.example.com", mesh.Static)})
		r.want(t, "map[a.example.com:[192.0.2.1] x.wild.example.com:[192.0.2.2] y.fixed.example.com:[]]")
		time.Sleep(time.Hour)
		r.want(t, "map[a.example.com:[192.0.2.1] x.wild.example.com:[192.0.2.2] y.fixed.example.com:[]]")
	})
}
