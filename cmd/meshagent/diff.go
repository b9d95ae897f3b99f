package main

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// difference is a policy that apply would change.
type difference struct {
	Key  mesh.PolicyKey `json:"key"`
	What string         `json:"what"` // created, updated
	Diff string         `json:"diff"` // unified, of the resource as it is stored and as the file has it
}

func newDiff(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "diff -f FILE|DIR|- ...",
		Short: "Show what apply would change",
		Long: `Compares the policies of files with those of the mesh, text with text, as a patch. Those of the mesh that no file has are not looked
at: apply leaves them as they are. The exit code is 1 when apply would change something.`,
		Example: "  meshagent diff -f policies/",
		Args:    argCount(0, -1),
	}
	files, out := fileFlag(c), outputFlag(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		ps, err := readPolicies(append(*files, args...), cmd.InOrStdin())
		if err != nil {
			return err
		}
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			stored, err := c.Policies(ctx, "", "", api.Stale)
			if err != nil {
				return err
			}
			var found struct {
				Differences []difference `json:"differences"`
			}
			if found.Differences, err = differences(stored.Policies, ps); err != nil {
				return err
			}
			err = out.print(cmd.OutOrStdout(), found, func(w io.Writer) {
				for _, d := range found.Differences {
					io.WriteString(w, clean(d.Diff))
				}
			})
			if n := len(found.Differences); err == nil && n > 0 {
				err = errors.New(plural(n, "resource") + " would change")
			}
			return err
		})
	}
	return c
}

// differences compares what is stored with what files have. Of a Secret nobody reads the values back, and so they are not compared.
func differences(stored []api.Policy, files []mesh.Policy) ([]difference, error) {
	out := []difference{}
	old := map[mesh.PolicyKey]string{}
	for _, p := range stored {
		old[p.PolicyKey] = p.Source
	}
	for _, p := range files {
		if p.Kind == policy.SecretKind {
			source, _, err := policy.Redact(p)
			if err != nil {
				return nil, err
			}
			p.Source = source
		}
		was, ok := old[p.PolicyKey]
		if ok && was == string(p.Source) {
			continue
		}
		d := difference{Key: p.PolicyKey, What: "updated"}
		key := strings.TrimPrefix(p.PolicyKey.String(), "/") // a Secret has no group
		from := "mesh/" + key
		if !ok {
			d.What, from = "created", "/dev/null"
		}
		d.Diff = string(diff.Diff(from, lines(was), "files/"+key, lines(string(p.Source))))
		out = append(out, d)
	}
	return out, nil
}

// lines ends a text with a line's end.
func lines(s string) []byte {
	if s != "" && !strings.HasSuffix(s, "\n") {
		s += "\n"
	}
	return []byte(s)
}
