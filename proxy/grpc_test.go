package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// chat is a gRPC service: Check answers as it is asked, Talk echoes a stream.
type chat struct {
	health.UnimplementedHealthServer
	gone chan struct{} // gets a token when a caller has left
}

func (c *chat) Check(ctx context.Context, r *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	in, _ := metadata.FromIncomingContext(ctx)
	switch r.Service {
	case "fail":
		grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "t"))
		return nil, status.Error(codes.FailedPrecondition, "as you wish: 100%")
	case "wait":
		<-ctx.Done()
		c.gone <- struct{}{}
		return nil, ctx.Err()
	case "deadline":
		d, ok := ctx.Deadline()
		return nil, status.Errorf(codes.Aborted, "%v %v", ok, time.Until(d).Round(time.Second))
	}
	grpc.SetHeader(ctx, metadata.Pairs("x-header", strings.Join(in.Get("x-asked"), ",")))
	grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "t", "x-bin-bin", "\x00\xff"))
	return &health.HealthCheckResponse{Status: health.HealthCheckResponse_SERVING}, nil
}

func (c *chat) talk(_ any, s grpc.ServerStream) error {
	for {
		var r health.HealthCheckRequest
		if err := s.RecvMsg(&r); errors.Is(err, io.EOF) {
			s.SetTrailer(metadata.Pairs("x-trailer", "t"))
			return nil
		} else if err != nil {
			c.gone <- struct{}{}
			return err
		}
		if err := s.SendMsg(&r); err != nil {
			return err
		}
	}
}

// serveChat adds an instance of chat, by the real gRPC library.
func (h *host) serveChat(svc string) *chat {
	h.w.t.Helper()
	c := &chat{gone: make(chan struct{}, 10)}
	s := grpc.NewServer()
	health.RegisterHealthServer(s, c)
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "Chat", HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "Talk", Handler: c.talk, ServerStreams: true, ClientStreams: true}}}, c)
	h.serveGRPC(svc, s)
	return c
}

// grpc connects to a service.
func (c *caller) grpc(svc string) *grpc.ClientConn {
	c.h.w.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+c.h.vip(svc), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(svc+".service.mesh"),
		grpc.WithDisableRetry(), grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return c.dialer().DialContext(ctx, "tcp", addr)
		}))
	if err != nil {
		c.h.w.t.Fatal(err)
	}
	c.h.w.mu.Lock()
	defer c.h.w.mu.Unlock()
	c.h.w.atEnd = append(c.h.w.atEnd, func() { conn.Close() })
	return conn
}

// TestGRPC: the real library on both sides sees its own headers, trailers, statuses, deadlines and streams.
func TestGRPC(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		app := on.serveChat("chat")
		conn := c.grpc("chat")
		client := health.NewHealthClient(conn)
		check := func(what string, opts ...grpc.CallOption) error {
			ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "x-asked", "1"), patience)
			defer cancel()
			_, err := client.Check(ctx, &health.HealthCheckRequest{Service: what}, opts...)
			return err
		}
		var head, trail metadata.MD
		if err := check("", grpc.Header(&head), grpc.Trailer(&trail)); err != nil || fmt.Sprint(head.Get("x-header"), trail.Get("x-trailer")) != "[1] [t]" || trail.Get("x-bin-bin")[0] != "\x00\xff" {
			t.Errorf("%v %v %v", err, head, trail)
		}
		if l := c.h.line("outbound"); l.Path != "/grpc.health.v1.Health/Check" || l.GRPCStatus != "0" || l.Status != 200 || l.Flags != "-" {
			t.Errorf("%+v", l)
		}
		if err := check("fail", grpc.Trailer(&trail)); status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "as you wish: 100%" || fmt.Sprint(trail.Get("x-trailer")) != "[t]" {
			t.Errorf("%v %v", err, trail)
		}
		if l := c.h.line("outbound"); l.GRPCStatus != "9" || l.Flags != "-" {
			t.Errorf("%+v", l)
		}
		if err := check("deadline"); status.Convert(err).Message() != "true 10s" {
			t.Errorf("the deadline that reaches the service: %v", err)
		}
		c.h.line("outbound")

		// Both ways at once, each message as soon as it is there.
		s, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/Chat/Talk")
		if err != nil {
			t.Fatal(err)
		}
		for n := range 5 {
			if err := s.SendMsg(&health.HealthCheckRequest{Service: fmt.Sprint(n)}); err != nil {
				t.Fatal(err)
			}
			var got health.HealthCheckRequest
			if err := s.RecvMsg(&got); err != nil || got.Service != fmt.Sprint(n) {
				t.Fatalf("%v %v", &got, err)
			}
		}
		s.CloseSend()
		if err := s.RecvMsg(new(health.HealthCheckRequest)); !errors.Is(err, io.EOF) || fmt.Sprint(s.Trailer().Get("x-trailer")) != "[t]" {
			t.Errorf("%v %v", err, s.Trailer())
		}
		c.h.line("outbound")

		// A caller that waits no longer is told by whoever notices first, the service too, and the work ends.
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := client.Check(ctx, &health.HealthCheckRequest{Service: "wait"}); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("%v", err)
		}
		<-app.gone
		if l := c.h.line("outbound"); !slices.Contains([]string{"DC", "UT", "UC"}, l.Flags) && l.GRPCStatus != "4" {
			t.Errorf("%+v", l)
		}
		// Nor does it matter who notices first that the time of a rule is up.
		w.apply(`apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: chat}
spec: {hosts: [chat], http: [{timeout: 200ms, retries: {attempts: 0}, route: [{destination: {host: chat}}]}]}
`)
		for range 5 {
			if err := check("wait"); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("the rule's time is up: %v", err)
			}
			<-app.gone
			c.h.line("outbound")
		}
		ctx, cancel = context.WithCancel(t.Context())
		if s, err = conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/Chat/Talk"); err != nil {
			t.Fatal(err)
		}
		s.SendMsg(&health.HealthCheckRequest{})
		s.RecvMsg(new(health.HealthCheckRequest))
		cancel()
		<-app.gone
		if l := c.h.line("outbound"); l.Flags != "DC" {
			t.Errorf("%+v", l)
		}
	})
}

// TestGRPCOwnErrors: what the proxy answers itself is a status of gRPC, in an answer of trailers alone, with its reason.
func TestGRPCOwnErrors(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		on.serveChat("chat")
		client := health.NewHealthClient(c.grpc("chat"))
		expect := func(code codes.Code, reason, flags string) {
			t.Helper()
			var head, trail metadata.MD
			_, err := client.Check(t.Context(), &health.HealthCheckRequest{}, grpc.Header(&head), grpc.Trailer(&trail))
			if s := status.Convert(err); s.Code() != code || s.Message() != reason || !strings.HasSuffix(strings.Join(trail.Get("mesh-error"), ""), reason) || len(head) > 0 {
				t.Errorf("%v, %v, header %v, trailer %v: want %v %s", s.Code(), s.Message(), head, trail, code, reason)
			}
			if l := c.h.line("outbound"); l.Flags != flags || l.Status != 200 || l.GRPCStatus != fmt.Sprint(int(code)) {
				t.Errorf("%+v", l)
			}
		}
		w.apply(authorization("DENY", "chat", `[{}]`))
		expect(codes.PermissionDenied, "access denied", "RBAC")
		w.apply(strings.ReplaceAll(virtualService("  - {match: [{uri: {exact: /no}}], route: [{destination: {host: web}}]}\n"), "web", "chat"))
		expect(codes.Unimplemented, "no route", "NR")
		w.apply(strings.ReplaceAll(virtualService("  - {fault: {abort: {grpcStatus: DATA_LOSS, percentage: {value: 100}}}, route: [{destination: {host: web}}]}\n"), "web", "chat"))
		expect(codes.DataLoss, "fault injected", "FI")
		w.apply(strings.ReplaceAll(virtualService("  - {fault: {abort: {httpStatus: 503, percentage: {value: 100}}}, route: [{destination: {host: web}}]}\n"), "web", "chat"))
		expect(codes.Unavailable, "fault injected", "FI")
		w.apply(strings.ReplaceAll(virtualService("  - {route: [{destination: {host: nowhere}}]}\n"), "web", "chat"))
		expect(codes.Unavailable, "no healthy instance", "UH")
	})
}

// fickle fails with INTERNAL behind its head until it was asked n times.
type fickle struct {
	health.UnimplementedHealthServer
	n     int32
	asked atomic.Int32
}

func (f *fickle) Check(ctx context.Context, _ *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	n := f.asked.Add(1)
	if err := grpc.SendHeader(ctx, metadata.Pairs("x-try", fmt.Sprint(n))); err != nil {
		return nil, err
	}
	if n < f.n {
		return nil, status.Error(codes.Internal, "again")
	}
	return &health.HealthCheckResponse{Status: health.HealthCheckResponse_SERVING}, nil
}

// TestRetriesByTrailers: a status of gRPC counts also where it stands in trailers behind a head, if a rule asks for it; the caller sees nothing of the tries
// that failed.
func TestRetriesByTrailers(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, w *world, c *caller, on *host) {
		for i, e := range []struct {
			retries string
			n       int32
			asked   int32
			code    codes.Code
		}{
			{"{attempts: 2, retryOn: internal}", 3, 3, codes.OK}, {"{attempts: 2, retryOn: internal}", 9, 3, codes.Internal},
			{"{attempts: 2, retryOn: unavailable}", 3, 1, codes.Internal}, {"{attempts: 0, retryOn: internal}", 3, 1, codes.Internal}, {"", 3, 1, codes.Internal},
		} {
			svc, app := fmt.Sprint("chat", i), &fickle{n: e.n}
			s := grpc.NewServer()
			health.RegisterHealthServer(s, app)
			on.serveGRPC(svc, s)
			if e.retries != "" {
				w.apply(strings.ReplaceAll(virtualService("  - {route: [{destination: {host: web}}], retries: "+e.retries+"}\n"), "web", svc))
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			var head metadata.MD
			_, err := health.NewHealthClient(c.grpc(svc)).Check(ctx, &health.HealthCheckRequest{}, grpc.Header(&head))
			cancel()
			if status.Code(err) != e.code || app.asked.Load() != e.asked {
				t.Errorf("%q: %v after %d calls, want %v after %d", e.retries, err, app.asked.Load(), e.code, e.asked)
			}
			if got := head.Get("x-try"); !slices.Equal(got, []string{fmt.Sprint(e.asked)}) {
				t.Errorf("%q: the caller sees the head of try %q", e.retries, got)
			}
		}
	})
}
