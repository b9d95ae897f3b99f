package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/internal/strictyaml"
	"github.com/meshagent/meshagent/mesh/policy"
)

func newGet(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "get KIND|all [NAME]",
		Short: "Show policy",
		Long: `Shows the policies of a kind, or of all kinds. -o yaml gives back what was applied, word for word; with --status
each resource has its status, as kubectl shows it, and no comments.

A stale read comes from this host and needs no server; a linearizable one asks the leader, and sees every write before it.`,
		Example:           "  meshagent get all -A\n  meshagent get virtualservice web -o yaml\n  meshagent get vs -n shop --consistency linearizable",
		Args:              argCount(1, 2),
		ValidArgsFunction: completeKind,
	}
	out, ns := outputFlag(c), namespaceFlag(c)
	all := c.Flags().BoolP("all-namespaces", "A", false, "of all namespaces")
	cons := c.Flags().String("consistency", string(api.Stale), "stale or linearizable")
	status := c.Flags().Bool("status", false, "with -o yaml or json: what became of each policy, too")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		kind, err := kindOf(args[0])
		if err != nil {
			return err
		}
		if *cons != string(api.Stale) && *cons != string(api.Linearizable) {
			return usagef("--consistency %q is neither stale nor linearizable", *cons)
		}
		if *all {
			*ns = ""
		}
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			read := c.Statuses
			if *out != asTable && !*status {
				read = c.Policies
			}
			ps, err := read(ctx, kind, *ns, api.Consistency(*cons))
			if err != nil {
				return err
			}
			if len(args) == 2 {
				ps.Policies = slices.DeleteFunc(ps.Policies, func(p api.Policy) bool { return p.Name != args[1] })
				if len(ps.Policies) == 0 {
					return fmt.Errorf("there is no %s %s%s", args[0], args[1], inNamespace(*ns))
				}
			}
			if *out == asYAML {
				if *status {
					if err := addStatus(ps.Policies); err != nil {
						return err
					}
				}
				return writeSources(cmd.OutOrStdout(), ps.Policies)
			}
			return out.print(cmd.OutOrStdout(), ps, func(w io.Writer) {
				t := newTable(w, "NAMESPACE", "KIND", "NAME", "API VERSION", "CREATED", "MODIFIED", "STATUS")
				for _, p := range ps.Policies {
					t.row(p.Namespace, p.Kind, p.Name, p.APIVersion, p.Created, p.Modified, p.Status.Summary())
				}
				t.flush()
			})
		})
	}
	return c
}

func inNamespace(ns string) string {
	if ns == "" {
		return ""
	}
	return " in namespace " + ns
}

// writeSources writes the sources as they are, with a line of hyphens between two.
func writeSources(w io.Writer, ps []api.Policy) error {
	var b strings.Builder
	for i, p := range ps {
		if i > 0 {
			if !strings.HasSuffix(ps[i-1].Source, "\n") {
				b.WriteByte('\n')
			}
			b.WriteString("---\n")
		}
		b.WriteString(p.Source)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// addStatus writes the status of each policy into its source. A status that it was applied with, as kubectl shows one, goes.
func addStatus(ps []api.Policy) error {
	for i := range ps {
		docs, err := strictyaml.Split("", []byte(ps[i].Source))
		if err != nil {
			return err
		}
		status, err := json.Marshal(ps[i].Status)
		if err != nil {
			return err
		}
		root := docs[0].Root
		if at := slices.Index(root.Keys, "status"); at >= 0 {
			root.Keys, root.Vals = slices.Delete(root.Keys, at, at+1), slices.Delete(root.Vals, at, at+1)
		}
		old := root.JSON()
		text := fmt.Appendf(nil, `%s,"status":%s}`, old[:len(old)-1], status) // every resource has a kind before it
		source, err := strictyaml.Encode(json.RawMessage(text))
		if err != nil {
			return err
		}
		ps[i].Source = string(source)
	}
	return nil
}

// kindOf returns the kind of a name as people type it, "" for all kinds.
func kindOf(s string) (string, error) {
	if strings.EqualFold(s, "all") {
		return "", nil
	}
	_, kind, ok := policy.FindKind(s)
	if !ok {
		return "", noKind(s, ", or all")
	}
	return kind, nil
}

func noKind(s, or string) error {
	return usagef("%q is not a kind of policy: use one of %s%s", s, strings.Join(kindNames(), ", "), or)
}

func kindNames() (out []string) {
	for _, k := range policy.Kinds() {
		_, name, _ := strings.Cut(k, " ")
		out = append(out, strings.ToLower(name))
	}
	return out
}

func completeKind(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return kindNames(), cobra.ShellCompDirectiveNoFileComp
}
