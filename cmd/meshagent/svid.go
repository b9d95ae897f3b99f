package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// defaultWorkloadSocket is where the documentation puts the Workload API.
const defaultWorkloadSocket = "unix:///run/meshagent/workload.sock"

// svidTime is how long a first certificate may take. The agent gives up on its servers before.
const svidTime = 30 * time.Second

// svid is what is shown of an X.509-SVID.
type svid struct {
	Identity  string    `json:"identity"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	Roots     int       `json:"roots"`
}

// jwtSVID is what is shown of a JWT-SVID.
type jwtSVID struct {
	Identity string    `json:"identity"`
	Audience []string  `json:"audience"`
	Expires  time.Time `json:"expires"`
	Token    string    `json:"token"`
}

// svidFlags are those of the verb.
type svidFlags struct {
	socket, dir, then string
	watch             bool
	audience          []string
	out               *format
}

func newSVID() *cobra.Command {
	var f svidFlags
	c := &cobra.Command{
		Use:   "svid",
		Short: "Get the certificate of the service that this command runs as, or a token of it",
		Long: `Asks the Workload API of this host, as any application with a library of SPIFFE does, for the certificate of the service to which
this process belongs, by its systemd unit or its user. For applications that read certificates from files it can write them, and keep
them fresh: run it with --write and --watch as a unit beside the application's, and name that unit under callers too.

With --audience it prints a token (JWT-SVID) in its place, which says to those that are named who has it, for five minutes: to what
certificates do not reach, such as a secrets store behind a proxy. Who sees it can use it.`,
		Example: `  meshagent svid
  curl -H "Authorization: Bearer $(meshagent svid --audience vault)" https://vault.example.com/v1/auth/jwt/login
  meshagent svid --write /run/ledger --watch --then 'systemctl reload ledger'`,
		Args: argCount(0, 0),
	}
	c.Flags().StringVar(&f.socket, "socket", "", "of the Workload API, a path or unix:///PATH; $SPIFFE_ENDPOINT_SOCKET or "+defaultWorkloadSocket+" without it")
	c.Flags().StringVar(&f.dir, "write", "", "directory for svid.pem, svid.key and bundle.pem, which only their owner reads")
	c.Flags().BoolVar(&f.watch, "watch", false, "go on, and write each renewal and each change of the roots")
	c.Flags().StringVar(&f.then, "then", "", "command for sh that runs whenever the files are written")
	c.Flags().StringArrayVar(&f.audience, "audience", nil, "print a token for this one, and no certificate; may be given more than once")
	f.out = outputFlag(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error { return f.run(cmd) }
	return c
}

func (f *svidFlags) run(cmd *cobra.Command) error {
	if len(f.audience) > 0 && (f.dir != "" || f.watch || f.then != "") {
		return usagef("--audience prints a token: --write, --watch and --then are for certificates")
	}
	if f.dir == "" && (f.watch || f.then != "") {
		return usagef("--watch and --then are for files: give --write DIRECTORY too")
	}
	addr := f.socket
	if addr == "" {
		addr = os.Getenv("SPIFFE_ENDPOINT_SOCKET")
	}
	if addr == "" {
		addr = defaultWorkloadSocket
	}
	if filepath.IsAbs(addr) {
		addr = "unix://" + addr
	}
	if err := workloadapi.ValidateAddress(addr); err != nil {
		return usagef("socket %q: %v: write a path, or unix:///PATH", addr, err)
	}
	if !f.watch {
		ctx, cancel := context.WithTimeout(cmd.Context(), svidTime)
		defer cancel()
		if len(f.audience) > 0 {
			return f.token(ctx, cmd, addr)
		}
		c, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr(addr))
		if err != nil {
			return svidError(addr, err)
		}
		return f.take(cmd, c)
	}
	c, err := workloadapi.New(cmd.Context(), workloadapi.WithAddr(addr))
	if err != nil {
		return svidError(addr, err)
	}
	defer c.Close()
	err = c.WatchX509Context(cmd.Context(), &svidWatcher{flags: f, cmd: cmd, addr: addr})
	if cmd.Context().Err() != nil {
		return nil // it was asked to end
	}
	return svidError(addr, err)
}

// token shows a token.
func (f *svidFlags) token(ctx context.Context, cmd *cobra.Command, addr string) error {
	t, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: f.audience[0], ExtraAudiences: f.audience[1:]}, workloadapi.WithAddr(addr))
	if err != nil {
		return svidError(addr, err)
	}
	v := jwtSVID{t.ID.String(), t.Audience, t.Expiry, t.Marshal()}
	return f.out.print(cmd.OutOrStdout(), v, func(w io.Writer) { fmt.Fprintln(w, v.Token) })
}

// svidError says why there is no certificate, and no token, in words of this host.
func svidError(addr string, err error) error {
	s, ok := status.FromError(err)
	switch {
	case !ok:
		return err
	case s.Code() == codes.Unavailable && strings.Contains(s.Message(), "dial unix"), s.Code() == codes.DeadlineExceeded:
		return fmt.Errorf("no Workload API answers at %s: is workloadAPI.socket set in agent.yaml, and the agent running? (%s)", addr, s.Message())
	default:
		return fmt.Errorf("%s", s.Message())
	}
}

// take shows or writes what came.
func (f *svidFlags) take(cmd *cobra.Command, c *workloadapi.X509Context) error {
	own := c.DefaultSVID()
	bundle, ok := c.Bundles.Get(own.ID.TrustDomain())
	if !ok {
		return fmt.Errorf("the agent gave no roots of %s", own.ID.TrustDomain())
	}
	leaf := own.Certificates[0]
	v := svid{own.ID.String(), leaf.NotBefore, leaf.NotAfter, len(bundle.X509Authorities())}
	if f.dir != "" {
		chain, key, err := own.Marshal()
		if err != nil {
			return err
		}
		for _, file := range []struct {
			name string
			text []byte
		}{{"svid.key", key}, {"svid.pem", chain}, {"bundle.pem", pemOf(bundle.X509Authorities())}} {
			if _, err := writeWhole(filepath.Join(f.dir, file.name), func(w io.Writer) error { _, err := w.Write(file.text); return err }); err != nil {
				return err
			}
		}
	}
	err := f.out.print(cmd.OutOrStdout(), v, func(w io.Writer) {
		fmt.Fprintf(w, "%s until %s, with %s\n", v.Identity, v.NotAfter.UTC().Format(time.RFC3339), plural(v.Roots, "root"))
	})
	if err != nil || f.then == "" {
		return err
	}
	then := exec.CommandContext(cmd.Context(), "sh", "-c", f.then)
	then.Stdout, then.Stderr = cmd.ErrOrStderr(), cmd.ErrOrStderr()
	if err := then.Run(); err != nil {
		return fmt.Errorf("--then: %w", err)
	}
	return nil
}

func pemOf(certs []*x509.Certificate) (out []byte) {
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// svidWatcher writes what comes, and goes on when something is wrong.
type svidWatcher struct {
	flags *svidFlags
	cmd   *cobra.Command
	addr  string

	mu   sync.Mutex // guards said
	said string     // what was wrong last
}

// OnX509ContextUpdate takes what came.
func (w *svidWatcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	w.say(w.flags.take(w.cmd, c))
}

// OnX509ContextWatchError says it; go-spiffe asks again.
func (w *svidWatcher) OnX509ContextWatchError(err error) { w.say(svidError(w.addr, err)) }

// say says what is wrong, once.
func (w *svidWatcher) say(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.cmd.Context().Err() != nil: // it was asked to end
	case err == nil:
		w.said = ""
	case err.Error() != w.said:
		w.said = err.Error()
		fmt.Fprintf(w.cmd.ErrOrStderr(), "%s: %s\n", w.cmd.CommandPath(), clean(w.said))
	}
}
