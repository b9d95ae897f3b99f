package control

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/audit"
	"github.com/meshagent/meshagent/agent/meshport"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// Operator is who asks for a change of the mesh: the bearer of an API token, or somebody at the unix socket of a server. The zero value
// may change nothing.
type Operator struct {
	Token string
	Local access.Role // at the socket of a server, "" elsewhere; never taken from the network
	User  string      // who is at the socket, for the records
}

// APITokenEntry is a token for the HTTP API as the store keeps it, under the hash of its secret. With a Role it may do what that
// allows, else what Scopes say.
type APITokenEntry struct {
	ID      string      `json:"id"`
	Name    string      `json:"name"`
	Role    access.Role `json:"role,omitempty"`
	Scopes  []string    `json:"scopes,omitempty"`
	Created time.Time   `json:"created"`
	Expires time.Time   `json:"expires,omitzero"` // zero: never
	By      string      `json:"by"`               // who made it
}

// scopes returns what the token allows; nothing where that cannot be read.
func (e *APITokenEntry) scopes() access.Scopes {
	if e.Role != "" {
		return e.Role.Scopes()
	}
	s, err := access.Parse(e.Scopes)
	if err != nil {
		return nil
	}
	return s
}

// APITokenSpec says what a new token for the API may do: either a Role or Scopes.
type APITokenSpec struct {
	Name   string        `json:"name"`
	Role   access.Role   `json:"role,omitempty"`
	Scopes []string      `json:"scopes,omitempty"`
	TTL    time.Duration `json:"ttl,omitempty"` // 0: it does not expire; else from 1 min to 10 years
}

// Grant is who somebody is to the servers, and what he may do.
type Grant struct {
	ID     string      `json:"id,omitempty"` // of the token; "" at the socket, and for who has logged in
	Name   string      `json:"name"`
	Role   access.Role `json:"role,omitempty"`
	Scopes []string    `json:"scopes"`
	Ends   time.Time   `json:"ends,omitzero"`
}

const (
	maxAPITokens = 1000
	maxTokenTTL  = 10 * 365 * 24 * time.Hour
)

// newAPISecret returns 256 random bits as a token's text.
func newAPISecret() string { return "meshapi_" + randomText(32) }

// Authorize says who asks, if he may do all of acts; without any, if he is known. Errors: ErrUnauthorized, ErrForbidden, those of the
// store. What a token allows is compared with what would be done, not with how it was asked for: SECURITY 39.
func (s *Service) Authorize(ctx context.Context, o Operator, acts ...access.Action) (Grant, error) {
	g, scopes, err := s.grant(ctx, o)
	if err != nil {
		return Grant{}, err
	}
	for _, a := range acts {
		if !scopes.Allow(a) {
			err = fmt.Errorf("%w: %.200q may not %.200s", ErrForbidden, g.Name, a)
			break
		}
	}
	if err := s.audit(ctx, g, acts, err); err != nil {
		return Grant{}, err
	}
	return g, err
}

// audit records the word on a change.
func (s *Service) audit(ctx context.Context, g Grant, acts []access.Action, verdict error) error {
	e := audit.Event{What: "authorize", Who: g.Name, Token: g.ID, Role: string(g.Role), From: "this host", Result: "ok"}
	for _, a := range acts {
		if a.Verb == access.Write || a.Resource == "store" { // a backup holds everything
			e.Actions = append(e.Actions, a.String())
		}
	}
	if len(e.Actions) == 0 || s.cfg.Audit == nil {
		return nil
	}
	if verdict != nil {
		e.Result = "forbidden"
	}
	if p := meshport.Peer(ctx); !p.IsZero() {
		e.From = p.String()
	}
	return s.cfg.Audit(e)
}

// grant finds who asks. A token counts before the socket: who shows one means it.
func (s *Service) grant(ctx context.Context, o Operator) (Grant, access.Scopes, error) {
	if o.Token == "" {
		if o.Local == "" {
			return Grant{}, nil, ErrUnauthorized
		}
		sc := o.Local.Scopes()
		return Grant{Name: o.User, Role: o.Local, Scopes: sc.Strings()}, sc, nil
	}
	if s.cfg.Login != nil && strings.Count(o.Token, ".") == 2 { // as those of others are (RFC 7519), and ours are not
		g, why := s.cfg.Login(o.Token)
		if why != "" {
			return Grant{}, nil, fmt.Errorf("%w: %s", ErrLogin, why)
		}
		sc := g.Role.Scopes()
		g.Scopes = sc.Strings()
		return g, sc, nil
	}
	e, err := staleFirst(ctx, s.cfg.Store, tableAPIToken, hashSecret(o.Token))
	if err != nil {
		return Grant{}, nil, err
	}
	if e == nil {
		return Grant{}, nil, ErrUnauthorized
	}
	t, err := decode[APITokenEntry](e)
	if err != nil {
		return Grant{}, nil, err
	}
	if !t.Expires.IsZero() && !time.Now().Before(t.Expires) {
		return Grant{}, nil, fmt.Errorf("%w: token %s ended at %s", ErrUnauthorized, t.ID, t.Expires.Format(time.RFC3339))
	}
	sc := t.scopes()
	return Grant{ID: t.ID, Name: t.Name, Role: t.Role, Scopes: sc.Strings(), Ends: t.Expires}, sc, nil
}

// may is Authorize for one action.
func (s *Service) may(ctx context.Context, o Operator, verb access.Verb, resource string) error {
	_, err := s.Authorize(ctx, o, access.Action{Verb: verb, Resource: resource})
	return err
}

// policyResource is what a policy is to access.
func policyResource(k mesh.PolicyKey) string {
	return "policies/" + k.Namespace + "/" + k.Kind + "/" + k.Name
}

var tokenName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._@ -]{0,63}$`)

// CreateAPIToken makes a token for the API and returns it with its secret, which is told this once. It may do no more than who makes it.
// Tokens that have ended are forgotten. Errors: ErrUnauthorized, ErrForbidden, ErrInvalid, those of the store.
func (s *Service) CreateAPIToken(ctx context.Context, o Operator, spec APITokenSpec) (APITokenEntry, string, error) {
	g, have, err := s.grant(ctx, o)
	if err == nil {
		err = s.may(ctx, o, access.Write, "apitokens")
	}
	if err != nil {
		return APITokenEntry{}, "", err
	}
	e := APITokenEntry{ID: randomText(5), Name: spec.Name, Role: spec.Role, Scopes: spec.Scopes, Created: time.Now().UTC(), By: g.Name}
	if g.ID != "" {
		e.By += " (" + g.ID + ")"
	}
	if err := spec.check(); err != nil {
		return APITokenEntry{}, "", err
	}
	if spec.TTL > 0 {
		e.Expires = e.Created.Add(spec.TTL)
	}
	if !have.Include(e.scopes()) {
		return APITokenEntry{}, "", fmt.Errorf("%w: the new token may do more than %.80q", ErrForbidden, g.Name)
	}
	if !g.Ends.IsZero() && (e.Expires.IsZero() || e.Expires.After(g.Ends)) {
		return APITokenEntry{}, "", fmt.Errorf("%w: the new token ends after %.80q, at %s", ErrForbidden, g.Name, g.Ends.Format(time.RFC3339))
	}
	all, err := s.apiTokens(ctx)
	if err != nil {
		return APITokenEntry{}, "", err
	}
	secret := newAPISecret()
	ops := []state.Op{put(tableAPIToken, hashSecret(secret), e, 0)}
	left := 0
	for hash, old := range all {
		if !old.Expires.IsZero() && time.Since(old.Expires) > keepExpired {
			ops = append(ops, state.Op{Kind: state.Delete, Table: tableAPIToken, Key: hash})
		} else {
			left++
		}
	}
	if left >= maxAPITokens {
		return APITokenEntry{}, "", fmt.Errorf("%w: there are %d tokens: delete some", ErrInvalid, left)
	}
	r, err := s.cfg.Store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: ops})
	if err == nil && r.Conflict != nil {
		err = ErrConflict
	}
	if err != nil {
		return APITokenEntry{}, "", err
	}
	s.cfg.Log.Info("API token created", "token", e.ID, "name", e.Name, "role", e.Role, "scopes", e.Scopes, "by", e.By)
	return e, secret, nil
}

func (spec *APITokenSpec) check() error {
	switch {
	case !tokenName.MatchString(spec.Name):
		return fmt.Errorf("%w: name %.80q: up to 64 letters, digits, spaces and . _ @ - are possible, the first a letter or digit", ErrInvalid, spec.Name)
	case (spec.Role == "") == (len(spec.Scopes) == 0):
		return fmt.Errorf("%w: either a role or scopes are needed", ErrInvalid)
	case spec.TTL != 0 && (spec.TTL < time.Minute || spec.TTL > maxTokenTTL):
		return fmt.Errorf("%w: ttl %v: from 1m to %dh is possible, or 0 for no end", ErrInvalid, spec.TTL, int(maxTokenTTL.Hours()))
	}
	if spec.Role != "" {
		if _, err := access.ParseRole(string(spec.Role)); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	if _, err := access.Parse(spec.Scopes); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// apiTokens returns all, by the hashes of their secrets.
func (s *Service) apiTokens(ctx context.Context) (map[string]APITokenEntry, error) {
	es, _, err := s.cfg.Store.List(ctx, tableAPIToken, "", raftstore.Linearizable)
	if err != nil {
		return nil, err
	}
	out := map[string]APITokenEntry{}
	for _, e := range es {
		if out[e.Key], err = decode[APITokenEntry](&e); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// APITokens lists the tokens for the API by name, without secrets. Errors: ErrUnauthorized, ErrForbidden, those of the store.
func (s *Service) APITokens(ctx context.Context, o Operator) ([]APITokenEntry, error) {
	if err := s.may(ctx, o, access.Read, "apitokens"); err != nil {
		return nil, err
	}
	all, err := s.apiTokens(ctx)
	var out []APITokenEntry
	for _, e := range all {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b APITokenEntry) int { return strings.Compare(a.Name+"\x00"+a.ID, b.Name+"\x00"+b.ID) })
	return out, err
}

// DeleteAPIToken withdraws a token for the API. A server that has not heard of it yet may take it for a moment. Errors: ErrUnauthorized, ErrForbidden, ErrNotFound,
// those of the store.
func (s *Service) DeleteAPIToken(ctx context.Context, o Operator, id string) error {
	if err := s.may(ctx, o, access.Write, "apitokens"); err != nil {
		return err
	}
	all, err := s.apiTokens(ctx)
	if err != nil {
		return err
	}
	for hash, e := range all {
		if e.ID == id {
			_, err := s.cfg.Store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: []state.Op{{Kind: state.Delete, Table: tableAPIToken, Key: hash}}})
			if err == nil {
				s.cfg.Log.Info("API token deleted", "token", e.ID, "name", e.Name)
			}
			return err
		}
	}
	return fmt.Errorf("API token %.40q: %w", id, ErrNotFound)
}
