//go:build process && linux

package scenario

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// app is the application of one instance. It speaks HTTP/1.1 and HTTP/2 with prior knowledge, or gRPC, or lines of text, each
// also in TLS, and answers with its id and what it was asked.
type app struct {
	id     string
	lines  bool // it answers lines of text
	grpc   bool
	counts int // it counts for others, by Envoy's rate limit protocol: each descriptor has so many calls
	tls    *tls.Config
	listen string // address; with port 0 until it was started once

	mu    sync.Mutex
	how   behaviour
	seen  []string
	conns map[net.Conn]bool
	ln    net.Listener
}

// behaviour is how an application answers.
type behaviour struct {
	code   string // status of HTTP, or name of a gRPC code; "reset" ends the connection without an answer
	times  int    // how many requests it holds for; 0 is for ever
	delay  time.Duration
	header [][2]string
}

func (b behaviour) wait(ctx context.Context) {
	select {
	case <-time.After(b.delay):
	case <-ctx.Done():
	}
}

const maxSeen = 10_000

func (a *app) start() error {
	ln, err := net.Listen("tcp4", a.listen)
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.ln, a.listen, a.conns = ln, ln.Addr().String(), map[net.Conn]bool{}
	a.mu.Unlock()
	ln = &tracked{ln, a}
	if a.tls != nil {
		ln = tls.NewListener(ln, a.tls)
	}
	if a.lines {
		go a.serveLines(ln)
		return nil
	}
	if a.counts > 0 {
		s := grpc.NewServer()
		rlsv3.RegisterRateLimitServiceServer(s, &counter{app: a, used: map[string]int{}})
		go s.Serve(ln)
		return nil
	}
	if a.grpc {
		go grpc.NewServer(grpc.UnknownServiceHandler(a.call), grpc.ForceServerCodec(text{})).Serve(ln)
		return nil
	}
	s := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(a.serveHTTP)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(a.tls != nil)
	s.Protocols.SetUnencryptedHTTP2(true)
	go s.Serve(ln)
	return nil
}

// stop ends the application as its death would: its port is closed and every connection is cut.
func (a *app) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ln.Close()
	for c := range a.conns {
		c.Close()
	}
}

// tracked remembers the connections, so that they can be cut.
type tracked struct {
	net.Listener
	a *app
}

func (l *tracked) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.a.mu.Lock()
	defer l.a.mu.Unlock()
	l.a.conns[c] = true
	return &trackedConn{c, l.a}, nil
}

type trackedConn struct {
	net.Conn
	a *app
}

func (c *trackedConn) Close() error {
	c.a.mu.Lock()
	delete(c.a.conns, c.Conn)
	c.a.mu.Unlock()
	return c.Conn.Close()
}

// next notes a request and returns how it is to be answered.
func (a *app) next(request string) behaviour {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.seen) < maxSeen {
		a.seen = append(a.seen, request)
	}
	how := a.how
	if a.how.times > 0 {
		if a.how.times--; a.how.times == 0 {
			a.how = behaviour{}
		}
	}
	return how
}

func (a *app) answers(how behaviour) { a.mu.Lock(); a.how = how; a.mu.Unlock() }

func (a *app) requests() []string { a.mu.Lock(); defer a.mu.Unlock(); return slices.Clone(a.seen) }

func (a *app) forget() { a.mu.Lock(); a.seen = nil; a.mu.Unlock() }

// hidden are headers of requests that say nothing of what a script is about.
var hidden = []string{"accept-encoding", "content-length", "content-type", "grpc-accept-encoding", "grpc-timeout", "te", "traceparent", "tracestate",
	"user-agent", "x-forwarded-client-cert", "x-forwarded-for", "x-forwarded-proto", "x-request-id"}

// describe is a request as the application shows it: the first line and the headers, sorted.
func describe(method, url string, headers map[string][]string) string {
	var lines []string
	for name, values := range headers {
		name = strings.ToLower(name)
		if slices.Contains(hidden, name) || strings.HasPrefix(name, ":") || strings.HasPrefix(name, "app-") {
			continue
		}
		for _, v := range values {
			lines = append(lines, name+": "+v)
		}
	}
	slices.Sort(lines)
	return method + " " + url + "\n" + strings.Join(append(lines, ""), "\n")
}

func (a *app) serveHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/health" {
		return
	}
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	asked := describe(r.Method, scheme+"://"+r.Host+r.URL.RequestURI(), r.Header)
	if len(body) > 0 {
		asked += "\n" + string(body) + "\n"
	}
	how := a.next(asked)
	if s := r.Header.Get("app-status"); s != "" {
		how.code = s
	}
	if d, err := time.ParseDuration(r.Header.Get("app-delay")); err == nil {
		how.delay = d
	}
	how.wait(r.Context())
	if how.code == "reset" {
		panic(http.ErrAbortHandler)
	}
	for _, h := range r.Header.Values("app-header") {
		name, value, _ := strings.Cut(h, ": ")
		w.Header().Add(name, value)
	}
	for _, h := range how.header {
		w.Header().Add(h[0], h[1])
	}
	status := 200
	if n, err := strconv.Atoi(how.code); err == nil {
		status = n
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		fmt.Fprintf(w, "%s\n%s", a.id, asked)
	}
}

// text is a codec of gRPC whose messages are text.
type text struct{}

func (text) Name() string                       { return "text" }
func (text) Marshal(v any) ([]byte, error)      { return []byte(*v.(*string)), nil }
func (text) Unmarshal(data []byte, v any) error { *v.(*string) = string(data); return nil }

func (a *app) call(_ any, s grpc.ServerStream) error {
	var in string
	if err := s.RecvMsg(&in); err != nil {
		return err
	}
	method, _ := grpc.MethodFromServerStream(s)
	md, _ := metadata.FromIncomingContext(s.Context())
	asked := describe("GRPC", "http://"+strings.Join(md.Get(":authority"), ",")+method, md)
	if in != "" {
		asked += "\n" + in + "\n"
	}
	how := a.next(asked)
	how.wait(s.Context())
	if err := s.Context().Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	for _, h := range how.header {
		s.SetHeader(metadata.Pairs(h[0], h[1]))
	}
	if how.code == "" {
		return s.SendMsg(new(a.id + "\n" + asked))
	}
	var c codes.Code
	if err := c.UnmarshalJSON([]byte(strconv.Quote(how.code))); err != nil {
		return err
	}
	return status.Error(c, a.id)
}

// serveLines answers each line with the id and that line.
func (a *app) serveLines(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			r := bufio.NewReader(io.LimitReader(c, 1<<20))
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				how := a.next(line)
				time.Sleep(how.delay)
				if how.code == "reset" {
					return
				}
				if _, err := io.WriteString(c, a.id+": "+line); err != nil {
					return
				}
			}
		}()
	}
}

// raw is a connection to a gRPC service, for messages of text.
func raw(ctx context.Context, conn *grpc.ClientConn, method, in string) (string, error) {
	var out string
	err := conn.Invoke(ctx, method, &in, &out, grpc.ForceCodec(text{}))
	return out, err
}
