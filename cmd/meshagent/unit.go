package main

import (
	"fmt"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent"
)

const unitName = "meshagent.service"

func unitFlag(c *cobra.Command) *bool {
	return c.Flags().Bool("systemd", true, "enable and start the unit meshagent, where there is one")
}

// startAgent enables and starts the agent's unit where systemd runs and knows it, and says what to run where not. The unit
// reads the default configuration: another one is no matter of it.
func startAgent(cmd *cobra.Command, unit bool, config string) error {
	say := cmd.ErrOrStderr()
	if !unit || config != agent.DefaultFile || !unitKnown(cmd) {
		how := "meshagent agent"
		if config != agent.DefaultFile {
			how += " --config " + config
		}
		fmt.Fprintf(say, "Next, start the agent: %s\n", how)
		return nil
	}
	b, err := exec.CommandContext(cmd.Context(), "systemctl", "--no-ask-password", "enable", "--now", unitName).CombinedOutput()
	if err != nil {
		return fmt.Errorf("the host is a member, but its agent was not started: systemctl enable --now %s: %w\n%s", unitName, err, b)
	}
	fmt.Fprintln(say, "The agent runs: meshagent status")
	return nil
}

func unitKnown(cmd *cobra.Command) bool {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return false
	}
	return exec.CommandContext(cmd.Context(), "systemctl", "cat", unitName).Run() == nil
}
