package control

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/meshagent/meshagent/agent/acme"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

const (
	hearTime  = 30 * time.Second       // for gateways to hear of a challenge; then the authority is told to look, whoever is missing
	hearEvery = 100 * time.Millisecond // it is looked whether they have
)

// accountEntry is an account at an authority.
type accountEntry struct {
	Server string `json:"server"`
	Email  string `json:"email,omitempty"`
	KeyID  string `json:"keyID,omitempty"` // of the external account
	Sealed []byte `json:"sealed"`          // key, PKCS #8
}

// challengeEntry is what gateways answer for one order.
type challengeEntry struct {
	Challenges []mesh.Challenge `json:"challenges"`
}

// order is one try. It ends with its outcome in the store, unless ctx ends before.
func (o *ordering) order(ctx context.Context, c *certificate) {
	e := c.entry.begun(c.of, c.name, time.Now())
	index, err := o.write(ctx, put(tableACME, acmeOrder+c.name, e, c.index))
	if err != nil {
		if ctx.Err() == nil {
			o.cfg.Log.Warn("a certificate is not ordered; it is tried again", "certificate", c.name, "err", err)
		}
		return
	}
	cert, err := o.obtain(ctx, c)
	over := state.Op{Kind: state.Delete, Table: tableACME, Key: acmeChallenge + c.name}
	if err == nil {
		err = o.keep(ctx, c, cert, index, over)
	}
	switch {
	case err == nil:
		o.orders.With("issued").Inc()
		o.cfg.Log.Info("certificate ordered", "certificate", c.name, "names", c.Names, "until", cert.NotAfter)
		return
	case ctx.Err() != nil:
		return
	}
	var after time.Duration
	if a, ok := errors.AsType[*acme.Error](err); ok {
		after = a.After
	}
	e.Error, e.Next = err.Error(), time.Now().Add(acme.Again(e.Failures, after, c.name))
	o.orders.With("failed").Inc()
	o.cfg.Log.Warn("a certificate could not be had", "certificate", c.name, "names", c.Names, "failures", e.Failures, "next", e.Next, "err", err)
	if _, err := o.write(ctx, put(tableACME, acmeOrder+c.name, e, index), over); err != nil && ctx.Err() == nil {
		o.cfg.Log.Warn("how an order stands is not written", "certificate", c.name, "err", err)
	}
}

// write makes a transaction and returns its index. Its error is ErrConflict when something was changed meanwhile.
func (o *ordering) write(ctx context.Context, ops ...state.Op) (uint64, error) {
	r, err := o.cfg.Store.Txn(ctx, state.Txn{RequestID: randomText(10), Ops: ops})
	if err == nil && r.Conflict != nil {
		err = ErrConflict
	}
	return r.Index, err
}

// obtain orders a certificate.
func (o *ordering) obtain(ctx context.Context, c *certificate) (*acme.Certificate, error) {
	if len(o.gateways()) == 0 {
		return nil, errors.New("no host runs a gateway: nobody could answer the authority")
	}
	key, err := o.account(ctx, c.CertificateOrder)
	if err != nil {
		return nil, err
	}
	order := acme.Order{Server: c.Server, Roots: c.Roots, Email: c.Email, Account: key, Names: c.Names, TLSALPN: c.TLSALPN,
		Announce: func(ctx context.Context, cs []mesh.Challenge) error { return o.announce(ctx, c.name, cs) }}
	if b := c.Bound; b != nil {
		if order.Bound, err = o.bound(ctx, b); err != nil {
			return nil, fmt.Errorf("the Secret %s of the external account: %w", b.Secret.Name, err)
		}
	}
	return o.cfg.Orders.Order(ctx, order)
}

// bound reads the key of an external account.
func (o *ordering) bound(ctx context.Context, b *policy.BoundAccount) (*acme.Binding, error) {
	e, err := o.cfg.Store.Get(ctx, tablePolicy, b.Secret.Key().String(), raftstore.Linearizable)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, ErrNotFound
	}
	v, err := decode[policyEntry](e)
	if err != nil {
		return nil, err
	}
	values, err := o.openSecret(v)
	if err != nil {
		return nil, err
	}
	key, err := policy.HMACKey(values)
	return &acme.Binding{KeyID: b.KeyID, Key: key}, err
}

// account returns the key of the account for an order. A new one is written before the authority hears of it.
func (o *ordering) account(ctx context.Context, c *policy.CertificateOrder) (crypto.Signer, error) {
	a := accountEntry{Server: c.Server, Email: c.Email}
	if c.Bound != nil {
		a.KeyID = c.Bound.KeyID
	}
	h := sha256.Sum256([]byte(strings.Join([]string{a.Server, a.Email, a.KeyID}, "\x00")))
	name := acmeAccount + hex.EncodeToString(h[:16])
	e, err := o.cfg.Store.Get(ctx, tableACME, name, raftstore.Linearizable)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return o.newAccount(ctx, name, a)
	}
	if a, err = decode[accountEntry](e); err != nil {
		return nil, err
	}
	der, err := o.cfg.CA.Sealer().Open(a.Sealed)
	if err != nil {
		return nil, fmt.Errorf("the key of the account cannot be opened: %w: is this server's seal key the one of this mesh?", err)
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("the key of the account is damaged")
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key of the account is damaged")
	}
	return signer, nil
}

func (o *ordering) newAccount(ctx context.Context, name string, a accountEntry) (crypto.Signer, error) {
	key, err := acme.NewKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if a.Sealed, err = o.cfg.CA.Sealer().Seal(der); err != nil {
		return nil, err
	}
	_, err = o.write(ctx, put(tableACME, name, a, 0))
	return key, err
}

// announce tells all hosts of challenges, and waits until those of gateways have heard.
func (o *ordering) announce(ctx context.Context, name string, cs []mesh.Challenge) error {
	op := put(tableACME, acmeChallenge+name, challengeEntry{cs}, 0)
	op.CAS = false // what is left of another try
	index, err := o.write(ctx, op)
	if err != nil {
		return err
	}
	hctx, cancel := context.WithTimeout(ctx, hearTime)
	defer cancel()
	t := time.NewTicker(hearEvery)
	defer t.Stop()
	for {
		behind := ""
		for _, n := range o.gateways() {
			if n.PolicyIndex < index {
				behind = n.Name
			}
		}
		if behind == "" {
			return nil
		}
		select {
		case <-hctx.Done():
			if ctx.Err() == nil {
				o.cfg.Log.Warn("a gateway has not heard of a challenge yet, and may answer wrong", "certificate", name, "node", behind)
			}
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}

// gateways returns the living hosts where gateways run.
func (s *Service) gateways() (out []*mesh.Node) {
	for _, r := range s.cfg.Records() {
		for i := range r.Instances {
			if r.Instances[i].Protocol == mesh.Gateway && r.Node.Status <= mesh.Suspect {
				out = append(out, &r.Node)
				break
			}
		}
	}
	return out
}

// keep writes the Secret.
func (o *ordering) keep(ctx context.Context, c *certificate, cert *acme.Certificate, index uint64, over state.Op) error {
	w, err := parseWrite(0, Write{Source: c.MakeSecret(cert.Chain, cert.Key)})
	if err != nil {
		return fmt.Errorf("the certificate that came makes no Secret: %w", err)
	}
	val, err := o.seal(w)
	if err != nil {
		return err
	}
	now := time.Now()
	e := orderEntry{What: c.what, Of: c.of, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, Next: now.Add(min(orderFloor, cert.NotAfter.Sub(cert.NotBefore)/10))}
	_, err = o.write(ctx, put(tablePolicy, w.key.String(), val, c.secret), put(tableACME, acmeOrder+c.name, e, index), over)
	if errors.Is(err, ErrConflict) {
		err = fmt.Errorf("the certificate is not kept: its Secret or how it stands was %w", err)
	}
	return err
}

// challenges returns what gateways are to answer now, as this server has it.
func (s *Service) challenges(ctx context.Context) ([]mesh.Challenge, error) {
	es, _, err := s.cfg.Store.List(ctx, tableACME, acmeChallenge, raftstore.Stale)
	if err != nil {
		return nil, err
	}
	out := []mesh.Challenge{}
	for _, e := range es {
		v, err := decode[challengeEntry](&e)
		if err != nil {
			return nil, err
		}
		out = append(out, v.Challenges...)
	}
	return out, nil
}
