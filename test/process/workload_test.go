//go:build process && linux

package process

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/meshagent/meshagent/test/lab"
)

// refusals keeps why go-spiffe's client is refused.
type refusals struct {
	mu   sync.Mutex // guards what follows
	last error
	got  int
}

func (r *refusals) OnX509ContextUpdate(*workloadapi.X509Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got++
	r.last = nil
}

func (r *refusals) OnX509ContextWatchError(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = err
}

func (r *refusals) is(code codes.Code, sentence string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := status.Convert(r.last); s.Code() != code || !strings.Contains(s.Message(), sentence) {
		return fmt.Errorf("after %d certificates: %v", r.got, r.last)
	}
	return nil
}

// TestWorkloadAPI: applications on two hosts get certificates of their agents, talk to each other with mutual TLS past every agent, go on
// when an agent hands over, and get nothing any more when their service is gone or revoked; the token of one is taken on the other's host. No key and no
// token of theirs is in what an agent stores or logs.
func TestWorkloadAPI(t *testing.T) {
	dir, err := os.MkdirTemp("", "w") // that of t may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := func(host int) string { return filepath.Join(dir, strconv.Itoa(host)) }
	c := lab.NewConfigured(t, 122, 1, 1, func(host int) string { return fmt.Sprintf("workloadAPI: {socket: %s}\n", socket(host)) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	addr := func(host int) workloadapi.ClientOption { return workloadapi.WithAddr("unix://" + socket(host)) }
	if st, err := os.Stat(socket(1)); err != nil || st.Mode().Perm() != 0o666 {
		t.Errorf("%v %v", st, err)
	}
	_, err = workloadapi.FetchX509SVID(ctx, addr(1))
	if s := status.Convert(err); s.Code() != codes.PermissionDenied || !strings.HasPrefix(s.Message(), "no service of this host claims user "+strconv.Itoa(os.Getuid())) {
		t.Errorf("before there is a service: %v", err)
	}
	define := func(host int, name string) spiffeid.ID {
		h := c.Host(host)
		def := fmt.Appendf(nil, "name: %s\naddress: %s\nport: 9090\nprotocol: tcp\ncallers: {users: [%q]}\n", name, h.Addr(), strconv.Itoa(os.Getuid()))
		if _, err := h.API.Register(ctx, def); err != nil {
			t.Fatal(err)
		}
		return spiffeid.RequireFromString("spiffe://test.mesh/ns/default/sa/" + name)
	}
	web, db := define(1, "web"), define(2, "db")
	source := func(host int) *workloadapi.X509Source {
		s, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(addr(host)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		svid, err := s.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		key, err := svid.PrivateKey.(*ecdsa.PrivateKey).Bytes()
		if err != nil {
			t.Fatal(err)
		}
		c.Secret("the key of an application", string(key))
		return s
	}
	ws, ds := source(1), source(2)
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.TLS.PeerCertificates[0].URIs[0])
	}))
	app.Listener = tls.NewListener(app.Listener, tlsconfig.MTLSServerConfig(ds, ds, tlsconfig.AuthorizeID(web)))
	app.Start()
	defer app.Close()
	get := func() (string, error) {
		tr := &http.Transport{TLSClientConfig: tlsconfig.MTLSClientConfig(ws, ws, tlsconfig.AuthorizeID(db))}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Get("https://" + app.Listener.Addr().String())
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	if got, err := get(); err != nil || got != web.String() {
		t.Errorf("db sees %q %v", got, err)
	}

	before, err := ws.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	c.Host(1).HandOver()
	c.Await("a certificate from the new agent", 20*time.Second, func() error {
		now, err := ws.GetX509SVID()
		if err == nil && now.Certificates[0].Equal(before.Certificates[0]) {
			err = fmt.Errorf("still number %v", now.Certificates[0].SerialNumber)
		}
		return err
	})
	if got, err := get(); err != nil || got != web.String() {
		t.Errorf("after the hand-over db sees %q %v", got, err)
	}

	token, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "db"}, addr(1))
	if err != nil {
		t.Fatal(err)
	}
	c.Secret("a token of an application", token.Marshal())
	judge := func() error {
		who, err := workloadapi.ValidateJWTSVID(ctx, token.Marshal(), "db", addr(2))
		if err == nil && who.ID != web {
			err = fmt.Errorf("it is of %s", who.ID)
		}
		return err
	}
	if err := judge(); err != nil {
		t.Errorf("db's agent is asked about web's token: %v", err)
	}
	keys, err := workloadapi.FetchJWTBundles(ctx, addr(2))
	if err != nil {
		t.Fatal(err)
	}
	if who, err := jwtsvid.ParseAndValidate(token.Marshal(), keys, []string{"db"}); err != nil || who.ID != web {
		t.Errorf("db looks at web's token: %+v %v", who, err)
	}

	var wr, dr refusals
	for host, r := range map[int]*refusals{1: &wr, 2: &dr} {
		cl, err := workloadapi.New(ctx, addr(host))
		if err != nil {
			t.Fatal(err)
		}
		wctx, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { cl.WatchX509Context(wctx, r); close(done) }()
		t.Cleanup(func() { stop(); <-done; cl.Close() })
		c.Await("a stream", 20*time.Second, func() error {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.got == 0 {
				return fmt.Errorf("none yet: %v", r.last)
			}
			return nil
		})
	}
	c.Host(1).CLI("ca", "revoke", "--service", "web", "--reason", "test", "--yes")
	c.Await("the revoked service gets nothing", 20*time.Second, func() error { return wr.is(codes.PermissionDenied, web.String()+" is revoked") })
	c.Await("its token is not taken", 20*time.Second, func() error {
		if err := judge(); err == nil || !strings.Contains(err.Error(), "the token is not taken: "+web.String()+" is revoked") {
			return fmt.Errorf("got %v", err)
		}
		return nil
	})
	if err := c.Host(2).API.Deregister(ctx, "default", "db"); err != nil {
		t.Fatal(err)
	}
	c.Await("the service that is gone gets nothing", 20*time.Second, func() error { return dr.is(codes.PermissionDenied, "no service of this host claims user") })
}
