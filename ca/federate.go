package ca

import (
	"bytes"
	"cmp"
	"crypto"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshagent/meshagent/mesh"
)

// Bounds of what speaks for another trust domain.
const (
	maxForeign       = 8        // roots, and keys of tokens
	maxForeignBundle = 32 << 10 // bytes of a bundle of SPIFFE
)

// ParseForeign reads what speaks for another trust domain, and for that one alone: its roots (PEM), or its bundle as SPIFFE has it (JSON), with the keys
// of its tokens. Errors wrap ErrGiven.
func ParseForeign(own, td mesh.TrustDomain, bundle []byte, now time.Time) (*mesh.TrustBundle, error) {
	if td == own {
		return nil, refuse("trust domain %s is this mesh's own: its roots come from its own authority", td)
	}
	b := &mesh.TrustBundle{TrustDomain: td, Version: 1}
	if err := readForeign(b, bundle); err != nil {
		return nil, err
	}
	if len(b.Roots) > maxForeign || len(b.TokenKeys) > maxForeign {
		return nil, refuse("bundle: %d roots and %d keys of tokens: at most %d of each are possible", len(b.Roots), len(b.TokenKeys), maxForeign)
	}
	for _, c := range b.Roots {
		if err := checkSigner(c, td, now); err != nil {
			return nil, err
		}
	}
	for _, k := range b.TokenKeys {
		if len(k.ID) > maxKeyID {
			return nil, refuse("bundle: the key of tokens %.64q has an id of %d bytes: at most %d are possible", k.ID, len(k.ID), maxKeyID)
		}
		if why := weak(k.Key); why != "" {
			return nil, refuse("bundle: the key of tokens %.64q: %s", k.ID, why)
		}
	}
	return b, nil
}

func readForeign(b *mesh.TrustBundle, text []byte) (err error) {
	if !bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
		b.Roots, err = pemCerts("bundle", text)
		return err
	}
	if len(text) > maxForeignBundle {
		return refuse("bundle: %d bytes: at most %d are possible", len(text), maxForeignBundle)
	}
	td, err := spiffeid.TrustDomainFromString(b.TrustDomain.String())
	if err != nil {
		return refuse("trust domain %s: %w", b.TrustDomain, err)
	}
	s, err := spiffebundle.Parse(td, text)
	if err != nil {
		return refuse("bundle: %w", err)
	}
	if b.Roots = s.X509Authorities(); len(b.Roots) == 0 {
		return refuse("bundle: no key of it has the use x509-svid: its trust domain has no roots")
	}
	for id, key := range s.JWTAuthorities() {
		b.TokenKeys = append(b.TokenKeys, mesh.TokenKey{ID: id, Key: key})
	}
	slices.SortFunc(b.TokenKeys, func(x, y mesh.TokenKey) int { return cmp.Compare(x.ID, y.ID) })
	return nil
}

// refreshHint is how often who has a copy of the mesh's bundle should look for another: half of the time that a root or a key is in it
// before it signs.
const refreshHint = defaultSpread / 2

// SPIFFEBundle returns a bundle as SPIFFE has it: JSON.
//
// Source: SPIFFE Trust Domain and Bundle, section 4.
func SPIFFEBundle(b *mesh.TrustBundle) ([]byte, error) {
	td, err := spiffeid.TrustDomainFromString(b.TrustDomain.String())
	if err != nil {
		return nil, err
	}
	s := spiffebundle.FromX509Authorities(td, b.Roots)
	s.SetJWTAuthorities(JWTAuthorities(b))
	s.SetSequenceNumber(b.Version)
	s.SetRefreshHint(refreshHint)
	return s.Marshal()
}

// JWTAuthorities returns the keys of a bundle's tokens by their ids.
func JWTAuthorities(b *mesh.TrustBundle) map[string]crypto.PublicKey {
	out := map[string]crypto.PublicKey{}
	for _, k := range b.TokenKeys {
		out[k.ID] = k.Key
	}
	return out
}
