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
	"strings"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// codes gives every error that keeps its identity between hosts its name on the wire and its HTTP status. An error without
// a line travels as "internal" with its text. Of an error that is several, the first line counts.
var codes = []struct {
	code   string
	status int
	err    error
}{
	{"token_unknown", http.StatusForbidden, ErrTokenUnknown},
	{"token_expired", http.StatusForbidden, ErrTokenExpired},
	{"unauthorized", http.StatusUnauthorized, ErrUnauthorized},
	{"login", http.StatusUnauthorized, ErrLogin},
	{"forbidden", http.StatusForbidden, ErrForbidden},
	{"not_found", http.StatusNotFound, ErrNotFound},
	{"conflict", http.StatusConflict, ErrConflict},
	{"busy", http.StatusTooManyRequests, ErrBusy},
	{"invalid", http.StatusBadRequest, ErrInvalid},
	{"request_refused", http.StatusBadRequest, ca.ErrRequest},
	{"ca_refused", http.StatusBadRequest, ca.ErrGiven},
	{"rotating", http.StatusConflict, ca.ErrRotating},
	{"no_ca", http.StatusServiceUnavailable, ca.ErrNoCA},
	{"no_leader", http.StatusServiceUnavailable, raftstore.ErrNoLeader},
	{"unknown_outcome", http.StatusServiceUnavailable, raftstore.ErrUnknownOutcome},
	{"read_only", http.StatusServiceUnavailable, raftstore.ErrReadOnly},
	{"refused", http.StatusConflict, raftstore.ErrRefused},
	{"future", http.StatusServiceUnavailable, state.ErrFuture},
	{"corrupt", http.StatusBadRequest, state.ErrCorrupt},
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

// maxDetail bounds an error's text in bytes.
const maxDetail = 32 << 10

func writeError(w http.ResponseWriter, err error) {
	code, status := codeInternal, http.StatusInternalServerError
	for _, c := range codes {
		if errors.Is(err, c.err) {
			code, status = c.code, c.status
			break
		}
	}
	detail := err.Error()
	if len(detail) > maxDetail {
		detail = strings.ToValidUTF8(detail[:maxDetail], "") + " ..."
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(wireError{code, detail})
}

func readError(status int, body []byte) error {
	var we wireError
	if json.Unmarshal(body, &we) != nil || we.Code == "" {
		return fmt.Errorf("server answered %d without saying why: does it have the same version?", status)
	}
	for _, c := range codes {
		if c.code == we.Code {
			return &remoteError{we.Detail, c.err}
		}
	}
	return errors.New(we.Detail)
}

type (
	none    struct{}
	issueIn struct {
		Identity mesh.Identity `json:"identity"`
		CSR      []byte        `json:"csr"`
	}
	issueOut struct {
		Chain [][]byte `json:"chain"`
	}
	issueTokenIn struct {
		Identity mesh.Identity `json:"identity"`
		Audience []string      `json:"audience"`
	}
	renewIn struct {
		CSR []byte `json:"csr"`
	}
	watchIn struct {
		After uint64 `json:"after"`
	}
	policiesIn struct {
		Consistency raftstore.Consistency `json:"consistency"`
	}
	policiesOut struct {
		Policies []mesh.Policy `json:"policies"`
		Index    uint64        `json:"index"`
	}
	applyIn struct {
		Writes    []Write `json:"writes"`
		DryRun    bool    `json:"dryRun,omitempty"`
		RequestID string  `json:"requestId,omitempty"`
	}
	applyOut struct {
		Outcomes []Outcome `json:"outcomes"`
		Index    uint64    `json:"index"`
	}
	authorizeIn struct {
		Actions []access.Action `json:"actions"`
	}
	apiTokenOut struct {
		Entry APITokenEntry `json:"entry"`
		Token string        `json:"token"`
	}
	apiTokensOut struct {
		Tokens []APITokenEntry `json:"tokens"`
	}
	tokenOut struct {
		Token string `json:"token"`
	}
	tokensOut struct {
		Tokens []TokenEntry `json:"tokens"`
	}
	keyringOut struct {
		Keyring Keyring `json:"keyring"`
	}
	deleteIn struct {
		ID string `json:"id"`
	}
	addIn struct {
		Address string `json:"address"`
	}
	recordsIn struct {
		Want []mesh.NodeID `json:"want"`
	}
	recordsOut struct {
		Records [][]byte `json:"records"`
	}
)

const tokenHeader = "Mesh-Token"

// maxAnswer bounds an answer in bytes: the whole policy, the answers of the store.
const maxAnswer = 64 << 20

// post sends one request and reads its answer. ctx bounds the time. Its error is *unreachable when there was no answer.
func post(ctx context.Context, c *http.Client, addr netip.AddrPort, method, token string, in []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr.String()+"/v1/"+method, bytes.NewReader(in))
	if err != nil {
		return nil, err
	}
	if token != "" {
		req.Header.Set(tokenHeader, token)
	}
	if !strings.HasPrefix(method, "raft/") { // the store knows itself what may be repeated
		req.Header["Idempotency-Key"] = nil // net/http repeats it when an idle connection turns out to be closed; not sent
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
