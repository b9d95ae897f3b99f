package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent"
)

func newAgent() *cobra.Command {
	c := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of this host",
		Long: `Runs the agent of this host until it is told to end (SIGTERM, SIGINT) or leaves the mesh. The host must be a member:
see init and join. systemd usually starts it. Logs go to standard error.`,
		Example: "  meshagent agent\n  meshagent agent --config /tmp/host1/agent.yaml",
		Args:    argCount(0, 0),
	}
	config := configFlag(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := agent.LoadConfig(*config)
		if err != nil {
			return err
		}
		return agent.New(cfg, version, os.Stderr).Run(cmd.Context())
	}
	return c
}

func configFlag(c *cobra.Command) *string {
	return c.Flags().String("config", agent.DefaultFile, "configuration of the agent; the default file may be missing")
}
