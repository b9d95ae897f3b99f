package agent

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/tokenkeys"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// openTokenKeys makes what fetches the keys of those who sign tokens of users. It begins with those of the last run.
func (a *Agent) openTokenKeys() error {
	roots, err := a.cfg.Tokens.roots()
	if err != nil {
		return err
	}
	a.tokenKeys = tokenkeys.New(tokenkeys.Config{Allow: a.cfg.Tokens.Allow, Roots: roots, File: a.dir.path(fileTokenKeys), Write: writeFile,
		Changed: a.takeTokenKeys, Log: a.log, Metrics: a.metrics})
	a.compiler.SetKeys(a.tokenKeys.Load())
	a.setLoginKeys(a.tokenKeys.Load())
	return nil
}

// roots are the system's, and those of the file.
func (t *Tokens) roots() (*x509.CertPool, error) {
	if t.Roots == "" {
		return nil, nil
	}
	b, err := os.ReadFile(t.Roots)
	if err != nil {
		return nil, fmt.Errorf("tokens.roots: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("tokens.roots: %s has no certificate in PEM", t.Roots)
	}
	return pool, nil
}

// takeTokenKeys has policy check tokens by other keys.
func (a *Agent) takeTokenKeys(keys map[policy.KeySource]*policy.KeySet) {
	a.setLoginKeys(keys)
	a.policyMu.Lock()
	defer a.policyMu.Unlock()
	a.compiler.SetKeys(keys)
	a.setPolicyLocked(a.policyAt, a.policies) // there is one: it has named them
}

// wantTokenKeys has the keys fetched that policies for services of this host name, and on a server those of who lets operators log in.
func (a *Agent) wantTokenKeys(s *mesh.Snapshot) {
	m, ok := s.Model.(*policy.Model)
	if !ok { // nobody knows yet
		return
	}
	want := m.KeySources(s.Here())
	if at, ok := a.loginKeys(); ok {
		if want == nil {
			want = map[policy.KeySource]time.Duration{}
		}
		want[at] = max(want[at], tokenkeys.DefaultTime)
	}
	a.tokenKeys.Want(want)
}

// tokenProblems tells which keys are not to be had.
func (a *Agent) tokenProblems() (out []api.Problem) {
	for _, p := range a.tokenKeys.Problems() {
		hint := "until then tokens of this issuer are refused"
		if p.Had {
			hint = "tokens are checked by the keys that were fetched before"
		}
		out = append(out, api.Problem{Subject: "keys of tokens", Reason: fmt.Sprintf("%s: not to be had since %s: %v", p.URI, p.Since.UTC().Format(time.RFC3339), p.Err), Hint: hint})
	}
	return out
}

// tokenKeysHere waits until the keys that are wanted are here, or were asked for in vain.
func (a *Agent) tokenKeysHere(ctx context.Context) {
	if a.tokenKeys.Settled(ctx) {
		a.proxy.Followed(ctx, a.catalog.Load().Version)
	}
}
