package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
)

func newLeave(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "leave",
		Short: "Make this host leave its mesh",
		Long: `The host says good-bye to the others, forgets its membership, and its agent ends. Its services are no longer found; a
server gives up its part of the store first. To come back it needs a new token.`,
		Example: "  meshagent leave\n  meshagent leave --yes",
		Args:    argCount(0, 0),
	}
	yes := yesFlag(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		var s api.Status
		err := g.call(cmd, 0, func(ctx context.Context, c *api.Client) (err error) {
			s, err = c.Status(ctx)
			return err
		})
		if err != nil {
			return err
		}
		if err := confirm(cmd, *yes, fmt.Sprintf("%s leaves the mesh %s and its agent ends.", s.Name, s.TrustDomain)); err != nil {
			return err
		}
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			if err := c.Leave(ctx); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s has left the mesh %s\n", s.Name, s.TrustDomain)
			return nil
		})
	}
	return c
}

func yesFlag(c *cobra.Command) *bool {
	return c.Flags().BoolP("yes", "y", false, "do not ask")
}

// confirm asks whether to go on.
func confirm(cmd *cobra.Command, yes bool, what string) error {
	if yes {
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s Go on? [y/N] ", what)
	answer, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 64)).ReadString('\n')
	if a := strings.ToLower(strings.TrimSpace(answer)); a == "y" || a == "yes" {
		return nil
	}
	if err != nil {
		fmt.Fprintln(cmd.ErrOrStderr())
	}
	return errors.New("nothing was done: answer y, or give --yes")
}
