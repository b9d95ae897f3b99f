package policy

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// CRLs are the lists of certificates that authorities have revoked (RFC 5280, section 5). nil are none: nothing is checked. It is immutable.
type CRLs []*crl

type crl struct {
	*x509.RevocationList
	revoked map[string]bool // serial numbers
}

// ParseCRLs reads lists in PEM. A list that says that it can only be understood with what is not known here is an error, as is a delta list.
func ParseCRLs(data []byte) (CRLs, error) {
	var out CRLs
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "X509 CRL" {
			return nil, fmt.Errorf("holds a %s where lists of revoked certificates are expected", block.Type)
		}
		l, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, err
		}
		for _, e := range l.Extensions {
			if e.Critical {
				return nil, fmt.Errorf("the list of %s has the critical extension %v, which is not understood", l.Issuer, e.Id)
			}
		}
		c := &crl{l, make(map[string]bool, len(l.RevokedCertificateEntries))}
		for i := range l.RevokedCertificateEntries {
			c.revoked[string(l.RevokedCertificateEntries[i].SerialNumber.Bytes())] = true
		}
		out = append(out, c)
	}
	if out == nil {
		return nil, errors.New("holds no list of revoked certificates in PEM")
	}
	return out, nil
}

// Check returns nil when one of the chains, which were verified and begin with a leaf, has no certificate that was revoked. Each but the root needs
// a list of its issuer's, which must be signed by it and not be outdated: who is not known not to be revoked is refused, as by OpenSSL's
// CRL_CHECK_ALL, which Envoy uses.
func (ls CRLs) Check(chains [][]*x509.Certificate, now time.Time) (err error) {
	if ls == nil {
		return nil
	}
	err = errors.New("no chain of certificates was verified")
	for _, chain := range chains {
		if err = ls.check(chain, now); err == nil {
			return nil
		}
	}
	return err
}

func (ls CRLs) check(chain []*x509.Certificate, now time.Time) error {
	if len(chain) < 2 {
		return errors.New("the certificate has no issuer that could have a list of revoked certificates")
	}
	for i, c := range chain[:len(chain)-1] {
		if err := ls.status(c, chain[i+1], now); err != nil {
			return err
		}
	}
	return nil
}

func (ls CRLs) status(c, issuer *x509.Certificate, now time.Time) error {
	err, fine := fmt.Errorf("there is no list of revoked certificates of %s", issuer.Subject), false
	for _, l := range ls {
		switch {
		case !bytes.Equal(l.RawIssuer, issuer.RawSubject):
		case l.CheckSignatureFrom(issuer) != nil:
			err = fmt.Errorf("the list of revoked certificates of %s is not signed by it", issuer.Subject)
		case l.revoked[string(c.SerialNumber.Bytes())]: // also where the list is old
			return fmt.Errorf("the certificate %v of %s was revoked", c.SerialNumber, issuer.Subject)
		case now.Before(l.ThisUpdate) || l.NextUpdate.IsZero() || now.After(l.NextUpdate):
			err = fmt.Errorf("the list of revoked certificates of %s is not of now, but from %v to %v", issuer.Subject, l.ThisUpdate, l.NextUpdate)
		default:
			fine = true
		}
	}
	if fine {
		return nil
	}
	return err
}
