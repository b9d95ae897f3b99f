// Package workloadapi gives the applications of this host keys and certificates of their own, and the roots of the mesh, so that they can
// do mutual TLS themselves, and tokens for where that does not reach: SPIFFE's Workload API, gRPC on a unix socket. Imported by agent.
//
// Guarantees: who calls is known by the kernel's word about the process that opened the connection, which is held, and looked at again
// before anything is sent; who is no service, has ended, or is revoked gets nothing, and a stream that it has ends. Keys are another than
// those of the agent's own certificates, and are on no disk. Connections and streams are bounded, for each user and in total.
//
// Sources: https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md and SPIFFE_Workload_Endpoint.md.
package workloadapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/systemd"
)

// What is bounded. An application has one connection with one stream, which costs the agent 40 KiB (resident, of 120).
const (
	maxOfUser   = 128 // connections, and streams, of one user
	maxOfAll    = 512 // connections, and streams
	maxCalls    = 16  // at a time on a connection
	maxRequest  = 64 << 10
	maxHeader   = 16 << 10
	bufferSize  = 4 << 10
	openingTime = 10 * time.Second // until a client has said what HTTP/2 begins with
	idleTime    = 5 * time.Minute  // of a connection without calls
	pingEvery   = time.Minute      // who does not read is found so
	pingTime    = 20 * time.Second
	issueTime   = 20 * time.Second // that a caller waits for its first certificate
	endTime     = time.Second      // that connections have at the end
	sayEvery    = time.Second      // that a refusal is logged at most
)

// Certificates are those for applications, and by what others are judged.
type Certificates interface {
	// Certificate returns one that is not expired and waits for its first issue.
	Certificate(ctx context.Context, id mesh.Identity) (*tls.Certificate, error)
	Bundle() *mesh.TrustBundle
	Federated() *[]*mesh.TrustBundle // of other trust domains; another pointer when they changed
	Revoked() *ca.Revoked
	// Watch waits until any of it has changed since a version, and returns the next.
	Watch(ctx context.Context, after uint64) (uint64, error)
}

// Config says what a Server stands on.
type Config struct {
	TrustDomain mesh.TrustDomain
	Certs       Certificates
	// IssueToken has a server sign a token.
	IssueToken func(ctx context.Context, id mesh.Identity, audience []string) (ca.Token, error)
	// Identify returns which service a process is; its error is told to the caller.
	Identify func(systemd.Peer) (mesh.Identity, error)
	Log      *slog.Logger // not nil
	Metrics  *telemetry.Metrics
}

// Server answers applications. Its methods are safe for concurrent use.
type Server struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	cfg      Config
	process  func(net.Conn) process // that opened a connection
	tokens   tokens
	conns    *quota
	streams  *quota
	open     telemetry.Gauge
	refusals *telemetry.CounterVec
	closing  chan struct{} // closed when Run ends

	mu      sync.Mutex    // guards what follows
	changed chan struct{} // closed and replaced by Recheck
	said    time.Time     // when a refusal was logged last
}

// New returns a server. It opens nothing.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, process: peerProcess, tokens: tokens{issue: cfg.IssueToken, of: map[string]keptToken{}}, conns: newQuota(), streams: newQuota(), closing: make(chan struct{}), changed: make(chan struct{}),
		open:     cfg.Metrics.Gauge("meshagent_workload_streams", "Streams of applications that get certificates, roots or keys of tokens.").With(),
		refusals: cfg.Metrics.Counter("meshagent_workload_refused_total", "Calls of applications that were refused.", "reason")}
}

// Recheck makes every stream look again at who its caller is: call it when services of this host have changed.
func (s *Server) Recheck() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Run serves until ctx ends, and closes the listener. Call it once.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	g := grpc.NewServer(grpc.Creds(handshaker{s}), grpc.ConnectionTimeout(openingTime), grpc.MaxConcurrentStreams(maxCalls), grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxHeaderListSize(maxHeader), grpc.ReadBufferSize(bufferSize), grpc.WriteBufferSize(bufferSize),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTime, Time: pingEvery, Timeout: pingTime}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			if err := s.checkHeader(ctx); err != nil {
				return nil, err
			}
			return h(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			if err := s.checkHeader(stream.Context()); err != nil {
				return err
			}
			return h(srv, stream)
		}))
	workload.RegisterSpiffeWorkloadAPIServer(g, s)
	wg.Go(func() {
		for v := uint64(0); ; s.Recheck() {
			next, err := s.cfg.Certs.Watch(ctx, v)
			if err != nil {
				return
			}
			v = next
		}
	})
	wg.Go(func() {
		<-ctx.Done()
		close(s.closing)
		defer time.AfterFunc(endTime, g.Stop).Stop()
		g.GracefulStop()
	})
	if err := g.Serve(ln); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// checkHeader wants the one that no web page, and nobody who is tricked into a request, can send.
func (s *Server) checkHeader(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("workload.spiffe.io"); len(v) == 1 && v[0] == "true" {
		return nil
	}
	return s.refuse(ctx, "header", codes.InvalidArgument, "the call needs the metadata workload.spiffe.io: true, once")
}

// refuse counts and says a refusal.
func (s *Server) refuse(ctx context.Context, reason string, code codes.Code, sentence string) error {
	s.refusals.With(reason).Inc()
	s.mu.Lock()
	say := time.Since(s.said) >= sayEvery
	if say {
		s.said = time.Now()
	}
	s.mu.Unlock()
	if say {
		c := callerOf(ctx)
		s.cfg.Log.Warn("application refused", "pid", c.pid, "uid", c.uid, "reason", sentence)
	}
	return status.Error(code, sentence)
}

// FetchX509SVID sends the caller its certificate with key and the roots, and again whenever one of them changes.
func (s *Server) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return follow(s, stream, func(ctx context.Context, now *sent) (*workload.X509SVIDResponse, error) {
		id := now.id
		wctx, cancel := context.WithTimeoutCause(ctx, issueTime, fmt.Errorf("no server has issued one within %v: is one reachable?", issueTime))
		defer cancel()
		cert, err := s.cfg.Certs.Certificate(wctx, id)
		if ctx.Err() != nil {
			return nil, ended(ctx)
		}
		if err != nil {
			return nil, s.refuse(ctx, "no-certificate", codes.Unavailable, err.Error())
		}
		if err := s.cfg.Certs.Revoked().Check(cert.Leaf, id); err != nil {
			return nil, s.refuse(ctx, "revoked", codes.PermissionDenied, err.Error())
		}
		key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
		if err != nil {
			return nil, err
		}
		now.leaf = cert.Leaf
		return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{SpiffeId: id.String(), X509Svid: concat(cert.Certificate), X509SvidKey: key, Bundle: rootsOf(now.bundle)}},
			FederatedBundles: bundles(now.others)}, nil
	})
}

// FetchX509Bundles sends the caller the roots, and again whenever they change.
func (s *Server) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return follow(s, stream, func(_ context.Context, now *sent) (*workload.X509BundlesResponse, error) {
		all := bundles(now.others)
		all["spiffe://"+s.cfg.TrustDomain.String()] = rootsOf(now.bundle) // last: nobody else speaks for it
		return &workload.X509BundlesResponse{Bundles: all}, nil
	})
}

// bundles are the roots of other trust domains, each by the identity of its own.
func bundles(bs *[]*mesh.TrustBundle) map[string][]byte {
	out := map[string][]byte{}
	if bs == nil {
		return out
	}
	for _, b := range *bs {
		id := "spiffe://" + b.TrustDomain.String()
		out[id] = append(out[id], rootsOf(b)...)
	}
	return out
}

func rootsOf(b *mesh.TrustBundle) (out []byte) {
	for _, r := range b.Roots {
		out = append(out, r.Raw...)
	}
	return out
}

func concat(ders [][]byte) (out []byte) {
	for _, d := range ders {
		out = append(out, d...)
	}
	return out
}

// sent is what a message says: another one is sent when it says something else.
type sent struct {
	id     mesh.Identity
	bundle *mesh.TrustBundle
	others *[]*mesh.TrustBundle
	leaf   *x509.Certificate
}

// take takes one more call of an application, if there is room for it; give gives its place back.
func (s *Server) take(ctx context.Context, c process) (give func(), err error) {
	if !s.streams.take(c.uid) {
		return nil, s.refuse(ctx, "limit", codes.ResourceExhausted,
			fmt.Sprintf("too many streams: a user has at most %d, all of the host %d; keep one open instead of asking again", maxOfUser, maxOfAll))
	}
	return func() { s.streams.give(c.uid) }, nil
}

// admit is take for a call that has one answer, and says which service the caller is.
func (s *Server) admit(ctx context.Context) (id mesh.Identity, give func(), err error) {
	c := callerOf(ctx)
	if give, err = s.take(ctx, c); err != nil {
		return id, nil, err
	}
	if id, err = s.identify(ctx, c); err != nil {
		give()
	}
	return id, give, err
}

func (s *Server) noBundle(ctx context.Context) error {
	return s.refuse(ctx, "no-certificate", codes.Unavailable, "the agent does not know the roots of the mesh yet")
}

// follow sends what message returns, at once and whenever it is another one, until the caller may not have it any more. message may add to what is
// said of it.
func follow[T any](s *Server, stream grpc.ServerStreamingServer[T], message func(ctx context.Context, now *sent) (*T, error)) error {
	ctx := stream.Context()
	c := callerOf(ctx)
	give, err := s.take(ctx, c)
	if err != nil {
		return err
	}
	defer give()
	s.open.Add(1)
	defer s.open.Add(-1)
	var last sent
	for {
		changed := s.next() // before anything is looked at, so that no change is missed
		id, err := s.identify(ctx, c)
		if err != nil {
			return err
		}
		now := sent{id: id, bundle: s.cfg.Certs.Bundle(), others: s.cfg.Certs.Federated()}
		if now.bundle == nil {
			return s.noBundle(ctx)
		}
		m, err := message(ctx, &now)
		if err != nil {
			return err
		}
		if now != last {
			if last.id != id && now.leaf != nil {
				s.cfg.Log.Info("key given to an application", "identity", id, "pid", c.pid, "uid", c.uid)
			}
			if err := stream.Send(m); err != nil {
				return err
			}
			last = now
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ended(ctx)
		case <-s.closing:
			return status.Error(codes.Unavailable, "the agent ends: ask again")
		}
	}
}

func ended(ctx context.Context) error { return status.FromContextError(ctx.Err()).Err() }

// identify says which service the caller is now.
func (s *Server) identify(ctx context.Context, c process) (mesh.Identity, error) {
	peer, err := c.peer()
	if err != nil {
		return mesh.Identity{}, s.refuse(ctx, "unknown", codes.PermissionDenied, err.Error())
	}
	id, err := s.cfg.Identify(peer)
	if err != nil {
		return mesh.Identity{}, s.refuse(ctx, "unknown", codes.PermissionDenied, err.Error())
	}
	if s.cfg.Certs.Revoked().Identity(id) {
		return mesh.Identity{}, s.refuse(ctx, "revoked", codes.PermissionDenied, fmt.Sprintf("%s is revoked", id))
	}
	return id, nil
}

// noWIT answers for tokens that are bound to a key: the standard is not final.
func (s *Server) noWIT(ctx context.Context) error {
	return s.refuse(ctx, "profile", codes.Unimplemented, "this mesh issues X.509-SVIDs and JWT-SVIDs alone")
}

// FetchWITSVID says that there are none.
func (s *Server) FetchWITSVID(_ *workload.WITSVIDRequest, stream grpc.ServerStreamingServer[workload.WITSVIDResponse]) error {
	return s.noWIT(stream.Context())
}

// FetchWITBundles says that there are none.
func (s *Server) FetchWITBundles(_ *workload.WITBundlesRequest, stream grpc.ServerStreamingServer[workload.WITBundlesResponse]) error {
	return s.noWIT(stream.Context())
}
