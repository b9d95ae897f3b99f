package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// findings is what analyze found.
type findings struct {
	Findings []policy.Finding `json:"findings"`
	Errors   int              `json:"errors"`
	Warnings int              `json:"warnings"`
}

func newAnalyze(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "analyze [-f FILE|DIR|- ...]",
		Short: "Say what is wrong with policy that is valid",
		Long: `Looks for what is wrong between policies that are each valid, and between them and the services of the mesh: hosts, subsets and
ports that are not there, rules that no request can reach, selectors that select nothing. docs/analyze.md explains each code.

Without files it looks at the mesh as it is. With files it looks at them alone, without an agent; with --mesh as well, at the mesh as it
would be once they are applied.`,
		Example: "  meshagent analyze\n  meshagent analyze -f policies/\n  meshagent analyze -f canary.yaml --mesh -o json",
		Args:    argCount(0, -1),
	}
	files, out := fileFlag(c), outputFlag(c)
	live := c.Flags().Bool("mesh", false, "with files: as if they were applied to the mesh")
	strict := c.Flags().Bool("strict", false, "warnings are errors")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		names := append(*files, args...)
		var ps []mesh.Policy
		var err error
		if len(names) > 0 {
			if ps, err = readPolicies(names, cmd.InOrStdin()); err != nil {
				return err
			}
		}
		var td mesh.TrustDomain
		var services map[mesh.ServiceName]*mesh.Service
		if len(names) == 0 || *live {
			err = g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
				ps, td, services, err = withMesh(ctx, c, ps)
				return err
			})
			if err != nil {
				return err
			}
		} else {
			for i := range ps {
				ps[i].Created = uint64(i + 1) // as if applied in this order
			}
		}
		f := findings{Findings: append([]policy.Finding{}, policy.Analyze(td, ps, services)...)} // never null
		for _, x := range f.Findings {
			switch x.Level {
			case policy.Error:
				f.Errors++
			case policy.Warning:
				f.Warnings++
			}
		}
		if err := out.print(cmd.OutOrStdout(), f, func(w io.Writer) { printFindings(w, f, len(ps)) }); err != nil {
			return err
		}
		if n := f.Errors; n > 0 || *strict && f.Warnings > 0 {
			return errors.New(plural(n, "error") + ", " + plural(f.Warnings, "warning"))
		}
		return nil
	}
	return c
}

func printFindings(w io.Writer, f findings, n int) {
	for _, x := range f.Findings {
		subject := show(x.Key)
		if x.Path != "" {
			subject += ": " + x.Path
		}
		fmt.Fprintf(w, "%s %s (%s): %s\n", x.Level, x.Code, clean(subject), indent(x.Reason))
		if x.Hint != "" {
			fmt.Fprintf(w, "    %s\n", indent(x.Hint))
		}
	}
	if len(f.Findings) == 0 {
		fmt.Fprintf(w, "nothing is wrong with %s\n", plural(n, "resource"))
	}
}

// withMesh returns the policies of the mesh as they would be once those of files are applied, and its services.
func withMesh(ctx context.Context, c *api.Client, files []mesh.Policy) ([]mesh.Policy, mesh.TrustDomain, map[mesh.ServiceName]*mesh.Service, error) {
	var none mesh.TrustDomain
	stored, td, err := policies(ctx, c)
	if err != nil {
		return nil, none, nil, err
	}
	all := map[mesh.PolicyKey]mesh.Policy{}
	young := uint64(0)
	for _, p := range stored {
		all[p.PolicyKey], young = p, max(young, p.Created)
	}
	for i, p := range files {
		p.Created = young + uint64(i) + 1
		if old, ok := all[p.PolicyKey]; ok {
			p.Created = old.Created // an update keeps its age
		}
		all[p.PolicyKey] = p
	}
	list, _, err := c.Services(ctx, 0)
	if err != nil {
		return nil, none, nil, err
	}
	services := map[mesh.ServiceName]*mesh.Service{}
	for _, s := range list.Services {
		full, err := service(ctx, c, s.Name)
		if err != nil {
			return nil, none, nil, err
		}
		if full != nil {
			services[s.Name] = &full.Service
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b mesh.Policy) int { return a.PolicyKey.Compare(b.PolicyKey) }), td, services, nil
}

// policies returns all policies as this host has them, and the mesh's trust domain.
func policies(ctx context.Context, c *api.Client) (out []mesh.Policy, td mesh.TrustDomain, err error) {
	st, err := c.Status(ctx)
	if err != nil {
		return nil, td, err
	}
	ps, err := c.Policies(ctx, "", "", api.Stale)
	if err != nil {
		return nil, td, err
	}
	for _, p := range ps.Policies {
		out = append(out, mesh.Policy{PolicyKey: p.PolicyKey, APIVersion: p.APIVersion, Source: []byte(p.Source), Created: p.Created, Modified: p.Modified})
	}
	return out, st.TrustDomain, nil
}

// liveService is a service and what the API adds to its instances, which have the same indices.
type liveService struct {
	mesh.Service
	live []api.Instance
}

// service returns a service with its instances; nil when no host runs it.
func service(ctx context.Context, c *api.Client, name mesh.ServiceName) (*liveService, error) {
	s, err := c.Service(ctx, name)
	if e, ok := errors.AsType[*api.Error](err); ok && e.Code == api.CodeNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := &liveService{Service: mesh.Service{Name: s.Name}, live: s.Instances}
	for i := range s.Instances {
		out.Instances = append(out.Instances, &s.Instances[i].Instance)
	}
	return out, nil
}
