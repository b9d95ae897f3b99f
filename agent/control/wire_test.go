package control

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/meshport"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/raftstore"
	"github.com/meshagent/meshagent/raftstore/state"
)

// sentinels is every error that a Service can answer with. The test below finds those that lack here.
var sentinels = map[string]error{
	"control.ErrInvalid": ErrInvalid, "control.ErrTokenUnknown": ErrTokenUnknown, "control.ErrTokenExpired": ErrTokenExpired,
	"control.ErrUnauthorized": ErrUnauthorized, "control.ErrLogin": ErrLogin, "control.ErrForbidden": ErrForbidden, "control.ErrNotFound": ErrNotFound,
	"control.ErrConflict": ErrConflict, "control.ErrBusy": ErrBusy, "raftstore.ErrNoLeader": raftstore.ErrNoLeader,
	"raftstore.ErrUnknownOutcome": raftstore.ErrUnknownOutcome, "raftstore.ErrReadOnly": raftstore.ErrReadOnly,
	"raftstore.ErrRefused": raftstore.ErrRefused, "state.ErrFuture": state.ErrFuture, "state.ErrCorrupt": state.ErrCorrupt,
	"ca.ErrRequest": ca.ErrRequest, "ca.ErrNoCA": ca.ErrNoCA, "ca.ErrRotating": ca.ErrRotating, "ca.ErrGiven": ca.ErrGiven,
}

// notOnTheWire is the others, with the reason.
var notOnTheWire = map[string]string{
	"control.ErrNoServer": "a client finds it out itself",
	"ca.ErrConflict":      "the CA repeats it in its next round",
	"ca.ErrPeer":          "a handshake fails with it",
}

// TestErrorsSurviveTheWire holds the table of codes to the errors that there are, and sends each to a client.
func TestErrorsSurviveTheWire(t *testing.T) {
	found := 0
	for pkg, dir := range map[string]string{"control": ".", "raftstore": "../../raftstore", "state": "../../raftstore/state", "ca": "../../ca"} {
		files, _ := filepath.Glob(dir + "/*.go")
		for _, name := range files {
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
			if err != nil || strings.HasSuffix(name, "_test.go") {
				continue
			}
			for _, d := range f.Decls {
				g, ok := d.(*ast.GenDecl)
				if !ok || g.Tok != token.VAR {
					continue
				}
				for _, s := range g.Specs {
					for _, n := range s.(*ast.ValueSpec).Names {
						if !strings.HasPrefix(n.Name, "Err") {
							continue
						}
						found++
						key := pkg + "." + n.Name
						if sentinels[key] == nil && notOnTheWire[key] == "" {
							t.Errorf("%s has no code on the wire, and no reason not to have one", key)
						}
					}
				}
			}
		}
	}
	if found != len(sentinels)+len(notOnTheWire) {
		t.Errorf("%d errors in the packages, %d in this test", found, len(sentinels)+len(notOnTheWire))
	}
	if len(codes) != len(sentinels) {
		t.Errorf("%d codes for %d errors", len(codes), len(sentinels))
	}
	seen := map[string]bool{}
	for _, c := range codes {
		if seen[c.code] || c.status < 400 {
			t.Errorf("code %s: twice, or status %d", c.code, c.status)
		}
		seen[c.code] = true
	}
	for name, is := range sentinels {
		rec := httptest.NewRecorder()
		sent := fmt.Errorf("policy %q: %w (at last)", "x", is)
		writeError(rec, sent)
		got := readError(rec.Code, rec.Body.Bytes())
		says(t, name, got, is, sent.Error())
		for other, o := range sentinels {
			if other != name && errors.Is(got, o) {
				t.Errorf("%s arrives as %s too", name, other)
			}
		}
	}
	rec := httptest.NewRecorder()
	writeError(rec, errors.New("a mishap"))
	if got := readError(rec.Code, rec.Body.Bytes()); rec.Code != 500 || got.Error() != "a mishap" {
		t.Errorf("%d, %v", rec.Code, got)
	}
	rec = httptest.NewRecorder()
	writeError(rec, errors.New(strings.Repeat("ü", maxDetail)))
	if got := readError(rec.Code, rec.Body.Bytes()); len(got.Error()) > maxDetail+4 || !strings.HasSuffix(got.Error(), "ü ...") {
		t.Errorf("%d bytes", len(got.Error()))
	}
	if got := readError(502, []byte("<html>")); got.Error() != "server answered 502 without saying why: does it have the same version?" {
		t.Error(got)
	}
}

// TestRequestsAreStrictAndBounded sends what no client of ours would.
func TestRequestsAreStrictAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		h := w.join(9, f.founded.Join)
		stranger := strangerHTTP(w)
		large := func(most int) string { return `{"csr":"` + strings.Repeat("A", most) + `"}` }
		for name, c := range map[string]struct {
			client       *http.Client
			method, body string
			text         string
		}{
			"unknown field":   {h.client.http, "watch", `{"aftr":1}`, `invalid: request: json: unknown field "aftr"`},
			"field within":    {h.client.http, "apply", `{"writes":[{"source":"","delte":1}]}`, `invalid: request: json: unknown field "delte"`},
			"wrong type":      {h.client.http, "watch", `{"after":"1"}`, "invalid: request: json: cannot unmarshal string into Go struct field watchIn.after of type uint64"},
			"negative":        {h.client.http, "watch", `{"after":-1}`, "invalid: request: json: cannot unmarshal number -1 into Go struct field watchIn.after of type uint64"},
			"trailing":        {h.client.http, "watch", `{"after":1} {}`, "invalid: request: something follows its end"},
			"empty":           {h.client.http, "watch", ``, "invalid: request: EOF"},
			"cut":             {h.client.http, "watch", `{"after":`, "invalid: request: unexpected EOF"},
			"deep":            {h.client.http, "watch", strings.Repeat("[", 20000), "invalid: request: invalid character '[' exceeded max depth"},
			"bad identity":    {h.client.http, "issue", `{"identity":"spiffe://test.mesh/../x","csr":""}`, `invalid: request: invalid name: identity "spiffe://test.mesh/../x": has an empty or dot segment`},
			"large":           {h.client.http, "issue", large(maxSmall), "invalid: request: more than 65536 bytes"},
			"large apply":     {h.client.http, "apply", large(maxApply), "invalid: request: more than 8388608 bytes"},
			"unknown method":  {h.client.http, "reboot", `{}`, "server answered 404 without saying why: does it have the same version?"},
			"stranger: join":  {stranger, "join", `{"tokenId":"a","secert":"b"}`, `invalid: request: json: unknown field "secert"`},
			"stranger: renew": {stranger, "renew", `{"csr":""}`, "invalid: certificate request: asn1: syntax error: sequence truncated"},
			"stranger: large": {stranger, "join", large(maxSmall), "invalid: request: more than 65536 bytes"},
			"stranger: apply": {stranger, "apply", `{}`, "server answered 404 without saying why: does it have the same version?"},
			"stranger: raft":  {stranger, "raft/txn", `{}`, "server answered 404 without saying why: does it have the same version?"},
		} {
			if _, err := post(t.Context(), c.client, f.addr, c.method, "", []byte(c.body)); err == nil || err.Error() != c.text {
				t.Errorf("%s:\n got %v\nwant %s", name, err, c.text)
			}
		}
		// Who sends his body byte by byte is cut off in time.
		for name, client := range map[string]*http.Client{"a member": h.client.http, "a stranger": stranger} {
			start := time.Now()
			body := make(slow)
			r, _ := http.NewRequest(http.MethodPost, "https://"+f.addr.String()+"/v1/renew", body)
			if name == "a member" {
				r.URL.Path = "/v1/issue"
			}
			resp, err := client.Do(r)
			close(body)
			if err == nil {
				resp.Body.Close()
			}
			if took := time.Since(start); took > bodyTime+10*time.Second || err == nil && resp.StatusCode != 400 {
				t.Errorf("%s who writes slowly: %v, %v after %v", name, resp, err, took)
			}
		}
	})
}

// slow is a body that gives a byte each second until it is closed.
type slow chan struct{}

func (s slow) Read(b []byte) (int, error) {
	select {
	case <-s:
		return 0, io.ErrClosedPipe
	case <-time.After(time.Second):
		b[0] = ' '
		return 1, nil
	}
}

// strangerHTTP is a client without a certificate that trusts everybody.
func strangerHTTP(w *world) *http.Client {
	return meshport.NewHTTP(&http.Transport{DisableKeepAlives: true, DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return meshport.DialTLS(ctx, w.dial(netip.MustParseAddr("10.0.0.77")), addr,
			&tls.Config{InsecureSkipVerify: true, NextProtos: []string{meshport.Join}})
	}})
}

func TestRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		h := w.join(9, f.founded.Join)
		// A host asks another, which need not be a server.
		got, err := NewRecords(f.mp).FetchRecords(t.Context(), h.addr, []mesh.NodeID{f.id, h.id})
		if want := fmt.Sprint([]mesh.NodeID{f.id, h.id}); err != nil || len(got) != 1 || string(got[0]) != want {
			t.Errorf("%q, %v; want %s", got, err, want)
		}
		if _, err := NewRecords(f.serverPort()).FetchRecords(t.Context(), h.addr, nil); err != nil {
			t.Errorf("a server: %v", err)
		}
		rec := httptest.NewRecorder()
		RecordsHandler(nil)(withDeadline{rec}, httptest.NewRequest(http.MethodPost, "/v1/records", strings.NewReader("{}")))
		if err := readError(rec.Code, rec.Body.Bytes()); !errors.Is(err, ErrForbidden) || err.Error() != `not allowed: "" is not a host` {
			t.Errorf("nobody: %v", err)
		}
		_, err = post(t.Context(), f.mp.HTTP(mesh.NodeAgent), h.addr, "records", "", []byte(`{"want":["x"]}`))
		says(t, "bad id", err, ErrInvalid, `invalid: request: invalid name: node id "x": 26 characters of a-z and 2-7 are needed`)
		w.kill(h, true)
		h.stop()
		if _, err := NewRecords(f.mp).FetchRecords(t.Context(), h.addr, nil); err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("a host that is away: %v", err)
		}
	})
}

// withDeadline is a recorder that takes deadlines, as a connection does.
type withDeadline struct{ http.ResponseWriter }

func (withDeadline) SetReadDeadline(time.Time) error { return nil }

// TestStoreIsForServers is SECURITY 53: whoever may call the store of a server can write anything, so only servers may.
func TestStoreIsForServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		h := w.join(9, f.founded.Join)
		txn := state.EncodeTxn(state.Txn{RequestID: "x", Ops: []state.Op{{Kind: state.Put, Table: tableAPIToken, Key: hashSecret("mine"), Value: []byte("{}")}}})
		for _, method := range []string{"txn", "get", "list", "addserver", "removeserver", "transfer", "restore", "status", "result", "index", "else"} {
			_, err := post(t.Context(), h.mp.HTTP(mesh.Server), f.addr, "raft/"+method, "", txn)
			says(t, method+" as a host", err, ErrForbidden, fmt.Sprintf("not allowed: %q is not a server", h.node()))
		}
		if _, err := h.client.Authorize(t.Context(), Operator{Token: "mine"}); !errors.Is(err, ErrUnauthorized) {
			t.Errorf("the token that it tried to write: %v", err)
		}
		// A server's certificate alone is not enough: the host must have joined as one, and still be here.
		chain, err := f.ca.Issue(t.Context(), ca.Request{CSR: h.csr(), Identity: h.server()})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.leaves.SetNode(h.server(), chain.Chain); err != nil {
			t.Fatal(err)
		}
		_, err = post(t.Context(), h.serverPort().HTTP(mesh.Server), f.addr, "raft/txn", "", txn)
		says(t, "as a server that it is not", err, ErrForbidden, fmt.Sprintf("not allowed: host %s did not join as a server", h.id))
		if err := h.client.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err = post(t.Context(), h.serverPort().HTTP(mesh.Server), f.addr, "raft/txn", "", txn)
		says(t, "after leaving", err, ErrForbidden, fmt.Sprintf("not allowed: host %s is not a member any more: join it again with a new token", h.id))

		// A workload's certificate does not get as far as a handler, on no protocol.
		id, _ := mesh.WorkloadIdentity(td, "default", "web")
		go f.leaves.Certificate(t.Context(), id) // wanted
		time.Sleep(time.Second)
		for _, p := range []struct{ alpn, name string }{{meshport.RPC, meshport.ServerName}, {meshport.RPC, meshport.NodeName}, {meshport.Raft, meshport.ServerName}} {
			cfg, err := f.leaves.ClientConfigFunc(t.Context(), id, meshport.Accept(td, mesh.Server, mesh.NodeAgent), p.name, p.alpn)
			if err != nil {
				t.Fatal(err)
			}
			c, err := meshport.DialTLS(t.Context(), w.dial(h.addr.Addr()), f.addr.String(), cfg)
			if err == nil { // the client's half is done; the server's answer comes with the first read
				c.SetDeadline(time.Now().Add(time.Minute))
				go fmt.Fprintf(c, "POST /v1/watch HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
				_, err = c.Read(make([]byte, 1))
				c.Close()
			}
			if err == nil || !strings.Contains(err.Error(), "bad certificate") {
				t.Errorf("%s at %s as a workload: %v", p.alpn, p.name, err)
			}
		}
	})
}

func TestBackupAndRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.found()
		o := Operator{Local: access.Admin}
		apply := func(ws ...Write) {
			t.Helper()
			if _, _, err := f.service.Apply(t.Context(), o, ws, false, ""); err != nil {
				t.Fatal(err)
			}
		}
		apply(rule("a", "v1"))
		early := w.join(8, w.token(TokenSpec{}))
		var backup, nothing bytes.Buffer
		if err := f.service.Backup(t.Context(), Operator{}, &nothing); !errors.Is(err, ErrUnauthorized) || nothing.Len() > 0 {
			t.Errorf("backup for nobody: %v", err)
		}
		if err := f.service.Backup(t.Context(), f.admin(), &backup); err != nil {
			t.Fatal(err)
		}
		apply(rule("a", "v2"), rule("b", "v1"))
		late := w.join(9, w.token(TokenSpec{}))
		second := w.join(2, w.token(TokenSpec{Server: true}))
		time.Sleep(time.Minute)

		names := func() string {
			ps, _, err := second.service.Policies(t.Context(), second.node(), raftstore.Linearizable)
			if err != nil {
				t.Fatal(err)
			}
			var s []string
			for _, p := range ps {
				s = append(s, p.Name+map[bool]string{true: "1", false: "2"}[strings.Contains(string(p.Source), "- name: v1")])
			}
			return strings.Join(s, " ")
		}
		// What does not belong here changes nothing.
		other := newWorld(t) // of the same name
		g := other.found()
		var foreign bytes.Buffer
		if err := g.service.Backup(t.Context(), o, &foreign); err != nil {
			t.Fatal(err)
		}
		wrongKey := f.service.cfg
		wrongKey.SealKey = other.seal
		wrongName := f.service.cfg
		wrongName.TrustDomain, _ = mesh.ParseTrustDomain("other.mesh")
		sameKey := f.service.cfg // as if the other mesh had this one's seal key
		sameKey.SealKey = other.seal
		for name, c := range map[string]struct {
			service *Service
			o       Operator
			b       []byte
			is      error
			text    string
		}{
			"nobody":       {f.service, Operator{}, backup.Bytes(), ErrUnauthorized, ErrUnauthorized.Error()},
			"cut":          {f.service, o, backup.Bytes()[:backup.Len()-1], state.ErrCorrupt, "corrupt: backup: its SHA-256 is wrong: the file was cut or changed; take another one"},
			"another mesh": {f.service, o, foreign.Bytes(), ErrInvalid, "invalid: backup: CA: its keys cannot be opened: wrong key or damaged: is this server's seal key the one of this mesh?; nothing was changed"},
			"another name": {NewService(wrongName), o, backup.Bytes(), ErrInvalid, "invalid: backup: it is of the mesh test.mesh, this one is other.mesh; nothing was changed"},
			"another root": {NewService(sameKey), o, foreign.Bytes(), ErrInvalid, "invalid: backup: its root certificate was never this mesh's: it is of another mesh of this name; nothing was changed"},
			"wrong key":    {NewService(wrongKey), o, backup.Bytes(), ErrInvalid, "invalid: backup: CA: its keys cannot be opened: wrong key or damaged: is this server's seal key the one of this mesh?; nothing was changed"},
		} {
			err := c.service.Restore(t.Context(), c.o, bytes.NewReader(c.b))
			says(t, name, err, c.is, c.text)
			if n := names(); n != "a2 b1" {
				t.Fatalf("%s: afterwards there are %s", name, n)
			}
		}
		before, err := early.client.Watch(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := second.service.Restore(t.Context(), f.admin(), bytes.NewReader(backup.Bytes())); err != nil {
			t.Fatal(err)
		}
		if n := names(); n != "a1" {
			t.Errorf("after the restore there are %s", n)
		}
		c, err := early.client.Watch(t.Context(), before.Index)
		if err != nil || !c.Full || len(c.Policies) != 1 {
			t.Errorf("an agent that watches hears %+v, %v", c, err)
		}
		// The second server stays one, though the backup does not know it; the host that joined since is out.
		apply(rule("c", "v1"))
		if _, _, err := second.service.Apply(t.Context(), o, []Write{rule("d", "v1")}, false, ""); err != nil {
			t.Errorf("a write through the second server: %v", err)
		}
		if _, err := second.service.Renew(t.Context(), netip.Addr{}, second.csr()); err != nil {
			t.Errorf("its certificates: %v", err)
		}
		if _, err := late.client.Watch(t.Context(), 0); !errors.Is(err, ErrForbidden) {
			t.Errorf("a host that joined after the backup: %v", err)
		}
	})
}

// Every error of a table is found by errors.Is through joined ones; the first line of the table counts.
func TestJoinedErrorsOnTheWire(t *testing.T) {
	rec := httptest.NewRecorder()
	writeError(rec, errors.Join(fmt.Errorf("b: %w", ErrConflict), fmt.Errorf("a: %w", ErrNotFound)))
	got := readError(rec.Code, rec.Body.Bytes())
	if i := slices.IndexFunc(codes, func(c struct {
		code   string
		status int
		err    error
	}) bool {
		return c.err == ErrNotFound
	}); !errors.Is(got, ErrNotFound) || rec.Code != codes[i].status {
		t.Errorf("%d, %v", rec.Code, got)
	}
}
