package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// ErrPeer is wrapped by every reason for which a chain is refused.
var ErrPeer = errors.New("certificate refused")

// Bounds of what a peer may send: work is done for strangers.
const (
	maxChain = 4
	maxCert  = 16 << 10 // bytes of one certificate
	maxLife  = 32 * 24 * time.Hour
)

// Verify checks a peer's chain, leaf first, against a bundle and returns the leaf's identity. It is the whole of X.509-SVID's
// sections 4 and 5, for the trust domain of the bundle alone; the host's own roots are never asked. The error says what
// the operator of the peer should do. It does no I/O and is safe for concurrent use.
func Verify(chain []*x509.Certificate, b *mesh.TrustBundle, now time.Time) (mesh.Identity, error) {
	none := mesh.Identity{}
	switch {
	case b == nil || len(b.Roots) == 0:
		return none, fmt.Errorf("%w: this host has no trust bundle yet", ErrPeer)
	case len(chain) == 0:
		return none, fmt.Errorf("%w: none was sent", ErrPeer)
	case len(chain) > maxChain:
		return none, fmt.Errorf("%w: chain of %d: at most %d are accepted", ErrPeer, len(chain), maxChain)
	}
	for i, c := range chain {
		if len(c.Raw) > maxCert {
			return none, fmt.Errorf("%w: of %d bytes: at most %d are accepted", ErrPeer, len(c.Raw), maxCert)
		}
		switch k := c.PublicKey.(type) {
		case *ecdsa.PublicKey, ed25519.PublicKey:
		case *rsa.PublicKey: // of authorities outside of the mesh: each costs a peer one check of a signature
			if i == 0 || k.N.BitLen() > maxRSA || k.N.BitLen() < minRSA {
				return none, fmt.Errorf("%w: key of RSA, %d bits: elliptic curves only, for CA certificates also RSA of %d to %d bits", ErrPeer, k.N.BitLen(), minRSA, maxRSA)
			}
		default:
			return none, fmt.Errorf("%w: key of type %T: elliptic curves only", ErrPeer, c.PublicKey)
		}
	}
	leaf := chain[0]
	id, err := mesh.CertIdentity(leaf)
	if err != nil {
		return none, fmt.Errorf("%w: %w", ErrPeer, err)
	}
	if id.TrustDomain() != b.TrustDomain {
		return none, fmt.Errorf("%w: %s is of another trust domain than %s", ErrPeer, id, b.TrustDomain)
	}
	if err := checkLeaf(leaf, id, now); err != nil {
		return none, err
	}
	inter := x509.NewCertPool()
	for _, c := range chain[1:] {
		if !c.IsCA || len(c.URIs) > 0 && (c.URIs[0].Scheme != "spiffe" || c.URIs[0].Host != b.TrustDomain.String() || c.URIs[0].Path != "") {
			return none, fmt.Errorf("%w: %s: a certificate of its chain may not sign", ErrPeer, id)
		}
		inter.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: b.Pool(), Intermediates: inter, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return none, fmt.Errorf("%w: %s: %w", ErrPeer, id, err)
	}
	return id, nil
}

func checkLeaf(c *x509.Certificate, id mesh.Identity, now time.Time) error {
	switch {
	case now.Before(c.NotBefore):
		return fmt.Errorf("%w: %s: valid from %s, it is %s here: the clock of this host or of the CA's is off by at least %s: set it (timedatectl set-ntp true)",
			ErrPeer, id, c.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339), c.NotBefore.Sub(now).Round(time.Second))
	case now.After(c.NotAfter):
		return fmt.Errorf("%w: %s: expired at %s, it is %s here: its host could not renew it, or a clock is off",
			ErrPeer, id, c.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case c.NotAfter.Sub(c.NotBefore) > maxLife:
		return fmt.Errorf("%w: %s: lives for %v: at most %v are accepted", ErrPeer, id, c.NotAfter.Sub(c.NotBefore), maxLife)
	}
	if len(c.ExtKeyUsage) > 0 && !(slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth)) {
		return fmt.Errorf("%w: %s: extended key usage lacks server or client authentication", ErrPeer, id)
	}
	return nil
}

// What begins an encoded bundle. One without keys of tokens is written as it was before there were any.
const (
	bundleV1 = 1 // roots until its end
	bundleV2 = 2 // how many roots, and how many keys of tokens; these
)

// Bounds of a bundle.
const (
	maxRoots     = 16
	maxTokenKeys = 16
	maxKeyID     = 256 // bytes
)

// EncodeBundle returns a bundle as bytes: version, trust domain, bundle version, roots, keys of tokens.
func EncodeBundle(b *mesh.TrustBundle) []byte {
	out := []byte{bundleV1}
	if len(b.TokenKeys) > 0 {
		out[0] = bundleV2
	}
	out = appendBytes(out, []byte(b.TrustDomain.String()))
	out = binary.AppendUvarint(out, b.Version)
	if len(b.TokenKeys) > 0 {
		out = binary.AppendUvarint(out, uint64(len(b.Roots)))
		out = binary.AppendUvarint(out, uint64(len(b.TokenKeys)))
	}
	for _, r := range b.Roots {
		out = appendBytes(out, r.Raw)
	}
	for _, k := range b.TokenKeys {
		der, err := x509.MarshalPKIXPublicKey(k.Key)
		if err != nil {
			panic(err) // our own, or read by DecodeBundle or ParseForeign
		}
		out = appendBytes(appendBytes(out, []byte(k.ID)), der)
	}
	return out
}

func appendBytes(b, v []byte) []byte { return append(binary.AppendUvarint(b, uint64(len(v))), v...) }

// DecodeBundle reads what EncodeBundle wrote, and accepts only roots that are CAs, and keys of tokens that are strong.
func DecodeBundle(b []byte) (*mesh.TrustBundle, error) {
	bad := func(why string) (*mesh.TrustBundle, error) { return nil, fmt.Errorf("trust bundle: %s", why) }
	if len(b) == 0 || b[0] != bundleV1 && b[0] != bundleV2 {
		return bad("written by a newer meshagent, or damaged")
	}
	counted := b[0] == bundleV2
	b = b[1:]
	number := func() (uint64, bool) {
		n, k := binary.Uvarint(b)
		if k <= 0 {
			return 0, false
		}
		b = b[k:]
		return n, true
	}
	next := func(most int) ([]byte, bool) {
		n, ok := number()
		if !ok || n > uint64(len(b)) || n > uint64(most) {
			return nil, false
		}
		v := b[:n]
		b = b[n:]
		return v, true
	}
	name, ok := next(maxCert)
	if !ok {
		return bad("cut")
	}
	td, err := mesh.ParseTrustDomain(string(name))
	if err != nil {
		return nil, fmt.Errorf("trust bundle: %w", err)
	}
	out := &mesh.TrustBundle{TrustDomain: td}
	if out.Version, ok = number(); !ok {
		return bad("cut")
	}
	var roots, keys uint64
	if counted {
		if roots, ok = number(); ok {
			keys, ok = number()
		}
		if !ok {
			return bad("cut")
		}
	}
	for counted && roots > 0 || !counted && len(b) > 0 {
		roots--
		der, ok := next(maxCert)
		if !ok || len(out.Roots) >= maxRoots {
			return bad("cut, or too large")
		}
		c, err := x509.ParseCertificate(bytes.Clone(der))
		if err != nil {
			return nil, fmt.Errorf("trust bundle: %w", err)
		}
		if !c.IsCA {
			return bad("a root in it is no CA")
		}
		out.Roots = append(out.Roots, c)
	}
	if len(out.Roots) == 0 {
		return bad("it holds no root")
	}
	for ; keys > 0; keys-- {
		id, ok := next(maxKeyID)
		der, more := next(maxCert)
		if !ok || !more || len(out.TokenKeys) >= maxTokenKeys {
			return bad("cut, or too large")
		}
		key, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			return nil, fmt.Errorf("trust bundle: a key of tokens: %w", err)
		}
		if why := weak(key); why != "" {
			return bad("a key of tokens: " + why)
		}
		out.TokenKeys = append(out.TokenKeys, mesh.TokenKey{ID: string(id), Key: key})
	}
	if len(b) > 0 {
		return bad("something follows it")
	}
	return out, nil
}
