package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent"
)

func newJoin() *cobra.Command {
	c := &cobra.Command{
		Use:   "join TOKEN|-",
		Short: "Make this host a member of a mesh",
		Long: `Makes this host a member with a token of ` + "`meshagent token create`" + `. The token's secret is sent only to a server whose
certificates end in the mesh's own authority, which the token names. A command line is seen by all users of a host: - reads the
token from standard input. Where systemd runs and knows the unit meshagent, it is enabled and started.`,
		Example: "  meshagent join mesh1.client.…\n  ssh server meshagent token create | meshagent join -",
		Args:    argCount(0, 1),
	}
	config, unit, out := configFlag(c), unitFlag(c), outputFlag(c)
	tokenFile := c.Flags().String("token-file", "", "file with the join token")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if (len(args) == 1) == (*tokenFile != "") {
			return usagef("give either a token, or - to read it from standard input, or --token-file")
		}
		cfg, err := agent.LoadConfig(*config)
		if err != nil {
			return err
		}
		var token string
		switch {
		case *tokenFile != "":
			token, err = readToken(*tokenFile, nil)
		case args[0] == "-":
			token, err = readToken("-", cmd.InOrStdin())
		default:
			token = args[0]
		}
		if err != nil {
			return err
		}
		m, err := agent.Join(cmd.Context(), cfg, token)
		if err != nil {
			return err
		}
		j := joined{m.TrustDomain.String(), len(m.Server) > 0}
		err = out.print(cmd.OutOrStdout(), j, func(w io.Writer) {
			fmt.Fprintf(w, "This host is a %s of the mesh %s.\n", role(j.Server), j.TrustDomain)
		})
		if err != nil {
			return err
		}
		return startAgent(cmd, *unit, *config)
	}
	return c
}

// joined is what -o json shows.
type joined struct {
	TrustDomain string `json:"trustDomain"`
	Server      bool   `json:"server"`
}
