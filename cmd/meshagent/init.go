package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent"
)

func newInit() *cobra.Command {
	c := &cobra.Command{
		Use:   "init",
		Short: "Found a mesh whose first server is this host",
		Long: `Makes the mesh's trust domain, certificate authority, gossip key, policy store and admin token, and this host its first
server. The admin token is shown this once. Where systemd runs and knows the unit meshagent, it is enabled and started.

With --intermediate, --intermediate-key and --root the certificate authority is not the mesh's own but stands under yours: see
"meshagent ca rotate --help".`,
		Example: `  meshagent init --trust-domain example.mesh
  meshagent init --trust-domain example.mesh -o json > founded.json   # holds the admin token
  meshagent init --trust-domain example.mesh --intermediate mesh.pem --intermediate-key mesh.key --root root.pem`,
		Args: argCount(0, 0),
	}
	config, unit, out := configFlag(c), unitFlag(c), outputFlag(c)
	td := c.Flags().String("trust-domain", "", "name of the mesh in every identity, such as example.mesh; it cannot be changed later")
	authority := authorityFlags(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if *td == "" {
			return usagef("give the mesh a name with --trust-domain, such as example.mesh")
		}
		cfg, err := agent.LoadConfig(*config)
		if err != nil {
			return err
		}
		in, err := authority()
		if err != nil {
			return err
		}
		f, err := agent.Init(cmd.Context(), cfg, *td, in)
		if err != nil {
			return err
		}
		err = out.print(cmd.OutOrStdout(), f, func(w io.Writer) {
			fmt.Fprintf(w, "This host is the first server of the mesh %s.\n\n", f.TrustDomain)
			fmt.Fprintf(w, "Node          %s\n", f.Node)
			fmt.Fprintf(w, "Admin token   %s\n", f.AdminToken)
			fmt.Fprintf(w, "              shown this once: programs change things with it over http://%s\n\n", cfg.API.Address)
			fmt.Fprintf(w, "Within 15 minutes, on the next host:\n  meshagent join %s\n", f.JoinToken)
			fmt.Fprint(w, "For more hosts:\n  meshagent token create             # a client\n")
			fmt.Fprint(w, "  meshagent token create --server    # a server: have three or five\n")
		})
		if err != nil {
			return err
		}
		return startAgent(cmd, *unit, *config)
	}
	return c
}
