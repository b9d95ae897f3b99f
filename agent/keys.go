package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/api/server"
	"github.com/meshagent/meshagent/agent/control"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
)

func (b *backend) Keyring() api.Keyring { return keyring(*b.keyring.Load()) }

func (b *backend) RotateKeyring(ctx context.Context, o server.Operator) (api.Keyring, error) {
	k, err := b.servers().RotateKeyring(ctx, b.operator(o))
	if err != nil {
		return api.Keyring{}, told(err)
	}
	return keyring(k), nil
}

func keyring(k control.Keyring) api.Keyring {
	out := api.Keyring{Version: k.Version, Final: k.Final(), Step: string(k.Step), Changed: k.Changed}
	for i, id := range k.Keys.IDs() {
		out.Keys = append(out.Keys, api.Key{ID: id, Primary: i == 0})
	}
	return out
}

// rootOf names a root as operators see it.
func rootOf(c *x509.Certificate) api.Root {
	h := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return api.Root{SHA256: hex.EncodeToString(h[:]), NotAfter: c.NotAfter}
}

func (b *backend) CA(ctx context.Context) (api.CA, error) {
	st, err := b.servers().CAStatus(ctx)
	if err != nil {
		return api.CA{}, told(err)
	}
	return caOf(st)
}

func (b *backend) RotateCA(ctx context.Context, o server.Operator) (api.CA, error) {
	st, err := b.servers().RotateCA(ctx, b.operator(o))
	if err != nil {
		return api.CA{}, told(err)
	}
	return caOf(st)
}

func (b *backend) ReplaceCA(ctx context.Context, o server.Operator, in api.Authority) (api.CA, error) {
	st, err := b.servers().ReplaceCA(ctx, b.operator(o), control.Replacement{Given: givenOf(&in)})
	if err != nil {
		return api.CA{}, told(err)
	}
	return caOf(st)
}

func (b *backend) Federate(ctx context.Context, o server.Operator, in api.Federate) (api.Federation, error) {
	td, err := mesh.ParseTrustDomain(in.TrustDomain)
	if err != nil {
		return api.Federation{}, api.NewError(api.CodeInvalid, "trustDomain: "+err.Error(), "")
	}
	f, err := b.servers().Federate(ctx, b.operator(o), control.FederateSpec{TrustDomain: td, Roots: []byte(in.Bundle), Remove: in.Remove})
	if err != nil {
		return api.Federation{}, told(err)
	}
	roots, err := ca.DecodeBundle(f.Bundle)
	if err != nil {
		return api.Federation{}, err
	}
	return federationOf(f, roots), nil
}

func federationOf(f control.Federation, b *mesh.TrustBundle) api.Federation {
	out := api.Federation{TrustDomain: f.TrustDomain.String(), TokenKeys: len(b.TokenKeys), Since: f.Since}
	for _, r := range b.Roots {
		out.Roots = append(out.Roots, rootOf(r))
	}
	return out
}

// givenOf returns the intermediate that an authority gives; nil for the servers' own.
func givenOf(a *api.Authority) *ca.Given {
	if a == nil || a.Own {
		return nil
	}
	return &ca.Given{Cert: []byte(a.Certificate), Key: []byte(a.Key), Root: []byte(a.Root)}
}

func caOf(st control.CAStatus) (api.CA, error) {
	out := api.CA{Bundle: st.Bundle, Step: string(st.Step), Due: st.Due, Intermediate: st.Intermediate, Given: st.Given}
	for _, r := range st.Roots {
		c, err := x509.ParseCertificate(r.Cert)
		if err != nil {
			return api.CA{}, fmt.Errorf("a root of the CA: %w", err)
		}
		out.Roots = append(out.Roots, api.CARoot{Root: rootOf(c), Role: string(r.Role), Created: r.Created})
	}
	for _, k := range st.TokenKeys {
		out.TokenKeys = append(out.TokenKeys, api.TokenKey{ID: k.ID, Role: string(k.Role), Created: k.Created})
	}
	for _, f := range st.Federated {
		b, err := ca.DecodeBundle(f.Bundle)
		if err != nil {
			return api.CA{}, fmt.Errorf("trust domain %s: %w", f.TrustDomain, err)
		}
		out.Federated = append(out.Federated, federationOf(f, b))
	}
	for _, r := range st.Revoked {
		out.Revoked = append(out.Revoked, api.Revocation(r))
	}
	return out, nil
}

func (b *backend) Revoke(ctx context.Context, o server.Operator, r api.Revoke) (api.Revocation, error) {
	out, err := b.servers().Revoke(ctx, b.operator(o), control.RevokeSpec(r))
	return api.Revocation(out), told(err)
}

func (b *backend) Bundle(f api.BundleFormat) ([]byte, error) {
	if f == api.SPIFFE {
		return ca.SPIFFEBundle(b.leaves.Bundle())
	}
	var out bytes.Buffer
	for _, r := range b.leaves.Bundle().Roots {
		pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: r.Raw}) // to memory: it cannot fail
	}
	return out.Bytes(), nil
}

// rootAlarm is how near its end a root is a problem: its successor was due years before.
const rootAlarm = 30 * 24 * time.Hour

// intermediateProblems tells when what this host's certificates stand on is near its end: the last third of its life, 30 days at most. The servers
// replace their own at half of it, so that it is one that was given, and nobody in the mesh can make the next.
func (a *Agent) intermediateProblems() []api.Problem {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // it is there since the start, or has ended
	cert, err := a.leaves.Certificate(ctx, a.node)
	if err != nil {
		return nil // which is a problem of its own
	}
	for _, der := range cert.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			continue // peers would have refused it
		}
		if left := time.Until(c.NotAfter); left < min(rootAlarm, c.NotAfter.Sub(c.NotBefore)/3) {
			return []api.Problem{{Subject: "intermediate certificate " + c.Subject.String(),
				Reason: "it ends at " + c.NotAfter.UTC().Format(time.RFC3339) + ", and with it every certificate under it",
				Hint:   "give the next one: meshagent ca rotate --intermediate FILE --intermediate-key FILE --root FILE"}}
		}
	}
	return nil
}

// rotationAlarm is how long one step of a rotation of the gossip key may take: a host that falls silent has failed after a minute.
const rotationAlarm = 5 * time.Minute

// keyProblems lists what an operator should look at of keys and roots.
func (a *Agent) keyProblems() (out []api.Problem) {
	for _, r := range a.leaves.Bundle().Roots {
		if time.Until(r.NotAfter) < rootAlarm {
			out = append(out, api.Problem{Subject: "root certificate " + rootOf(r).SHA256, Reason: "it ends at " + r.NotAfter.UTC().Format(time.RFC3339) + ", and with it every certificate under it",
				Hint: "`meshagent ca status` says what its rotation waits for; `meshagent ca rotate` begins one"})
		}
	}
	out = append(out, a.intermediateProblems()...)
	if a.ca != nil {
		if err := a.ca.UpstreamError(); err != nil {
			out = append(out, api.Problem{Subject: "intermediate certificate", Reason: "the next one is due, and the authority above gave none: " + err.Error(),
				Hint: "it is asked again every minute; look at ca.vault in agent.yaml, and at the token's policy"})
		}
	}
	if k := a.keyring.Load(); k.Step != control.NoStep && time.Since(k.Changed) > rotationAlarm {
		out = append(out, api.Problem{Subject: "gossip key", Reason: fmt.Sprintf("its rotation has waited since %s for hosts that lack version %d of the keyring", k.Changed.UTC().Format(time.RFC3339), k.Version),
			Hint: "`meshagent keyring status` names them: let them reach a server, upgrade them, or stop their agents"})
	}
	return out
}
