package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// ErrGiven is wrapped by every reason for which a given intermediate is refused.
var ErrGiven = errors.New("CA certificate refused")

// Given is an intermediate with its key, which an authority outside of the mesh has signed: PEM. Its text forms do not hold the key.
type Given struct {
	Cert []byte `json:"cert"` // the intermediate, then what signed it, up to the root, which may be there or not
	Key  []byte `json:"key"`  // PKCS #8, or that of EC (SEC 1) or RSA (PKCS #1); not encrypted
	Root []byte `json:"root"` // the one certificate that hosts are to accept
}

func (g Given) String() string { return "given CA" }

// GoString is String.
func (g Given) GoString() string { return g.String() }

// Bounds of what is given.
const (
	maxUpper    = maxChain - 3       // certificates between the intermediate and the root: a chain also has a leaf, the intermediate, and that by the root before
	minGivenRun = 7 * 24 * time.Hour // what a given intermediate must have left to live
	minRSA      = 2048               // bits
	maxRSA      = 4096               // bits: the work of checking a signature is the peers'
)

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrGiven, fmt.Errorf(format, args...))
}

// check reads what was given, strictly, and returns its root with the intermediate in it. Last of all it has the intermediate sign a
// certificate, which must pass for a peer's: nothing is accepted here that hosts would refuse.
func (g Given) check(td mesh.TrustDomain, now time.Time) (*Signer, error) {
	chain, err := pemCerts("certificate", g.Cert)
	if err != nil {
		return nil, err
	}
	roots, err := pemCerts("root", g.Root)
	if err != nil {
		return nil, err
	}
	if len(roots) != 1 {
		return nil, refuse("root: %d certificates: give the one at which the chain ends", len(roots))
	}
	root := roots[0]
	if chain[len(chain)-1].Equal(root) {
		chain = chain[:len(chain)-1]
	}
	if len(chain) == 0 {
		return nil, refuse("certificate: it is the root: give an intermediate that it has signed, and keep the root's key away from servers")
	}
	if len(chain) > 1+maxUpper {
		return nil, refuse("certificate: %d between the intermediate and the root: at most %d is possible", len(chain)-1, maxUpper)
	}
	key, err := pemKey(g.Key)
	if err != nil {
		return nil, err
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(chain[0].PublicKey) {
		return nil, refuse("key: it is not that of the certificate %q, which stands first", chain[0].Subject)
	}
	path := append(slices.Clone(chain), root)
	end := root.NotAfter
	for i, c := range path {
		if err := checkSigner(c, td, now); err != nil {
			return nil, err
		}
		if c.MaxPathLen >= 0 && c.MaxPathLen < i {
			return nil, refuse("%q has path length %d, and %d CA certificates stand below it: give it %d or none", c.Subject, c.MaxPathLen, i, i)
		}
		end = earlier(end, c.NotAfter)
		if i+1 < len(path) {
			if err := c.CheckSignatureFrom(path[i+1]); err != nil {
				return nil, refuse("%q is not signed by the certificate behind it, %q: %w", c.Subject, path[i+1].Subject, err)
			}
		}
	}
	if !bytes.Equal(root.RawSubject, root.RawIssuer) || root.CheckSignatureFrom(root) != nil {
		return nil, refuse("root: %q is signed by %q: give the certificate that is signed by itself", root.Subject, root.Issuer)
	}
	if left := end.Sub(now); left < minGivenRun {
		return nil, refuse("it ends at %s with its chain: give one that lasts for %d days at least", end.UTC().Format(time.RFC3339), minGivenRun/(24*time.Hour))
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, refuse("key: %w", err)
	}
	inter := &Signer{Cert: chain[0].Raw, Key: pkcs8, Created: now, NotAfter: end}
	for _, c := range chain[1:] {
		inter.Upper = append(inter.Upper, c.Raw)
	}
	if err := try(inter, root, td, now); err != nil {
		return nil, err
	}
	return &Signer{Cert: root.Raw, Created: now, NotAfter: root.NotAfter, Given: inter}, nil
}

// checkSigner looks at one certificate of the path by itself.
func checkSigner(c *x509.Certificate, td mesh.TrustDomain, now time.Time) error {
	switch {
	case len(c.Raw) > maxCert:
		return refuse("%q is of %d bytes: at most %d are accepted", c.Subject, len(c.Raw), maxCert)
	case !c.BasicConstraintsValid || !c.IsCA:
		return refuse("%q may not sign certificates: its basic constraints do not say CA:TRUE", c.Subject)
	case c.KeyUsage&x509.KeyUsageCertSign == 0:
		return refuse("%q may not sign certificates: its key usage lacks keyCertSign", c.Subject)
	case now.Before(c.NotBefore):
		return refuse("%q is valid from %s only", c.Subject, c.NotBefore.UTC().Format(time.RFC3339))
	case now.After(c.NotAfter):
		return refuse("%q ended at %s", c.Subject, c.NotAfter.UTC().Format(time.RFC3339))
	case !usableFor(c, x509.ExtKeyUsageServerAuth) || !usableFor(c, x509.ExtKeyUsageClientAuth):
		return refuse("%q: its extended key usage lacks server or client authentication: leave it out, or have both", c.Subject)
	case len(c.URIs) > 0 && !isOf(c, td):
		return refuse("%q names %s: a CA of this mesh names no URI, or spiffe://%s", c.Subject, c.URIs[0], td)
	}
	if d := excludes(c, td.String()); d != "" {
		return refuse("%q: its name constraints (%s) exclude URIs of the host %s: have one that permits them, or has no constraints of URIs", c.Subject, d, td)
	}
	if why := weak(c.PublicKey); why != "" {
		return refuse("%q: %s", c.Subject, why)
	}
	return nil
}

// excludes returns the constraint of URIs that a host does not pass (RFC 5280 section 4.2.1.10: a host, or all below one with a dot before it);
// nothing when it passes.
func excludes(c *x509.Certificate, host string) string {
	in := func(d string) bool {
		d = strings.ToLower(d)
		return d == host || strings.HasPrefix(d, ".") && strings.HasSuffix(host, d)
	}
	if i := slices.IndexFunc(c.ExcludedURIDomains, in); i >= 0 {
		return "excluded " + c.ExcludedURIDomains[i]
	}
	if p := c.PermittedURIDomains; len(p) > 0 && !slices.ContainsFunc(p, in) {
		return "permitted " + strings.Join(p, ", ")
	}
	return ""
}

// isOf reports whether the one URI of a CA's certificate is the trust domain's.
func isOf(c *x509.Certificate, td mesh.TrustDomain) bool {
	return len(c.URIs) == 1 && *c.URIs[0] == url.URL{Scheme: "spiffe", Host: td.String()}
}

func usableFor(c *x509.Certificate, u x509.ExtKeyUsage) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) || slices.Contains(c.ExtKeyUsage, u)
}

// weak says what is wrong with a CA's key; nothing when it is one that every peer takes.
func weak(pub crypto.PublicKey) string {
	const want = "ECDSA on P-256 or P-384, or RSA of 2048 to 4096 bits, is needed"
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return "its key is ECDSA on " + k.Curve.Params().Name + ": " + want
		}
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return fmt.Sprintf("its key is RSA of %d bits: %s", n, want)
		}
	default:
		return fmt.Sprintf("its key is a %T: %s", pub, want)
	}
	return ""
}

// try has the intermediate sign a service's certificate and looks at it as a peer would.
func try(inter *Signer, root *x509.Certificate, td mesh.TrustDomain, now time.Time) error {
	id, err := mesh.WorkloadIdentity(td, mesh.DefaultNamespace, "probe")
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ders, _, err := inter.sign(&key.PublicKey, id, mesh.NodeID{}, now.Add(-time.Minute), now.Add(time.Hour))
	if err != nil {
		return refuse("it cannot sign: %w", err)
	}
	var chain []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return refuse("what it signs cannot be read: %w", err)
		}
		chain = append(chain, c)
	}
	_, err = Verify(chain, &mesh.TrustBundle{TrustDomain: td, Version: 1, Roots: []*x509.Certificate{root}}, now)
	if err != nil {
		return refuse("hosts would not accept what it signs: %w", err)
	}
	return nil
}

// maxGiven bounds a PEM file in bytes.
const maxGiven = 12 << 10

func pemCerts(what string, b []byte) (out []*x509.Certificate, err error) {
	if len(b) > maxGiven {
		return nil, refuse("%s: %d bytes: at most %d are possible", what, len(b), maxGiven)
	}
	for {
		var p *pem.Block
		if p, b = pem.Decode(b); p == nil {
			break
		}
		if p.Type != "CERTIFICATE" {
			return nil, refuse("%s: a PEM block %q among certificates: give the key by itself", what, p.Type)
		}
		c, err := x509.ParseCertificate(p.Bytes)
		if err != nil {
			return nil, refuse("%s: certificate %d: %w", what, len(out)+1, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, refuse("%s: no PEM block CERTIFICATE is in it", what)
	}
	if len(bytes.TrimSpace(b)) > 0 {
		return nil, refuse("%s: what stands at its end is no PEM", what)
	}
	return out, nil
}

// pemKey reads a key. Its errors do not hold it.
func pemKey(b []byte) (crypto.Signer, error) {
	if len(b) > maxGiven {
		return nil, refuse("key: %d bytes: at most %d are possible", len(b), maxGiven)
	}
	p, rest := pem.Decode(b)
	if p != nil && p.Type == "EC PARAMETERS" { // openssl ecparam -genkey writes the curve before the key
		p, rest = pem.Decode(rest)
	}
	if p == nil {
		return nil, refuse("key: no PEM block PRIVATE KEY is in it")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, refuse("key: something follows it")
	}
	var key any
	var err error
	switch {
	case p.Type == "ENCRYPTED PRIVATE KEY" || p.Headers["Proc-Type"] != "":
		return nil, refuse("key: it is encrypted: decrypt it first, for example by `openssl pkey -in FILE`; servers seal it")
	case p.Type == "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(p.Bytes)
	case p.Type == "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(p.Bytes)
	case p.Type == "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(p.Bytes)
	default:
		return nil, refuse("key: a PEM block %q: PRIVATE KEY is needed", p.Type)
	}
	if err != nil {
		return nil, refuse("key: it is damaged, or of a kind that is not known")
	}
	s, ok := key.(crypto.Signer)
	if !ok {
		return nil, refuse("key: a %T cannot sign", key)
	}
	return s, nil
}

// BootstrapGiven is Bootstrap with an intermediate that an authority outside of the mesh has signed.
func (c *CA) BootstrapGiven(ctx context.Context, g Given) error {
	_, _, err := c.load(ctx)
	if !errors.Is(err, ErrNoCA) {
		return err
	}
	now := time.Now()
	r, err := g.check(c.cfg.TrustDomain, now)
	if err != nil {
		return err
	}
	s := &State{Version: stateVersion}
	if err := c.do(s, MakeTokenKey, now); err != nil {
		return err
	}
	s.Bundle, s.Current = 1, r
	if err := c.do(s, MakeIntermediate, now); err != nil {
		return err
	}
	return c.save(ctx, s, 0)
}

// Replace has certificates come from another authority: one outside of the mesh, which has signed the intermediate that is given, or,
// when that is nil, the servers' own. If the root is the current one the intermediate signs at once, for nobody has to hear of anything;
// else it is as Rotate: the root spreads, and the intermediate signs once every host has it. A root that spreads and has
// not signed yet gives way to it. Errors: ErrGiven, ErrRotating while the root before is still in the bundle, ErrConflict, those of the
// store.
func (c *CA) Replace(ctx context.Context, g *Given) (Status, error) {
	old, index, err := c.load(ctx)
	if err != nil {
		return Status{}, err
	}
	now, s := time.Now(), old.clone()
	st := old.status(c.cfg.Params)
	var r *Signer
	if g != nil {
		if r, err = g.check(c.cfg.TrustDomain, now); err != nil {
			return st, err
		}
	}
	switch {
	case r != nil && bytes.Equal(r.Cert, s.Current.Cert):
		if s.Current.Given != nil && bytes.Equal(s.Current.Given.Cert, r.Given.Cert) {
			return st, nil // it is the one that signs
		}
		r.Created, s.Current = s.Current.Created, r
		if err := c.do(s, MakeIntermediate, now); err != nil {
			return st, err
		}
	case st.Step == Retire:
		return st, rotating(st)
	case r != nil && s.Next != nil && s.Next.Given != nil && bytes.Equal(s.Next.Cert, r.Cert):
		if bytes.Equal(s.Next.Given.Cert, r.Given.Cert) {
			return st, nil
		}
		r.Created = s.Next.Created // the root has been on its way since then
		s.Next = r
	case r != nil:
		if err := s.nextTokenKey(now); err != nil { // as PrepareRoot does
			return st, err
		}
		s.Next = r
		s.Bundle++
	case s.Next != nil && s.Next.Given == nil:
		return st, nil
	case s.Next == nil && s.Current.Given == nil:
		return st, refuse("the root is the servers' own already: `meshagent ca rotate` makes another one")
	default:
		if err := c.do(s, PrepareRoot, now); err != nil {
			return st, err
		}
	}
	if err := c.save(ctx, s, index); err != nil {
		return st, err
	}
	c.cfg.Log.Info("CA replacement begun", "given", g != nil, "bundle", s.Bundle)
	return s.status(c.cfg.Params), nil
}

func rotating(st Status) error {
	return fmt.Errorf("%w: its old root is accepted until %s; after that another one can begin", ErrRotating, st.Due.UTC().Format(time.RFC3339))
}
