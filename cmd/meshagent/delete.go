package main

import (
	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

func newDelete(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:               "delete KIND NAME... | delete -f FILE|DIR|-",
		Short:             "Delete policy",
		Long:              `Deletes policies by kind and name, or those that files name: all of them or, when one is not there, none.`,
		Example:           "  meshagent delete virtualservice web\n  meshagent delete vs web -n shop --wait\n  meshagent delete -f policy.yaml",
		Args:              argCount(0, -1),
		ValidArgsFunction: completeKind,
	}
	files, out, ns := fileFlag(c), outputFlag(c), namespaceFlag(c)
	dryRun := c.Flags().Bool("dry-run", false, "say what would be done, and do nothing")
	wait := waitFlags(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		a := api.Apply{DryRun: *dryRun}
		switch {
		case (len(*files) > 0) == (len(args) > 0), len(args) == 1:
			return usagef("give either a kind and names, or files with -f")
		case len(args) > 0:
			group, kind, ok := policy.FindKind(args[0])
			if !ok {
				return noKind(args[0], "")
			}
			for _, name := range args[1:] {
				a.Writes = append(a.Writes, api.Write{Delete: &mesh.PolicyKey{Group: group, Kind: kind, Namespace: *ns, Name: name}})
			}
		default:
			ps, err := readPolicies(*files, cmd.InOrStdin())
			if err != nil {
				return err
			}
			for _, p := range ps {
				a.Writes = append(a.Writes, api.Write{Delete: &p.PolicyKey})
			}
		}
		return g.write(cmd, a, *out, wait)
	}
	return c
}
