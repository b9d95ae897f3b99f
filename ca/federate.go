package ca

import (
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// maxForeign bounds the roots of another trust domain.
const maxForeign = 8

// ParseForeign reads the roots (PEM) by which identities of another trust domain are judged, and of that one alone. Errors wrap ErrGiven.
func ParseForeign(own, td mesh.TrustDomain, roots []byte, now time.Time) (*mesh.TrustBundle, error) {
	if td == own {
		return nil, refuse("trust domain %s is this mesh's own: its roots come from its own authority", td)
	}
	cs, err := pemCerts("bundle", roots)
	if err != nil {
		return nil, err
	}
	if len(cs) > maxForeign {
		return nil, refuse("bundle: %d roots: at most %d are possible", len(cs), maxForeign)
	}
	for _, c := range cs {
		if err := checkSigner(c, td, now); err != nil {
			return nil, err
		}
	}
	return &mesh.TrustBundle{TrustDomain: td, Version: 1, Roots: cs}, nil
}
