package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
)

const (
	maxTokens = 1024             // that are kept, of all applications
	tokenLeft = 30 * time.Second // what a kept token has left at least when it is given because no server answers
	tokenSkew = 10 * time.Second // by which clocks may differ
)

// tokens keeps tokens, each for half of its life, so that applications may ask for each call that they make. Safe for concurrent use.
type tokens struct {
	issue func(ctx context.Context, id mesh.Identity, audience []string) (ca.Token, error)

	mu sync.Mutex // guards what follows
	of map[string]keptToken
}

type keptToken struct {
	ca.Token
	renew time.Time
}

// get returns a token that has half of its life before it, or what is left when no server answers.
func (t *tokens) get(ctx context.Context, id mesh.Identity, audience []string) (ca.Token, error) {
	key := id.String() + "\n" + strings.Join(audience, "\n") // no name has a line's end
	t.mu.Lock()
	have := t.of[key]
	t.mu.Unlock()
	now := time.Now()
	if now.Before(have.renew) {
		return have.Token, nil
	}
	got, err := t.issue(ctx, id, audience)
	if err != nil {
		if have.Expires.Sub(now) >= tokenLeft {
			return have.Token, nil
		}
		return ca.Token{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.of) >= maxTokens {
		t.makeRoomLocked(now)
	}
	t.of[key] = keptToken{got, now.Add(got.Expires.Sub(now) / 2)}
	return got, nil
}

// makeRoomLocked drops the tokens that have ended, or any one where none has.
func (t *tokens) makeRoomLocked(now time.Time) {
	for k, v := range t.of {
		if !now.Before(v.Expires) {
			delete(t.of, k)
		}
	}
	for k := range t.of {
		if len(t.of) < maxTokens {
			return
		}
		delete(t.of, k)
	}
}

// FetchJWTSVID gives the caller a token of its own.
func (s *Server) FetchJWTSVID(ctx context.Context, in *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	id, give, err := s.admit(ctx)
	if err != nil {
		return nil, err
	}
	defer give()
	if want := in.GetSpiffeId(); want != "" && want != id.String() {
		return nil, s.refuse(ctx, "identity", codes.PermissionDenied, fmt.Sprintf("%.256q is not the caller's identity, which is %s", want, id))
	}
	if err := ca.CheckAudience(in.GetAudience()); err != nil {
		return nil, s.refuse(ctx, "audience", codes.InvalidArgument, err.Error())
	}
	ictx, cancel := context.WithTimeoutCause(ctx, issueTime, fmt.Errorf("no server has issued one within %v: is one reachable?", issueTime))
	defer cancel()
	tok, err := s.tokens.get(ictx, id, in.GetAudience())
	if ctx.Err() != nil {
		return nil, ended(ctx)
	}
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = context.Cause(ictx)
		}
		return nil, s.refuse(ctx, "no-token", codes.Unavailable, fmt.Sprintf("no token of %s: %v", id, err))
	}
	switch now, err := s.identify(ctx, callerOf(ctx)); { // it may have taken a while
	case err != nil:
		return nil, err
	case now != id:
		return nil, s.refuse(ctx, "identity", codes.Unavailable, "the caller is another service now: ask again")
	}
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: id.String(), Svid: tok.Text}}}, nil
}

// FetchJWTBundles sends the caller the keys by which tokens are judged, and again whenever they change.
func (s *Server) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	return follow(s, stream, func(_ context.Context, now *sent) (*workload.JWTBundlesResponse, error) {
		out := &workload.JWTBundlesResponse{Bundles: map[string][]byte{}}
		for _, b := range s.jwtBundles(now.bundle, now.others).Bundles() {
			keys, err := b.Marshal()
			if err != nil {
				return nil, err
			}
			out.Bundles[b.TrustDomain().IDString()] = keys
		}
		return out, nil
	})
}

// jwtBundles are the keys of tokens of all trust domains that have some, and of the mesh.
func (s *Server) jwtBundles(own *mesh.TrustBundle, others *[]*mesh.TrustBundle) *jwtbundle.Set {
	set := jwtbundle.NewSet()
	add := func(b *mesh.TrustBundle) {
		if td, err := spiffeid.TrustDomainFromString(b.TrustDomain.String()); err == nil {
			set.Add(jwtbundle.FromJWTAuthorities(td, ca.JWTAuthorities(b)))
		}
	}
	if others != nil {
		for _, b := range *others {
			if len(b.TokenKeys) > 0 {
				add(b)
			}
		}
	}
	add(own) // last: nobody else speaks for it
	return set
}

// ValidateJWTSVID says whose token it is that somebody has shown to the caller, if it is one for the caller's audience.
func (s *Server) ValidateJWTSVID(ctx context.Context, in *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	_, give, err := s.admit(ctx)
	if err != nil {
		return nil, err
	}
	defer give()
	own := s.cfg.Certs.Bundle()
	if own == nil {
		return nil, s.noBundle(ctx)
	}
	bad := func(why string) (*workload.ValidateJWTSVIDResponse, error) {
		return nil, s.refuse(ctx, "token", codes.InvalidArgument, "the token is not taken: "+why)
	}
	if err := ca.CheckAudience([]string{in.GetAudience()}); err != nil {
		return bad(err.Error())
	}
	tok, err := jwtsvid.ParseAndValidate(in.GetSvid(), s.jwtBundles(own, s.cfg.Certs.Federated()), []string{in.GetAudience()})
	if err != nil {
		return bad(strings.TrimPrefix(err.Error(), "jwtsvid: "))
	}
	if time.Since(tok.Expiry) > tokenSkew { // the library gives a minute
		return bad("token has expired")
	}
	if id, err := mesh.ParseIdentity(tok.ID.String()); err == nil && s.cfg.Certs.Revoked().Identity(id) {
		return bad(id.String() + " is revoked")
	}
	claims, err := structpb.NewStruct(tok.Claims)
	if err != nil {
		return bad("its claims are no JSON")
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: tok.ID.String(), Claims: claims}, nil
}
