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
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
)

// codes gives every error that keeps its identity between hosts its name on the wire and its HTTP status. An error without
// a line travels as "internal" with its text.
var codes = []struct {
	code   string
	status int
	err    error
}{
	{"token_unknown", http.StatusForbidden, ErrTokenUnknown},
	{"token_expired", http.StatusForbidden, ErrTokenExpired},
	{"unauthorized", http.StatusUnauthorized, ErrUnauthorized},
	{"forbidden", http.StatusForbidden, ErrForbidden},
	{"not_found", http.StatusNotFound, ErrNotFound},
	{"conflict", http.StatusConflict, ErrConflict},
	{"busy", http.StatusTooManyRequests, ErrBusy},
	{"invalid", http.StatusBadRequest, ErrInvalid},
	{"no_leader", http.StatusServiceUnavailable, raftstore.ErrNoLeader},
	{"unknown_outcome", http.StatusServiceUnavailable, raftstore.ErrUnknownOutcome},
	{"read_only", http.StatusServiceUnavailable, raftstore.ErrReadOnly},
}

const codeInternal = "internal"

type wireError struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

// remoteError is an error of a server: its text, and the sentinel that it is.
type remoteError struct {
	detail string
	is     error
}

func (e *remoteError) Error() string { return e.detail }
func (e *remoteError) Unwrap() error { return e.is }

func writeError(w http.ResponseWriter, err error) {
	code, status := codeInternal, http.StatusInternalServerError
	for _, c := range codes {
		if errors.Is(err, c.err) {
			code, status = c.code, c.status
			break
		}
	}
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(wireError{code, err.Error()})
}

func readError(status int, body []byte) error {
	var we wireError
	if json.Unmarshal(body, &we) != nil || we.Code == "" {
		return fmt.Errorf("server answered %d without saying why", status)
	}
	for _, c := range codes {
		if c.code == we.Code {
			return &remoteError{we.Detail, c.err}
		}
	}
	return errors.New(we.Detail)
}

// Bounds of a message's body in bytes: requests carry at most 1,000 resources, answers the whole policy.
const (
	maxRequest = 8 << 20
	maxAnswer  = 64 << 20
)

// handle turns a function into a handler: strict JSON in, JSON out.
func handle[In, Out any](f func(r *http.Request, in In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
		d.DisallowUnknownFields()
		if err := d.Decode(&in); err != nil {
			writeError(w, fmt.Errorf("%w: request: %w", ErrInvalid, err))
			return
		}
		out, err := f(r, in)
		if err != nil {
			writeError(w, err)
			return
		}
		json.NewEncoder(w).Encode(out)
	}
}

type (
	none     struct{}
	issueIn  struct{ Identity, CSR []byte }
	issueOut struct{ Chain [][]byte }
	renewIn  struct{ CSR []byte }
	watchIn  struct{ After uint64 }
	applyIn  struct {
		Writes []Write
		DryRun bool
	}
	applyOut struct {
		Outcomes []Outcome
		Index    uint64
	}
	tokenOut  struct{ Token string }
	tokensOut struct{ Tokens []TokenEntry }
	deleteIn  struct{ ID string }
	addIn     struct{ Address string }
	// RecordsIn asks a host for signed catalog records; it is served by every agent, not only by servers.
	RecordsIn struct{ Want []mesh.NodeID }
	// RecordsOut holds the records, as their owners signed them.
	RecordsOut struct{ Records [][]byte }
)

const tokenHeader = "Mesh-Token"

func operator(r *http.Request) Operator { return Operator{Token: r.Header.Get(tokenHeader)} }

// Handler serves control requests of hosts with a certificate. forward serves what servers ask of each other for the store
// (raftstore's methods); only servers may.
func (s *Service) Handler(forward func(ctx context.Context, method string, body []byte) ([]byte, error)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/issue", handle(func(r *http.Request, in issueIn) (issueOut, error) {
		id, err := mesh.ParseIdentity(string(in.Identity))
		if err != nil {
			return issueOut{}, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		c, err := s.Issue(r.Context(), meshport.Peer(r.Context()), id, in.CSR)
		return issueOut{c}, err
	}))
	mux.HandleFunc("POST /v1/watch", handle(func(r *http.Request, in watchIn) (*Changes, error) {
		return s.Watch(r.Context(), meshport.Peer(r.Context()), in.After)
	}))
	mux.HandleFunc("POST /v1/apply", handle(func(r *http.Request, in applyIn) (applyOut, error) {
		o, i, err := s.Apply(r.Context(), operator(r), in.Writes, in.DryRun)
		return applyOut{o, i}, err
	}))
	mux.HandleFunc("POST /v1/authorize", handle(func(r *http.Request, _ none) (none, error) {
		return none{}, s.Authorize(r.Context(), operator(r))
	}))
	mux.HandleFunc("POST /v1/token/create", handle(func(r *http.Request, in TokenSpec) (tokenOut, error) {
		t, err := s.CreateToken(r.Context(), operator(r), in)
		return tokenOut{t}, err
	}))
	mux.HandleFunc("POST /v1/token/list", handle(func(r *http.Request, _ none) (tokensOut, error) {
		t, err := s.Tokens(r.Context(), operator(r))
		return tokensOut{t}, err
	}))
	mux.HandleFunc("POST /v1/token/delete", handle(func(r *http.Request, in deleteIn) (none, error) {
		return none{}, s.DeleteToken(r.Context(), operator(r), in.ID)
	}))
	mux.HandleFunc("POST /v1/leave", handle(func(r *http.Request, _ none) (none, error) {
		return none{}, s.Leave(r.Context(), meshport.Peer(r.Context()))
	}))
	mux.HandleFunc("POST /v1/addserver", handle(func(r *http.Request, in addIn) (none, error) {
		return none{}, s.AddServer(r.Context(), meshport.Peer(r.Context()), in.Address)
	}))
	mux.HandleFunc("POST /v1/raft/{method}", func(w http.ResponseWriter, r *http.Request) {
		if peer := meshport.Peer(r.Context()); peer.Kind() != mesh.Server {
			writeError(w, fmt.Errorf("%w: %q is not a server", ErrForbidden, peer))
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
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

// JoinHandler serves hosts without a certificate: joining and renewing.
func (s *Service) JoinHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/join", handle(func(r *http.Request, in JoinRequest) (*Membership, error) {
		return s.Join(r.Context(), source(r), in)
	}))
	mux.HandleFunc("POST /v1/renew", handle(func(r *http.Request, in renewIn) (*Membership, error) {
		return s.Renew(r.Context(), source(r), in.CSR)
	}))
	return http.TimeoutHandler(mux, 20*time.Second, `{"code":"busy","detail":"the server did not answer within 20 s"}`)
}

func source(r *http.Request) netip.Addr {
	ap, _ := netip.ParseAddrPort(r.RemoteAddr)
	return ap.Addr()
}

// RecordsHandler serves the catalog records that other hosts fetch from this one.
func RecordsHandler(encoded func([]mesh.NodeID) [][]byte) http.HandlerFunc {
	return handle(func(r *http.Request, in RecordsIn) (RecordsOut, error) {
		if k := meshport.Peer(r.Context()).Kind(); k != mesh.NodeAgent && k != mesh.Server {
			return RecordsOut{}, ErrForbidden
		}
		return RecordsOut{encoded(in.Want)}, nil
	})
}

// post sends one request and reads its answer.
func post(ctx context.Context, c *http.Client, addr netip.AddrPort, method, token string, in []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr.String()+"/v1/"+method, bytes.NewReader(in))
	if err != nil {
		return nil, err
	}
	if token != "" {
		req.Header.Set(tokenHeader, token)
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, &unreachable{addr, err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, &unreachable{addr, err}
	case len(body) > maxAnswer:
		return nil, fmt.Errorf("server %v: answer over %d bytes", addr, maxAnswer)
	case resp.StatusCode != http.StatusOK:
		return nil, readError(resp.StatusCode, body)
	}
	return body, nil
}

// unreachable says that a server gave no answer: another one may.
type unreachable struct {
	addr netip.AddrPort
	err  error
}

func (e *unreachable) Error() string { return fmt.Sprintf("server %v: %v", e.addr, e.err) }
func (e *unreachable) Unwrap() error { return e.err }
