package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent"
)

func newAgent() *cobra.Command {
	c := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of this host",
		Long: `Runs the agent of this host until it is told to end (SIGTERM, SIGINT) or leaves the mesh. The host must be a member:
see init and join. systemd usually starts it. Logs go to standard error.

SIGHUP makes it hand over to the program that is installed now, without a call that fails or waits: systemctl reload meshagent.`,
		Example: "  meshagent agent\n  meshagent agent --config /tmp/host1/agent.yaml",
		Args:    argCount(0, 0),
	}
	config := configFlag(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := agent.LoadConfig(*config)
		if err != nil {
			return err
		}
		a := agent.New(cfg, version, os.Stderr)
		hup := make(chan os.Signal, 1)
		signal.Notify(hup, syscall.SIGHUP)
		go func() {
			for range hup {
				a.HandOver()
			}
		}()
		return a.Run(cmd.Context())
	}
	return c
}

func configFlag(c *cobra.Command) *string {
	return c.Flags().String("config", agent.DefaultFile, "configuration of the agent; the default file may be missing")
}
