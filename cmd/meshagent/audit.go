package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent"
	"github.com/meshagent/meshagent/agent/audit"
)

func newAudit() *cobra.Command {
	return group(&cobra.Command{Use: "audit", Short: "Check the log of who changed what"}, nil, newAuditVerify())
}

func newAuditVerify() *cobra.Command {
	c := &cobra.Command{
		Use:   "verify [FILE...]",
		Short: "Check that nothing in the audit log was changed, taken out or put in",
		Long: `Reads the audit log of this host, or the files that are given, the oldest first, and checks that each record follows from the one
before it. It needs no agent. What was cut off the end cannot be seen: keep the number and hash that it prints somewhere else, and look
for that record the next time.`,
		Example: "  meshagent audit verify\n  meshagent audit verify /backup/audit.log.1 /backup/audit.log",
		Args:    argCount(0, -1),
	}
	config := c.Flags().String("config", agent.DefaultFile, "configuration of the agent")
	out := outputFlag(c)
	c.RunE = func(cmd *cobra.Command, files []string) error {
		if len(files) == 0 {
			cfg, err := agent.LoadConfig(*config)
			if err != nil {
				return err
			}
			if files = audit.Files(cfg.API.AuditLog); len(files) == 0 {
				return fmt.Errorf("there is no audit log at %s: is api.auditLog another file, or off?", cfg.API.AuditLog)
			}
		}
		v, err := audit.Verify(files)
		if err != nil {
			if errors.Is(err, os.ErrPermission) {
				return fmt.Errorf("%w: it is for root and the agent's user", err)
			}
			return err
		}
		err = out.print(cmd.OutOrStdout(), v, func(w io.Writer) {
			fmt.Fprintf(w, "%d records, from %d to %d\nHash of the last: %s\n", v.Records, v.First, v.Last, v.Hash)
			for _, t := range v.Torn {
				fmt.Fprintf(w, "%s was torn by a crash, as the next record says\n", t)
			}
		})
		if err == nil && len(v.Problems) > 0 {
			return errors.New(strings.Join(v.Problems, "\n"))
		}
		return err
	}
	return c
}
