package run

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestGroupStopsInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var stopped []string
		var g Group
		for _, n := range []string{"a", "b", "c"} {
			g.Add(n, func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(time.Second) // a slow stop must be awaited before the next begins
				mu.Lock()
				defer mu.Unlock()
				stopped = append(stopped, n)
				return nil
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		if err := g.Run(ctx); err != nil {
			t.Error(err)
		}
		if !slices.Equal(stopped, []string{"c", "b", "a"}) || time.Since(start) != 4*time.Second {
			t.Errorf("stopped %v in %v", stopped, time.Since(start))
		}
	})
}

// TestGroupStopsSome stops two of three while the group goes on.
func TestGroupStopsSome(t *testing.T) {
	var mu sync.Mutex
	var stopped []string
	var g Group
	ctx, cancel := context.WithCancel(t.Context())
	for _, n := range []string{"a", "b", "c"} {
		g.Add(n, func(ctx context.Context) error {
			<-ctx.Done()
			mu.Lock()
			defer mu.Unlock()
			stopped = append(stopped, n)
			return nil
		})
	}
	g.Add("front", func(ctx context.Context) error {
		g.Stop(func(name string) bool { return name == "a" || name == "c" })
		mu.Lock()
		stopped = append(stopped, "the others go on")
		mu.Unlock()
		cancel()
		<-ctx.Done()
		return nil
	})
	if err := g.Run(ctx); err != nil || !slices.Equal(stopped, []string{"c", "a", "the others go on", "b"}) {
		t.Errorf("%v, %v", stopped, err)
	}
}

func TestGroupEndsWithItsFirstMember(t *testing.T) {
	wait := func(ctx context.Context) error { <-ctx.Done(); return nil }
	boom := errors.New("boom")
	for name, f := range map[string]func(context.Context) error{
		"boom":                         func(context.Context) error { return boom },
		"panic: ouch":                  func(context.Context) error { panic("ouch") },
		"ended without being asked to": func(context.Context) error { return nil },
	} {
		var g Group
		g.Add("first", wait)
		g.Add("second", f)
		g.Add("third", wait)
		err := g.Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "second") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Ready
		a, b := r.Task("a"), r.Task("b")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		a()
		a()
		if err := r.Wait(ctx); err == nil || !strings.Contains(err.Error(), "waiting for b") {
			t.Errorf("got %v", err)
		}
		time.AfterFunc(time.Second, b)
		if err := r.Wait(t.Context()); err != nil || len(r.Pending()) != 0 {
			t.Errorf("%v, pending %v", err, r.Pending())
		}
	})
}

func TestServeHTTPDrains(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	in, out := make(chan struct{}), make(chan struct{})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(in)
		<-out
		io.WriteString(w, "ok")
	})}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- ServeHTTP(ctx, ln, srv, time.Minute) }()
	body := make(chan string, 1)
	go func() {
		resp, err := http.Get("http://" + ln.Addr().String())
		if err != nil {
			body <- err.Error()
			return
		}
		b, _ := io.ReadAll(resp.Body)
		body <- string(b)
	}()
	<-in
	cancel()
	close(out)
	if b, err := <-body, <-served; b != "ok" || err != nil {
		t.Errorf("the request in flight got %q, ServeHTTP %v", b, err)
	}
}
