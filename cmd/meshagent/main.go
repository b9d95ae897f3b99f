// Package main is the command meshagent, one file per verb. A verb talks to the host's agent through agent/api; init, join and
// validate need no agent, svid asks its Workload API, and agent is one.
//
// What a verb found goes to standard output, everything else to standard error. The exit code is 0 when it did what was asked,
// 2 when it was asked wrongly, 1 otherwise.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
)

// version is set by the linker: see the Makefile.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends at once
	os.Exit(execute(ctx, newRoot()))
}

// execute runs the command line and returns the exit code.
func execute(ctx context.Context, root *cobra.Command) int {
	c, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(c.ErrOrStderr(), "%s: %s\n", c.CommandPath(), clean(err.Error()))
	if _, ok := errors.AsType[usageError](err); ok {
		fmt.Fprintf(c.ErrOrStderr(), "See: %s --help\n", c.CommandPath())
		return 2
	}
	return 1
}

// usageError is an error in how a verb was called.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// argCount takes min to max arguments; max below 0 is no limit.
func argCount(min, max int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if n := len(args); n < min || max >= 0 && n > max {
			return usagef("wrong number of arguments (%d): write %s", n, c.UseLine())
		}
		return nil
	}
}

// group gives c its children. Without one of them it does what alone says, or shows its help when that is nil.
func group(c *cobra.Command, alone func(c *cobra.Command) error, children ...*cobra.Command) *cobra.Command {
	c.AddCommand(children...)
	c.Args = cobra.ArbitraryArgs
	c.SuggestionsMinimumDistance = 2
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			if alone == nil {
				return c.Help()
			}
			return alone(c)
		}
		near := ""
		if s := c.SuggestionsFor(args[0]); len(s) > 0 {
			near = ": did you mean " + strings.Join(s, " or ") + "?"
		}
		return usagef("unknown command %q%s", args[0], near)
	}
	return c
}

func newRoot() *cobra.Command {
	g := new(globals)
	c := &cobra.Command{
		Use:   "meshagent",
		Short: "A service mesh for virtual machines and bare metal",
		Long: `A service mesh for virtual machines and bare metal: names, mutual TLS and Istio's policy for the services of every host.

The first host founds a mesh, the others join it, and policy is applied from any of them.`,
		Example: `  meshagent init --trust-domain example.mesh
  meshagent join TOKEN
  meshagent apply -f policy.yaml --wait`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version,
	}
	c.CompletionOptions.DisableDefaultCmd = true // there is one of ours
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	g.flags(c)
	return group(c, nil, newAgent(), newInit(), newJoin(), newLeave(g), newToken(g), newAPIToken(g), newWhoami(g), newLogin(g), newLogout(g), newAudit(), newKeyring(g), newCA(g), newCapture(g), newMembers(g), newServices(g), newApply(g), newGet(g), newDelete(g),
		newStatus(g), newDNS(g), newSVID(), newSnapshot(g), newValidate(), newDiff(g), newAnalyze(g), newExplain(g), newVersion(), newCompletion(), newDemo())
}

// readToken reads a token from a file, from stdin when the file is "-".
func readToken(file string, stdin io.Reader) (string, error) {
	b, err := readFile(file, stdin, 8<<10)
	if err != nil {
		return "", err
	}
	t := strings.TrimSpace(string(b))
	if t == "" || strings.ContainsAny(t, " \t\r\n") {
		return "", fmt.Errorf("%s: one line with a token and nothing else is needed", nameOf(file))
	}
	return t, nil
}

// callTime is how long one call of the API may take. The agent gives up on its servers before.
const callTime = time.Minute

// call calls the API within callTime and extra.
func (g *globals) call(cmd *cobra.Command, extra time.Duration, f func(ctx context.Context, c *api.Client) error) error {
	c, err := g.client(cmd.Context())
	if err != nil {
		return err
	}
	d := callTime + extra
	ctx, cancel := context.WithTimeoutCause(cmd.Context(), d, fmt.Errorf("the agent gave no answer within %v: its log may say why", d))
	defer cancel()
	return f(ctx, c)
}
