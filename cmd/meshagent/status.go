package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/mesh"
)

func newStatus(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:     "status",
		Short:   "Show how this host's agent stands, and what to look at",
		Example: "  meshagent status\n  meshagent status --check && echo all is well",
		Args:    argCount(0, 0),
	}
	out := outputFlag(c)
	check := c.Flags().Bool("check", false, "exit with 1 when the agent is not ready or has problems")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			s, err := c.Status(ctx)
			if err != nil {
				return err
			}
			if err := out.print(cmd.OutOrStdout(), s, func(w io.Writer) { printStatus(w, &s) }); err != nil || !*check {
				return err
			}
			if !s.Ready {
				return fmt.Errorf("the agent is not ready: it waits for %s", strings.Join(s.Pending, ", "))
			}
			if n := len(s.Problems); n > 0 {
				return fmt.Errorf("%s", plural(n, "problem"))
			}
			return nil
		})
	}
	return c
}

func printStatus(w io.Writer, s *api.Status) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(head, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", head, clean(fmt.Sprintf(format, args...)))
	}
	line("Node", "%s, %s, %s", s.Name, s.Address, s.Node)
	line("Mesh", "%s, as a %s", s.TrustDomain, role(s.Server))
	state := "ready"
	if !s.Ready {
		state = "waits for " + strings.Join(s.Pending, ", ")
	}
	line("Agent", "%s, version %s, up %s", state, s.Version, short(time.Since(s.Started)))
	var members []string
	for _, st := range []mesh.Status{mesh.Alive, mesh.Suspect, mesh.Failed, mesh.Left} {
		if n := s.Members[st.String()]; n > 0 {
			members = append(members, fmt.Sprintf("%d %s", n, st))
		}
	}
	line("Members", "%s", strings.Join(members, ", "))
	line("Services", "%d", s.Services)
	line("Policies", "%d, of store index %d", s.Policies, s.StoreIndex)
	if st := s.Store; st != nil {
		more := ""
		if st.ReadOnly {
			more = ", read only: the disk is almost full"
		}
		voters := 0
		for _, p := range st.Peers {
			if p.Voter {
				voters++
			}
		}
		line("Store", "%s in term %d, applied %d of %d, %d of %d servers vote%s", st.State, st.Term, st.Applied, st.Commit, voters, len(st.Peers), more)
	}
	for i, r := range s.Roots {
		line(first(i, "Roots"), "%s, for %s", r.SHA256, until(r.NotAfter))
	}
	for i, c := range s.Certificates {
		left := "none yet"
		if !c.NotAfter.IsZero() {
			left = "for " + until(c.NotAfter)
		}
		if c.Error != "" {
			left += "; not renewed: " + c.Error
		}
		line(first(i, "Certificates"), "%s, %s", c.Identity, left)
	}
	if len(s.Problems) == 0 {
		line("Problems", "none")
	}
	t.Flush()
	if len(s.Problems) > 0 {
		fmt.Fprintf(w, "\n%s:\n", plural(len(s.Problems), "problem"))
		problems(w, s.Problems)
	}
}

// first is the head of a block's first line.
func first(i int, head string) string {
	if i > 0 {
		return ""
	}
	return head
}
