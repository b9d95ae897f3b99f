// Package vault has intermediates of the mesh signed by the PKI secrets engine of HashiCorp Vault, or of OpenBao, which speaks the same. Imported by
// agent, which gives it to the CA.
//
// Guarantees: the intermediate's key does not leave the server, only a request signed with it; Vault is spoken to by TLS alone, but for
// loopback; no redirect is followed; answers and times are bounded; the token is read anew for each request and is in no error.
//
// Source: Vault's HTTP API, PKI secrets engine, "Sign intermediate" (POST /v1/:mount/root/sign-intermediate).
package vault

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/meshagent/meshagent/internal/fetch"
)

// Config says where Vault is, and by what right it is asked.
type Config struct {
	Address   string        // https://HOST:PORT; http for loopback alone
	Mount     string        // of the engine: pki when ""
	Namespace string        // of Vault, where there are namespaces
	TokenFile string        // holds the token; it is read at each request
	CAFile    string        // PEM: who vouches for Vault's server; "": the system's
	TTL       time.Duration // what is asked for; Vault may give less
}

// Bounds of a request.
const (
	maxAnswer = 256 << 10
	maxToken  = 8 << 10
	askTime   = 20 * time.Second
)

// Client asks one Vault. It is safe for concurrent use.
type Client struct {
	cfg   Config
	guard *fetch.Guard
}

// CheckAddress reports whether an address of Vault may be used.
func CheckAddress(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/" {
		return fmt.Errorf("%q: write https://HOST:PORT", s)
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme != "https" && !(u.Scheme == "http" && ip != nil && ip.IsLoopback()) {
		return fmt.Errorf("%q: the token would go in the clear: write https://HOST:PORT", s)
	}
	return nil
}

// New returns a Client for a checked address. It touches nothing.
func New(cfg Config) *Client {
	if cfg.Mount == "" {
		cfg.Mount = "pki"
	}
	var host []string
	if u, err := url.Parse(cfg.Address); err == nil {
		host = []string{u.Hostname()} // who configures the agent names it: it may be private
	}
	return &Client{cfg, fetch.New("ca.vault.address", host)}
}

type request struct {
	CSR          string `json:"csr"`
	CommonName   string `json:"common_name"`
	Format       string `json:"format"`
	TTL          string `json:"ttl"`
	UseCSRValues bool   `json:"use_csr_values"`
}

type answer struct {
	Data struct {
		Certificate string   `json:"certificate"`
		IssuingCA   string   `json:"issuing_ca"`
		Chain       []string `json:"ca_chain"`
	} `json:"data"`
	Errors []string `json:"errors"`
}

// Sign has the intermediate of a request (PEM) signed, and returns it with what stands between it and the root behind it, and the root: PEM. What it
// returns is not verified.
func (c *Client) Sign(ctx context.Context, csr []byte) (cert, root []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	cert, root, err = c.sign(ctx, csr)
	if err != nil {
		return nil, nil, fmt.Errorf("vault %s: %w", c.cfg.Address, err)
	}
	return cert, root, nil
}

func (c *Client) sign(ctx context.Context, csr []byte) (cert, root []byte, err error) {
	token, err := c.token()
	if err != nil {
		return nil, nil, err
	}
	var roots *x509.CertPool
	if c.cfg.CAFile != "" {
		b, err := os.ReadFile(c.cfg.CAFile)
		if err != nil {
			return nil, nil, err
		}
		if roots = x509.NewCertPool(); !roots.AppendCertsFromPEM(b) {
			return nil, nil, fmt.Errorf("%s holds no certificate (PEM)", c.cfg.CAFile)
		}
	}
	p, _ := pem.Decode(csr)
	if p == nil {
		return nil, nil, errors.New("the request is no PEM")
	}
	asked, err := x509.ParseCertificateRequest(p.Bytes)
	if err != nil {
		return nil, nil, err
	}
	body, err := json.Marshal(request{string(csr), asked.Subject.CommonName, "pem", fmt.Sprintf("%ds", int(c.cfg.TTL.Seconds())), true})
	if err != nil {
		return nil, nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(c.cfg.Address, "/")+"/v1/"+c.cfg.Mount+"/root/sign-intermediate", bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Vault-Request", "true")
	r.Header.Set("X-Vault-Token", token)
	if c.cfg.Namespace != "" {
		r.Header.Set("X-Vault-Namespace", c.cfg.Namespace)
	}
	resp, err := c.guard.Client(roots).Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, err
	}
	if len(b) > maxAnswer {
		return nil, nil, fmt.Errorf("its answer is over %d bytes", maxAnswer)
	}
	var a answer
	bad := json.Unmarshal(b, &a)
	switch {
	case resp.StatusCode != http.StatusOK && len(a.Errors) > 0:
		return nil, nil, fmt.Errorf("it answered %d: %.500q", resp.StatusCode, strings.Join(a.Errors, "; "))
	case resp.StatusCode != http.StatusOK:
		return nil, nil, fmt.Errorf("it answered %d", resp.StatusCode)
	case bad != nil:
		return nil, nil, fmt.Errorf("its answer is no JSON of the API: %w", bad)
	}
	return a.split()
}

// split tells the root from what stands below it.
func (a *answer) split() (cert, root []byte, err error) {
	all := append([]string{a.Data.Certificate}, a.Data.Chain...)
	if len(a.Data.Chain) == 0 {
		all = append(all, a.Data.IssuingCA)
	}
	var seen [][]byte
	for i, s := range all {
		p, _ := pem.Decode([]byte(s))
		if p == nil {
			return nil, nil, fmt.Errorf("certificate %d of its answer is no PEM", i+1)
		}
		c, err := x509.ParseCertificate(p.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("certificate %d of its answer: %w", i+1, err)
		}
		if has(seen, c.Raw) { // some versions name the issuer twice, or the certificate itself in its chain
			continue
		}
		seen = append(seen, c.Raw)
		out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		if bytes.Equal(c.RawSubject, c.RawIssuer) {
			root = out
			break
		}
		cert = append(cert, out...)
	}
	if root == nil {
		return nil, nil, errors.New("the chain of its answer ends at no root: import the root, or the whole chain, into the engine (pki/config/ca)")
	}
	return cert, root, nil
}

func has(all [][]byte, b []byte) bool {
	for _, a := range all {
		if bytes.Equal(a, b) {
			return true
		}
	}
	return false
}

// token reads the token. Its errors do not hold it.
func (c *Client) token() (string, error) {
	f, err := os.Open(c.cfg.TokenFile)
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return "", fmt.Errorf("token: %w", err)
	} else if st.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("token: %s can be read by everybody (mode %v): chmod 600 it", c.cfg.TokenFile, st.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxToken))
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	t := strings.TrimSpace(string(b))
	if t == "" || strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("token: %s does not hold one", c.cfg.TokenFile)
	}
	return t, nil
}
