package agent

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/api/server"
	"github.com/meshagent/meshagent/agent/operators"
	"github.com/meshagent/meshagent/ca/leaf"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// meshCertificate says that the API shows a certificate of the mesh's own authority.
const meshCertificate = "mesh"

// checkRemote reports what is wrong with the fields about operators of other hosts.
func (a *API) checkRemote(bad func(field, format string, args ...any)) {
	t := &a.TLS
	switch {
	case !a.Listen.IsValid():
		if t.Certificate+t.Key+t.ClientCA+t.ClientCRL != "" || len(a.Hosts)+len(a.Operators) > 0 {
			bad("api.listen", "is missing: api.hosts, api.tls and api.operators are about what listens there; write an address and port, as 192.0.2.1:8501")
		}
	case a.Listen.Port() == 0:
		bad("api.listen", "%v has no port: write it as 192.0.2.1:8501", a.Listen)
	case a.Listen == a.Address:
		bad("api.listen", "%v is api.address: give it another port", a.Listen)
	case t.Certificate == "":
		bad("api.tls.certificate", "is missing: operators of other hosts are served with TLS alone; write a file of certificates, and its key, or mesh on a server")
	}
	if t.Certificate == meshCertificate && t.Key != "" {
		bad("api.tls.key", "stands beside the certificate of the mesh, which has its own")
	}
	for _, f := range []struct{ field, path string }{{"certificate", t.Certificate}, {"key", t.Key}, {"clientCA", t.ClientCA}, {"clientCRL", t.ClientCRL}} {
		if f.path != "" && !filepath.IsAbs(f.path) && (f.field != "certificate" || f.path != meshCertificate) {
			bad("api.tls."+f.field, "%q is not an absolute path", f.path)
		}
	}
	if t.Certificate != "" && t.Certificate != meshCertificate && t.Key == "" {
		bad("api.tls.key", "is missing: write the file of the certificate's key")
	}
	for i, h := range a.Hosts {
		if _, err := netip.ParseAddr(h); err != nil && (h == "" || strings.ToLower(h) != h || strings.ContainsAny(h, "*/:@[] ") || strings.HasSuffix(h, ".")) {
			bad(fmt.Sprintf("api.hosts[%d]", i), "%q is neither a name in small letters, as mesh.example.com, nor an address", h)
		}
	}
	switch {
	case t.ClientCRL != "" && t.ClientCA == "":
		bad("api.tls.clientCA", "is missing: api.tls.clientCRL is about certificates of its authorities")
	case len(a.Operators) > 0 && t.ClientCA == "":
		bad("api.tls.clientCA", "is missing: write the file of the authorities whose certificates api.operators names")
	case t.ClientCA != "" && len(a.Operators) == 0:
		bad("api.operators", "is missing: nobody with a certificate may do anything without; write a uri, dns or subject, and a role")
	}
	for i := range a.Operators {
		a.Operators[i].Check(func(field, format string, args ...any) {
			at := fmt.Sprintf("api.operators[%d]", i)
			if field != "" {
				at += "." + field
			}
			bad(at, format, args...)
		})
	}
}

// remote is what serves operators of other hosts.
type remote struct {
	tls    *APITLS
	rules  []operators.Certificate
	leaves *leaf.Manager
	server mesh.Identity // whose certificate is shown when the mesh's is to be

	mu     sync.Mutex // guards what follows
	looked time.Time
	seen   string // what the files were like
	cert   *tls.Certificate
	roots  *x509.CertPool
	crls   policy.CRLs
	err    error // why what they are like now is not taken
}

// openRemote opens the port for operators of other hosts; nil, nil if none is wanted.
func (a *Agent) openRemote() (*server.Remote, net.Listener, error) {
	c := &a.cfg.API
	if !c.Listen.IsValid() {
		return nil, nil, nil
	}
	if c.TLS.Certificate == meshCertificate && a.server.IsZero() {
		return nil, nil, errors.New("api.tls.certificate: only servers can show a certificate of the mesh to operators: write files of a certificate and its key")
	}
	r := &remote{tls: &c.TLS, rules: c.Operators, leaves: a.leaves, server: a.server}
	if err := r.look(time.Now()); err != nil {
		return nil, nil, err
	}
	out := &server.Remote{Hosts: c.Hosts, TLS: &tls.Config{GetCertificate: r.certificate}}
	if c.TLS.ClientCA != "" {
		out.TLS.ClientAuth = tls.RequestClientCert
		out.Certificate = r.who
	}
	ln, err := a.listen("api.listen", c.Listen.String())
	if err != nil {
		return nil, nil, err
	}
	a.remote.Store(r)
	return out, ln, nil
}

func (r *remote) certificate(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if r.tls.Certificate == meshCertificate {
		return r.leaves.Certificate(h.Context(), r.server)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lookLocked(time.Now())
	return r.cert, nil
}

// who says whose certificate a caller has shown.
func (r *remote) who(chain []*x509.Certificate, now time.Time) (string, access.Role, error) {
	r.mu.Lock()
	r.lookLocked(now)
	c := operators.Certificates{Roots: r.roots, Rules: r.rules, Revoked: r.crls.Check}
	r.mu.Unlock()
	return c.Who(chain, now)
}

// lookEvery is how long what was read of the files counts.
const lookEvery = 10 * time.Second

// look reads the files, if they have changed. Its error is why they are not taken; then those before stay.
func (r *remote) look(now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lookLocked(now)
	return r.err
}

func (r *remote) lookLocked(now time.Time) {
	if !r.looked.IsZero() && now.Sub(r.looked).Abs() < lookEvery {
		return
	}
	r.looked = now
	var seen strings.Builder
	for _, p := range []string{r.tls.Certificate, r.tls.Key, r.tls.ClientCA, r.tls.ClientCRL} {
		if st, err := os.Stat(p); err == nil {
			seen.WriteString(fmt.Sprintf("%s %d %d\n", p, st.ModTime().UnixNano(), st.Size()))
		}
	}
	if seen.String() == r.seen && r.err == nil && r.seen != "" {
		return
	}
	if r.err = r.readLocked(); r.err == nil {
		r.seen = seen.String()
	}
}

func (r *remote) readLocked() error {
	cert, roots, crls := r.cert, r.roots, r.crls
	if r.tls.Certificate != meshCertificate {
		c, err := tls.LoadX509KeyPair(r.tls.Certificate, r.tls.Key)
		if err != nil {
			return fmt.Errorf("api.tls.certificate: %w", err)
		}
		cert = &c
	}
	if r.tls.ClientCA != "" {
		b, err := os.ReadFile(r.tls.ClientCA)
		if err != nil {
			return fmt.Errorf("api.tls.clientCA: %w", err)
		}
		if roots = x509.NewCertPool(); !roots.AppendCertsFromPEM(b) {
			return fmt.Errorf("api.tls.clientCA: %s has no certificate in PEM", r.tls.ClientCA)
		}
	}
	if r.tls.ClientCRL != "" {
		b, err := os.ReadFile(r.tls.ClientCRL)
		if err == nil {
			crls, err = policy.ParseCRLs(b)
		}
		if err != nil {
			return fmt.Errorf("api.tls.clientCRL: %w", err)
		}
	}
	r.cert, r.roots, r.crls = cert, roots, crls
	return nil
}

// remoteProblems tells which files are not taken, and whose certificate ends.
func (a *Agent) remoteProblems(now time.Time) (out []api.Problem) {
	r := a.remote.Load()
	if r == nil {
		return nil
	}
	if err := r.look(now); err != nil {
		out = append(out, api.Problem{Subject: "API for other hosts", Reason: err.Error(), Hint: "what was read before counts"})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cert != nil && r.cert.Leaf != nil && r.cert.Leaf.NotAfter.Sub(now) < remoteAlarm {
		out = append(out, api.Problem{Subject: "API for other hosts", Reason: "the certificate of api.tls.certificate ends at " + r.cert.Leaf.NotAfter.UTC().Format(time.RFC3339),
			Hint: "replace the files: they are read again by themselves"})
	}
	return out
}

// remoteAlarm is how near its end a certificate of files is a problem: who renews it has failed at it for long then.
const remoteAlarm = 3 * 24 * time.Hour
