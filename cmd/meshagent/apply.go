package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/mesh"
)

func newApply(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "apply -f FILE|DIR|- ...",
		Short: "Create or change policy",
		Long: `Creates or changes the policies of files: all of them or, when anything is wrong with one, none. Of a directory its .yaml,
.yml and .json files are read, not those of directories in it. What is accepted but without effect is a warning.`,
		Example: `  meshagent apply -f policy.yaml --wait
  meshagent apply -f policies/ --dry-run
  kubectl get virtualservice web -o yaml | meshagent apply -f -`,
		Args: argCount(0, -1),
	}
	files, out := fileFlag(c), outputFlag(c)
	dryRun := c.Flags().Bool("dry-run", false, "say what would be done, and do nothing")
	wait := waitFlags(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		ps, err := readPolicies(append(*files, args...), cmd.InOrStdin())
		if err != nil {
			return err
		}
		a := api.Apply{DryRun: *dryRun}
		for _, p := range ps {
			a.Writes = append(a.Writes, api.Write{Source: string(p.Source)})
		}
		return g.write(cmd, a, *out, wait)
	}
	return c
}

// waiter is how long to wait until policy is live everywhere.
type waiter struct {
	wait bool
	max  time.Duration
}

func waitFlags(c *cobra.Command) *waiter {
	w := new(waiter)
	c.Flags().BoolVar(&w.wait, "wait", false, "wait until every living host applies it, and say how long that took")
	c.Flags().DurationVar(&w.max, "wait-timeout", 30*time.Second, "how long to wait")
	return w
}

// written is what -o json shows of apply and delete.
type written struct {
	api.Applied
	Live *api.Live `json:"live,omitempty"` // with --wait
}

// write changes policy and says what became of it.
func (g *globals) write(cmd *cobra.Command, a api.Apply, out format, wait *waiter) error {
	if wait.max <= 0 {
		return usagef("--wait-timeout %v is no time", wait.max)
	}
	a.RequestID = rand.Text()
	return g.call(cmd, wait.max, func(ctx context.Context, c *api.Client) error {
		start := time.Now()
		var res written
		var err error
		// Under one request id a repeat is harmless, and tells what the first call did.
		for range 3 {
			if res.Applied, err = c.Apply(ctx, a); !errors.Is(err, &api.Error{Code: api.CodeUnknownOutcome}) {
				break
			}
		}
		if err != nil {
			return err
		}
		for _, p := range res.Warnings {
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s: %s\n", clean(p.Subject), indent(strings.TrimSpace(p.Reason+"\n"+p.Hint)))
		}
		if wait.wait && !a.DryRun {
			l, err := live(ctx, c, res.Index, wait.max)
			if err != nil {
				return err
			}
			res.Live = &l
		}
		took := time.Since(start)
		if err := out.print(cmd.OutOrStdout(), res, func(w io.Writer) { res.print(w, a.DryRun, took) }); err != nil {
			return err
		}
		if l := res.Live; l != nil && l.Live < l.Nodes {
			return fmt.Errorf("stored, but live on %d of %d nodes only after %v; not on %s", l.Live, l.Nodes, wait.max, strings.Join(l.Pending, ", "))
		}
		return nil
	})
}

func (res *written) print(w io.Writer, dryRun bool, took time.Duration) {
	would := ""
	if dryRun {
		would = " (dry run)"
	}
	for _, o := range res.Outcomes {
		fmt.Fprintf(w, "%s %s%s\n", show(o.Key), o.What, would)
	}
	if l := res.Live; l != nil && l.Live == l.Nodes {
		fmt.Fprintf(w, "applied on %d of %d nodes in %d ms\n", l.Live, l.Nodes, took.Milliseconds())
	}
}

// live waits until policy of a store index is live on all nodes, max at most.
func live(ctx context.Context, c *api.Client, index uint64, max time.Duration) (api.Live, error) {
	return untilAll(time.Now().Add(max), func(wait time.Duration) (api.Live, bool, error) {
		l, err := c.Live(ctx, index, wait)
		return l, l.Live == l.Nodes, err
	})
}

// show names a policy as people do: virtualservice web, virtualservice shop/web.
func show(k mesh.PolicyKey) string {
	kind := strings.ToLower(k.Kind)
	if k.Namespace == mesh.DefaultNamespace {
		return kind + " " + k.Name
	}
	return kind + " " + k.Namespace + "/" + k.Name
}
