package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

func newValidate() *cobra.Command {
	c := &cobra.Command{
		Use:   "validate -f FILE|DIR|- ...",
		Short: "Check policy, configuration and services without an agent",
		Long: `Checks files as apply and agent do, without an agent and without a change. Of policies it warns also of what is valid each
by itself and does not fit together, such as a route to a subset that none of the files defines.`,
		Example: "  meshagent validate -f policies/ --strict\n  meshagent validate --config /etc/meshagent/agent.yaml --services /etc/meshagent/services.d",
		Args:    argCount(0, -1),
	}
	files := fileFlag(c)
	config := c.Flags().String("config", "", "configuration of an agent")
	services := c.Flags().String("services", "", "directory of definitions of services")
	strict := c.Flags().Bool("strict", false, "warnings are errors")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		names := append(*files, args...)
		if len(names) == 0 && *config == "" && *services == "" {
			return usagef("give files of policies with -f, the configuration of an agent with --config, or a directory with --services")
		}
		var errs []error
		if *config != "" {
			if _, err := agent.LoadConfig(*config); err != nil {
				errs = append(errs, err)
			} else {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is valid\n", *config)
			}
		}
		if *services != "" {
			if n, err := agent.CheckServices(*services); err != nil {
				errs = append(errs, err)
			} else {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is valid: %s\n", *services, plural(n, "service"))
			}
		}
		if len(names) > 0 {
			errs = append(errs, validatePolicies(cmd, names, *strict))
		}
		return errors.Join(errs...)
	}
	return c
}

func validatePolicies(cmd *cobra.Command, names []string, strict bool) error {
	ps, err := readPolicies(names, cmd.InOrStdin())
	if err != nil {
		return err
	}
	for i := range ps {
		ps[i].Created = uint64(i + 1) // as if applied in this order
	}
	n := 0
	for _, f := range policy.Analyze(mesh.TrustDomain{}, ps, nil) {
		if f.Level != policy.Info {
			n++
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s: %s\n", show(f.Key), indent(f.Reason))
		}
	}
	if n > 0 && strict {
		return fmt.Errorf("%s", plural(n, "warning"))
	}
	verb := "are"
	if len(ps) == 1 {
		verb = "is"
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s %s valid\n", plural(len(ps), "resource"), verb)
	return nil
}
