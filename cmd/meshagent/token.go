package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
)

func newToken(g *globals) *cobra.Command {
	return group(&cobra.Command{Use: "token", Short: "Make, list and withdraw join tokens"}, nil,
		newTokenCreate(g), newTokenList(g), newTokenDelete(g))
}

func newTokenCreate(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "create",
		Short: "Make a token that lets hosts join",
		Long: `Makes a token and prints it, alone, on standard output. It is shown this once. Who has it can join the mesh: carry it as you
would a password.`,
		Example: "  meshagent token create\n  meshagent token create --server --ttl 1h\n  meshagent token create --uses 20 --services 'web,api-*'",
		Args:    argCount(0, 0),
	}
	out := outputFlag(c)
	server := c.Flags().Bool("server", false, "the host becomes a server: it keeps the store and signs certificates")
	ttl := c.Flags().Duration("ttl", 15*time.Minute, "how long the token is good, 720h at most")
	uses := c.Flags().Int("uses", 1, "how many hosts may join with it, 10000 at most")
	services := c.Flags().String("services", "", "services that the hosts may run, such as web,api-*; all without it")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			t, err := c.CreateToken(ctx, api.TokenSpec{Server: *server, TTL: ttl.String(), Uses: *uses, Services: *services})
			if err != nil {
				return err
			}
			if *out == asTable {
				fmt.Fprintf(cmd.ErrOrStderr(), "On the new host, within %s: meshagent join TOKEN\n", short(*ttl))
			}
			return out.print(cmd.OutOrStdout(), t, func(w io.Writer) { fmt.Fprintln(w, t.Token) })
		})
	}
	return c
}

func newTokenList(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the join tokens that are still good",
		Example: "  meshagent token list",
		Args:    argCount(0, 0),
	}
	out := outputFlag(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			ts, err := c.Tokens(ctx)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), ts, func(w io.Writer) {
				t := newTable(w, "ID", "ROLE", "USES LEFT", "EXPIRES IN", "SERVICES")
				for _, x := range ts.Tokens {
					t.row(x.ID, x.Role, x.Uses, until(x.Expires), strings.Join(x.Services, ","))
				}
				t.flush()
			})
		})
	}
	return c
}

func newTokenDelete(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "delete ID",
		Short:   "Withdraw a join token",
		Example: "  meshagent token delete ID",
		Args:    argCount(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
				if err := c.DeleteToken(ctx, args[0]); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "token %s deleted\n", args[0])
				return nil
			})
		},
	}
}
