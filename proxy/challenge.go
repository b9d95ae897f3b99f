package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net/http"
	"strings"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// What authorities ask gateways, to see that a name is theirs.
const (
	challengePath  = "/.well-known/acme-challenge/" // RFC 8555, section 8.3
	challengeProto = "acme-tls/1"                   // RFC 8737, of ALPN
)

// challengeID marks the extension that holds the answer. Source: RFC 8737, section 3.
var challengeID = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}

// errAnswered ends a connection that was nothing but a challenge.
var errAnswered = errors.New("a challenge was answered")

// challenges are what gateways answer now. They are immutable.
type challenges struct {
	http map[string][]byte      // by host and token
	tls  map[string]*tls.Config // by host
}

// SetChallenges says what the gateways of this host answer from now on, at all their ports that speak as a challenge asks. It is asked before policy is,
// and answers nothing else.
func (p *Proxy) SetChallenges(list []mesh.Challenge) {
	if len(list) == 0 {
		p.acme.Store(nil)
		return
	}
	c := &challenges{http: map[string][]byte{}, tls: map[string]*tls.Config{}}
	for _, x := range list {
		if x.Token != "" {
			c.http[x.Host+"/"+x.Token] = []byte(x.Answer)
			continue
		}
		cfg, err := challengeConfig(x)
		if err != nil {
			p.warn("a challenge is not answered", "host", x.Host, "err", err)
			continue
		}
		c.tls[x.Host] = cfg
	}
	p.acme.Store(c)
}

// challengeConfig shows a certificate that holds the answer, and is good for nothing else.
func challengeConfig(x mesh.Challenge) (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(x.Answer))
	ext, err := asn1.Marshal(sum[:])
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "ACME challenge"}, DNSNames: []string{x.Host}, NotBefore: now.Add(-time.Hour),
		NotAfter: now.Add(24 * time.Hour), ExtraExtensions: []pkix.Extension{{Id: challengeID, Critical: true, Value: ext}}}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{challengeProto}, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, nil
}

// asked returns how to answer a client that asks by TLS-ALPN-01; nil if it does not, or nobody knows the answer.
func (c *challenges) asked(host string, protocols []string) *tls.Config {
	if c == nil || len(protocols) != 1 || protocols[0] != challengeProto {
		return nil
	}
	return c.tls[strings.ToLower(host)]
}

// answersChallenge answers a request of HTTP-01, if the call is one.
func (c *call) answersChallenge() bool {
	known := c.p.acme.Load()
	if known == nil || c.q.Method != http.MethodGet {
		return false
	}
	token, ok := strings.CutPrefix(c.q.Path, challengePath)
	if !ok {
		return false
	}
	answer := known.http[c.q.Authority+"/"+token]
	if answer == nil {
		return false
	}
	c.respond(&noAction, http.StatusOK, answer, plainText)
	return true
}
