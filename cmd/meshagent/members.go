package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
)

func newMembers(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:     "members",
		Short:   "List the hosts of the mesh",
		Long:    "Lists the hosts of the mesh as this one sees them. POLICY is the index of the store's policy that a host applies.",
		Example: "  meshagent members\n  meshagent members -o json",
		Args:    argCount(0, 0),
	}
	out := outputFlag(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			m, err := c.Members(ctx)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), m, func(w io.Writer) {
				t := newTable(w, "NAME", "STATUS", "ROLE", "ADDRESS", "POLICY", "VERSION", "LOCALITY", "ID")
				for _, n := range m.Members {
					t.row(n.Name, n.Status, role(n.Server), n.Addr, n.PolicyIndex, n.Agent, n.Locality, n.ID)
				}
				t.flush()
			})
		})
	}
	return c
}

func role(server bool) string {
	if server {
		return "server"
	}
	return "client"
}
