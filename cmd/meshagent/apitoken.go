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

func newAPIToken(g *globals) *cobra.Command {
	return group(&cobra.Command{Use: "apitoken", Short: "Make, list and withdraw tokens for the API"}, nil,
		newAPITokenCreate(g), newAPITokenList(g), newAPITokenDelete(g))
}

func newAPITokenCreate(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a token for the API",
		Long: `Makes a token and prints it, alone, on standard output. It is shown this once. NAME says in the audit log who used it. It can do no
more than who makes it.

Roles: viewer sees what is no secret, operator also changes policy, the services of a host and which clients join, admin does everything.
A scope is VERB:RESOURCE, with the verbs read, write and *, and resources such as policies/NAMESPACE/KIND/NAME, of which the end may be
left out and * stands for one part.`,
		Example: `  meshagent apitoken create prometheus --role viewer
  meshagent apitoken create deploy-shop --scope write:policies/shop --scope read:policies --ttl 720h`,
		Args: argCount(1, 1),
	}
	out := outputFlag(c)
	role := c.Flags().String("role", "", "viewer, operator or admin")
	scopes := c.Flags().StringArray("scope", nil, "VERB:RESOURCE, instead of a role; may be given several times")
	ttl := c.Flags().Duration("ttl", 0, "how long the token is good; it does not end without")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if (*role == "") == (len(*scopes) == 0) {
			return usagef("give either --role or --scope")
		}
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			spec := api.APITokenSpec{Name: args[0], Role: *role, Scopes: *scopes}
			if *ttl != 0 {
				spec.TTL = ttl.String()
			}
			t, err := c.CreateAPIToken(ctx, spec)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), t, func(w io.Writer) { fmt.Fprintln(w, t.Token) })
		})
	}
	return c
}

func newAPITokenList(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the tokens for the API, without their secrets",
		Example: "  meshagent apitoken list",
		Args:    argCount(0, 0),
	}
	out := outputFlag(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			ts, err := c.APITokens(ctx)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), ts, func(w io.Writer) {
				t := newTable(w, "ID", "NAME", "MAY", "ENDS IN", "MADE BY")
				for _, x := range ts.Tokens {
					t.row(x.ID, x.Name, may(x.Role, x.Scopes), ends(x.Expires), x.By)
				}
				t.flush()
			})
		})
	}
	return c
}

// may says what a role or else scopes allow.
func may(role string, scopes []string) string {
	if role != "" {
		return role
	}
	return strings.Join(scopes, " ")
}

// ends is how long it is until t, "never" when it is zero.
func ends(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return until(t)
}

func newAPITokenDelete(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "delete ID",
		Short:   "Withdraw a token for the API",
		Example: "  meshagent apitoken delete ID",
		Args:    argCount(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
				if err := c.DeleteAPIToken(ctx, args[0]); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "token %s deleted\n", args[0])
				return nil
			})
		},
	}
}

func newWhoami(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:     "whoami",
		Short:   "Show who you are to the agent, and what you may do",
		Example: "  meshagent whoami",
		Args:    argCount(0, 0),
	}
	out := outputFlag(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			who, err := c.Whoami(ctx)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), who, func(w io.Writer) {
				by := map[string]string{"socket": "at the socket", "certificate": "by certificate", "token": "by token " + who.Token, "login": "by login"}[who.By]
				if who.Token != "" || !who.Ends.IsZero() {
					by += ", which ends in " + ends(who.Ends)
					if who.Ends.IsZero() {
						by = "by token " + who.Token + ", which never ends"
					}
				}
				fmt.Fprintf(w, "%s %s\nMay: %s\n", who.Name, by, may(who.Role, who.Scopes))
			})
		})
	}
	return c
}
