package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/meshagent/meshagent/agent/meshport"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// Bounds of a request's body: bytes, and the time until it must be there.
const (
	maxSmall = 64 << 10 // what strangers send, and most members
	maxApply = 8 << 20  // maxSources as JSON, and what goes around them
	maxStore = 65 << 20 // calls between servers: the largest is a backup
	bodyTime = 30 * time.Second
)

// readBody reads a request's body within its bounds.
func readBody(w http.ResponseWriter, r *http.Request, most int64) ([]byte, error) {
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(bodyTime)); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return nil, fmt.Errorf("%w: request: more than %d bytes", ErrInvalid, most)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: request: %w", ErrInvalid, err)
	}
	return b, rc.SetReadDeadline(time.Time{})
}

// decodeStrict reads one JSON value; a field that is not known, or anything behind the value, is an error.
func decodeStrict[In any](b []byte) (in In, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return in, fmt.Errorf("%w: request: %w", ErrInvalid, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return in, fmt.Errorf("%w: request: something follows its end", ErrInvalid)
	}
	return in, nil
}

// handle turns a function into a handler: strict JSON of at most so many bytes in, JSON out.
func handle[In, Out any](most int64, f func(r *http.Request, in In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := readBody(w, r, most)
		var in In
		if err == nil {
			in, err = decodeStrict[In](body)
		}
		var out Out
		if err == nil {
			out, err = f(r, in)
		}
		if err != nil {
			writeError(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(out)
	}
}

func operator(r *http.Request) Operator { return Operator{Token: r.Header.Get(tokenHeader)} }

// Handler serves control requests of hosts with a certificate. forward serves what servers ask of each other for the store
// (raftstore's methods); only servers may.
func (s *Service) Handler(forward func(ctx context.Context, method string, body []byte) ([]byte, error)) http.Handler {
	mux := http.NewServeMux()
	member := func(h http.HandlerFunc) http.HandlerFunc { // for calls that do not look who asks
		return func(w http.ResponseWriter, r *http.Request) {
			if err := s.known(r.Context(), meshport.Peer(r.Context())); err != nil {
				writeError(w, err)
				return
			}
			h(w, r)
		}
	}
	mux.HandleFunc("POST /v1/issue", handle(maxSmall, func(r *http.Request, in issueIn) (issueOut, error) {
		c, err := s.Issue(r.Context(), meshport.Peer(r.Context()), in.Identity, in.CSR)
		return issueOut{c}, err
	}))
	mux.HandleFunc("POST /v1/issue/token", handle(maxSmall, func(r *http.Request, in issueTokenIn) (ca.Token, error) {
		return s.IssueToken(r.Context(), meshport.Peer(r.Context()), in.Identity, in.Audience)
	}))
	mux.HandleFunc("POST /v1/watch", handle(maxSmall, func(r *http.Request, in watchIn) (*Changes, error) {
		return s.Watch(r.Context(), meshport.Peer(r.Context()), in.After)
	}))
	mux.HandleFunc("POST /v1/policies", handle(maxSmall, func(r *http.Request, in policiesIn) (policiesOut, error) {
		ps, index, err := s.Policies(r.Context(), meshport.Peer(r.Context()), in.Consistency)
		return policiesOut{ps, index}, err
	}))
	mux.HandleFunc("POST /v1/secret", handle(maxSmall, func(r *http.Request, in secretIn) (secretOut, error) {
		s, err := s.Secret(r.Context(), meshport.Peer(r.Context()), policy.SecretRef{Namespace: in.Namespace, Name: in.Name})
		return secretOut(s), err
	}))
	mux.HandleFunc("POST /v1/apply", member(handle(maxApply, func(r *http.Request, in applyIn) (applyOut, error) {
		o, i, err := s.Apply(r.Context(), operator(r), in.Writes, in.DryRun, in.RequestID)
		return applyOut{o, i}, err
	})))
	mux.HandleFunc("POST /v1/authorize", member(handle(maxSmall, func(r *http.Request, in authorizeIn) (Grant, error) {
		return s.Authorize(r.Context(), operator(r), in.Actions...)
	})))
	mux.HandleFunc("POST /v1/apitoken/create", member(handle(maxSmall, func(r *http.Request, in APITokenSpec) (apiTokenOut, error) {
		e, t, err := s.CreateAPIToken(r.Context(), operator(r), in)
		return apiTokenOut{e, t}, err
	})))
	mux.HandleFunc("POST /v1/apitoken/list", member(handle(maxSmall, func(r *http.Request, _ none) (apiTokensOut, error) {
		t, err := s.APITokens(r.Context(), operator(r))
		return apiTokensOut{t}, err
	})))
	mux.HandleFunc("POST /v1/apitoken/delete", member(handle(maxSmall, func(r *http.Request, in deleteIn) (none, error) {
		return none{}, s.DeleteAPIToken(r.Context(), operator(r), in.ID)
	})))
	mux.HandleFunc("POST /v1/token/create", member(handle(maxSmall, func(r *http.Request, in TokenSpec) (tokenOut, error) {
		t, err := s.CreateToken(r.Context(), operator(r), in)
		return tokenOut{t}, err
	})))
	mux.HandleFunc("POST /v1/token/list", member(handle(maxSmall, func(r *http.Request, _ none) (tokensOut, error) {
		t, err := s.Tokens(r.Context(), operator(r))
		return tokensOut{t}, err
	})))
	mux.HandleFunc("POST /v1/token/delete", member(handle(maxSmall, func(r *http.Request, in deleteIn) (none, error) {
		return none{}, s.DeleteToken(r.Context(), operator(r), in.ID)
	})))
	mux.HandleFunc("POST /v1/keyring/rotate", member(handle(maxSmall, func(r *http.Request, _ none) (keyringOut, error) {
		k, err := s.RotateKeyring(r.Context(), operator(r))
		return keyringOut{k}, err
	})))
	mux.HandleFunc("POST /v1/ca/revoke", member(handle(maxSmall, func(r *http.Request, in RevokeSpec) (Revocation, error) {
		return s.Revoke(r.Context(), operator(r), in)
	})))
	mux.HandleFunc("POST /v1/ca/status", handle(maxSmall, func(r *http.Request, _ none) (CAStatus, error) {
		return s.CAStatus(r.Context(), meshport.Peer(r.Context()))
	}))
	mux.HandleFunc("POST /v1/ca/rotate", member(handle(maxSmall, func(r *http.Request, _ none) (CAStatus, error) {
		return s.RotateCA(r.Context(), operator(r))
	})))
	mux.HandleFunc("POST /v1/ca/federate", member(handle(maxSmall, func(r *http.Request, in FederateSpec) (Federation, error) {
		return s.Federate(r.Context(), operator(r), in)
	})))
	mux.HandleFunc("POST /v1/ca/replace", member(handle(maxSmall, func(r *http.Request, in Replacement) (CAStatus, error) {
		return s.ReplaceCA(r.Context(), operator(r), in)
	})))
	mux.HandleFunc("POST /v1/leave", handle(maxSmall, func(r *http.Request, _ none) (none, error) {
		return none{}, s.Leave(r.Context(), meshport.Peer(r.Context()))
	}))
	mux.HandleFunc("POST /v1/addserver", handle(maxSmall, func(r *http.Request, in addIn) (none, error) {
		return none{}, s.AddServer(r.Context(), meshport.Peer(r.Context()), in.Address)
	}))
	mux.HandleFunc("POST /v1/raft/{method}", func(w http.ResponseWriter, r *http.Request) {
		err := s.server(r.Context(), meshport.Peer(r.Context()))
		var body []byte
		if err == nil {
			body, err = readBody(w, r, maxStore)
		}
		if err == nil {
			body, err = forward(r.Context(), r.PathValue("method"), body)
		}
		if err != nil {
			writeError(w, err)
			return
		}
		w.Write(body)
	})
	return mux
}

// JoinHandler serves hosts without a certificate: joining and renewing. A connection serves one request.
func (s *Service) JoinHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/join", handle(maxSmall, func(r *http.Request, in JoinRequest) (*Membership, error) {
		return s.Join(r.Context(), source(r), in)
	}))
	mux.HandleFunc("POST /v1/renew", handle(maxSmall, func(r *http.Request, in renewIn) (*Membership, error) {
		return s.Renew(r.Context(), source(r), in.CSR)
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		mux.ServeHTTP(w, r)
	})
}

func source(r *http.Request) netip.Addr {
	ap, _ := netip.ParseAddrPort(r.RemoteAddr) // what is no address is one source
	return ap.Addr()
}

// RecordsHandler serves the catalog records that other hosts fetch from this one, as their owners signed them. Every agent
// has one, not only servers.
func RecordsHandler(encoded func([]mesh.NodeID) [][]byte) http.HandlerFunc {
	return handle(maxApply, func(r *http.Request, in recordsIn) (recordsOut, error) {
		if peer := meshport.Peer(r.Context()); peer.Kind() != mesh.NodeAgent && peer.Kind() != mesh.Server {
			return recordsOut{}, fmt.Errorf("%w: %q is not a host", ErrForbidden, peer)
		}
		return recordsOut{encoded(in.Want)}, nil
	})
}
