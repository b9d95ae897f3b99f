//go:build process && linux

package scenario

import (
	"context"
	"crypto/tls"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// workloadSocket is where the Workload API of a host is in scripts that have one.
func (w *world) workloadSocket(host string) string { return "unix://" + w.file(host+".sock") }

// spiffeTLS has an application of a host get its certificate from the Workload API, and take calls of one service of the default namespace. It
// asks when the first call comes: it is registered then.
func (w *world) spiffeTLS(host, caller string) (*tls.Config, error) {
	id, err := spiffeid.FromString("spiffe://test.mesh/ns/default/sa/" + caller)
	if err != nil {
		return nil, err
	}
	source := sync.OnceValues(func() (*workloadapi.X509Source, error) {
		ctx, cancel := context.WithTimeout(w.t.Context(), most)
		defer cancel()
		s, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(w.workloadSocket(host))))
		if err == nil {
			w.t.Cleanup(func() { s.Close() })
		}
		return s, err
	})
	return &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		s, err := source()
		if err != nil {
			return nil, err
		}
		c := tlsconfig.MTLSServerConfig(s, s, tlsconfig.AuthorizeID(id))
		c.NextProtos = []string{"h2", "http/1.1"}
		return c, nil
	}}, nil
}
