package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/api/apitest"
	"github.com/meshagent/meshagent/mesh"
)

var update = flag.Bool("update", false, "rewrite what the scripts in testdata expect")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"meshagent": main})
}

// TestScripts runs testdata/*.txt, one script for each verb. Beside testscript's own commands there are
//
//	exits CODE COMMAND ARG...    runs a command that must end with this exit code
//	fake [WHAT ARG...]           starts a made-up agent, or changes it: see fakeCmd. HTTPS is its address for operators of other
//	                             hosts, and KEYS has ca.pem, alice.pem and .key of an operator, mallory.pem and .key of nobody
//	workloads [WHAT ARG...]      starts a Workload API, or changes it: see workloadsCmd
//	authority                    writes mesh.pem, mesh.key and root.pem of an authority that an operator has, and other.key
//
// MESHAGENT_ADDR is an address without an agent until fake starts one.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", RequireExplicitExec: true, RequireUniqueNames: true, UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			env.Setenv("MESHAGENT_ADDR", "unix:///nowhere/api.sock")
			env.Setenv("GORACE", "atexit_sleep_ms=0") // with -race each process would wait a second before it ends
			env.Values[fakeKey{}], env.Values[workloadsKey{}] = new(*apitest.Fake), new(*workloads)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exitsCmd, "fake": fakeCmd, "workloads": workloadsCmd, "authority": authorityCmd},
	})
}

func exitsCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARG...")
	}
	code := 0
	err := ts.Exec(args[1], args[2:]...)
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		code = e.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, not %s", code, args[0])
	}
}

type fakeKey struct{}

// fakeCmd starts the made-up agent of apitest, or changes it when there are arguments.
func fakeCmd(ts *testscript.TestScript, neg bool, args []string) {
	f := ts.Value(fakeKey{}).(**apitest.Fake)
	if *f == nil {
		*f = startFake(ts)
	}
	if len(args) == 0 {
		return
	}
	what, args := args[0], args[1:]
	(*f).Update(func(s *apitest.State) {
		switch what {
		case "behind": // NODE...: they take no policy from now on
			s.Behind = args
		case "waits": // TASK...: the agent is not ready
			s.Pending = args
		case "problem": // SUBJECT REASON HINT
			p := api.Problem{Subject: args[0], Reason: args[1], Hint: args[2]}
			s.Status.Problems, s.Problems = append(s.Status.Problems, p), append(s.Problems, p)
		case "check": // NAME: the first service of the host has this check
			s.Locals[0].Checks = []api.Check{{Name: args[0], Output: "no word\x1b[31m yet", Health: mesh.Critical}}
		case "client": // it is no server
			s.Backup, s.Status.Server, s.Status.Store = nil, false, nil
		case "fails": // CODE DETAIL HINT: whatever needs a server
			s.Fail = api.NewError(api.Code(args[0]), args[1], args[2])
		case "retire": // the next root signs
			s.CA.Roots = slices.Clone(s.CA.Roots)
			s.CA.Step, s.CA.Roots[0].Role, s.CA.Roots[1].Role = "retire", "old", "current"
		case "subject": // NAME: who logs in from now on
			(*f).Issuer.Update(func(i *apitest.Issuer) { i.Claims = map[string]any{"sub": args[0]} })
		case "polls": // ANSWER...: what asking for the token of a login is answered with, before it is given
			(*f).Issuer.Update(func(i *apitest.Issuer) { i.Polls = args })
		case "life": // DURATION: of ID tokens
			d, err := time.ParseDuration(args[0])
			ts.Check(err)
			(*f).Issuer.Update(func(i *apitest.Issuer) { i.Life = d })
		case "wrongs": // of nobody
			if w := (*f).Issuer.Wrongs(); len(w) > 0 {
				ts.Fatalf("%q", w)
			}
		case "given": // the root is not the mesh's own, and no rotation is under way
			s.CA.Step, s.CA.Given, s.CA.Roots = "", true, s.CA.Roots[:1]
		case "left": // the host has left
			if !s.Left {
				ts.Fatalf("it has not left")
			}
		default:
			ts.Fatalf("fake does not know %q", what)
		}
	})
}

func authorityCmd(ts *testscript.TestScript, neg bool, args []string) {
	write := func(name, kind string, b []byte, err error) {
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600))
	}
	var keys [3]*ecdsa.PrivateKey
	for i, name := range []string{"", "mesh.key", "other.key"} {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		ts.Check(err)
		if keys[i] = k; name != "" {
			b, err := x509.MarshalPKCS8PrivateKey(k)
			write(name, "PRIVATE KEY", b, err)
		}
	}
	ca := func(name string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(1000 * time.Hour),
			BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	}
	root := ca("root")
	b, err := x509.CreateCertificate(rand.Reader, root, root, keys[0].Public(), keys[0])
	write("root.pem", "CERTIFICATE", b, err)
	b, err = x509.CreateCertificate(rand.Reader, ca("mesh"), root, keys[1].Public(), keys[0])
	write("mesh.pem", "CERTIFICATE", b, err)
}

func startFake(ts *testscript.TestScript) *apitest.Fake {
	dir, err := os.MkdirTemp("", "api") // that of the script may be too long for a socket
	ts.Check(err)
	f, err := apitest.Start(dir)
	ts.Check(err)
	ts.Defer(func() {
		if err := errors.Join(f.Close(), os.RemoveAll(dir)); err != nil {
			ts.Logf("%v", err)
		}
	})
	now := time.Now()
	f.Update(func(s *apitest.State) { // times that are shown the same in the next half hour
		s.Status.Started = now.Add(-50*time.Hour - 30*time.Minute)
		s.Status.Certificates[0].NotAfter = now.Add(50*time.Hour + 30*time.Minute)
		s.Status.Roots[0].NotAfter = now.Add(3650*24*time.Hour + 30*time.Minute)
		s.CA.Roots[0].NotAfter, s.CA.Intermediate = s.Status.Roots[0].NotAfter, s.Status.Certificates[0].NotAfter
		s.Tokens[0].Expires = now.Add(50*time.Hour + 30*time.Minute)
	})
	ts.Setenv("MESHAGENT_ADDR", f.Addr)
	ts.Setenv("HTTP", f.HTTP)
	ts.Setenv("TOKEN", f.Token)
	ts.Setenv("HTTPS", f.HTTPS)
	for name, b := range map[string][]byte{"ca.pem": f.Keys.CA, "alice.pem": f.Keys.Certificate, "alice.key": f.Keys.Key, "mallory.pem": f.Keys.StrangerCert, "mallory.key": f.Keys.StrangerK} {
		ts.Check(os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	ts.Setenv("KEYS", dir)
	return f
}

// TestEveryVerbHasAScript also sees to what each script must show: how the verb is called wrongly, and what -o json gives.
func TestEveryVerbHasAScript(t *testing.T) {
	for _, c := range newRoot().Commands() {
		name := fmt.Sprintf("testdata/%s.txt", c.Name())
		b, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, want := range []struct{ text, why string }{{"exits 2 meshagent " + c.Name(), "wrong flags or arguments"}, {"-o json", "-o json"}} {
			if want.text == "-o json" && c.Flags().Lookup("output") == nil {
				continue
			}
			if !strings.Contains(string(b), want.text) {
				t.Errorf("%s does not try %s", name, want.why)
			}
		}
	}
}
