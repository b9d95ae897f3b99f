package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
)

func newDNS(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:     "dns NAME [TYPE]",
		Short:   "Ask the agent's DNS, as a program of this host would",
		Long:    "Asks the agent's DNS for the rows of a type, A without one, as a program of this host would.",
		Example: "  meshagent dns web.service.mesh\n  meshagent dns _web._tcp.service.mesh SRV",
		Args:    argCount(1, 2),
	}
	out := outputFlag(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		qtype := "A"
		if len(args) == 2 {
			qtype = strings.ToUpper(args[1])
		}
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			a, err := c.DNS(ctx, args[0], qtype)
			if err != nil {
				return err
			}
			err = out.print(cmd.OutOrStdout(), a, func(w io.Writer) {
				for _, r := range a.Rows {
					fmt.Fprintln(w, clean(r))
				}
			})
			switch {
			case err != nil:
				return err
			case a.Rcode != "NOERROR":
				return fmt.Errorf("%s is answered with %s", args[0], a.Rcode)
			case len(a.Rows) == 0:
				return fmt.Errorf("%s has no row of type %s", args[0], qtype)
			}
			return nil
		})
	}
	return c
}
