package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
)

func newCA(g *globals) *cobra.Command {
	return group(&cobra.Command{Use: "ca", Short: "Show and replace the root certificate, and export it"}, nil,
		newCAStatus(g), newCARotate(g), newCABundle(g))
}

func newCAStatus(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:     "status",
		Short:   "Show the root certificates, and how far a rotation is",
		Long:    "Shows how the certificate authority stands. It asks a server; the roots that this host accepts are in `meshagent status` too.",
		Example: "  meshagent ca status",
		Args:    argCount(0, 0),
	}
	out := outputFlag(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			a, err := c.CA(ctx)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), a, func(w io.Writer) { printCA(w, &a) })
		})
	}
	return c
}

func printCA(w io.Writer, a *api.CA) {
	t := newTable(w, "ROOT", "ROLE", "ENDS IN")
	for _, r := range a.Roots {
		t.row(r.SHA256, r.Role, until(r.NotAfter))
	}
	t.flush()
	fmt.Fprintf(w, "\nBundle %d is on %s\nThe intermediate ends in %s\n", a.Bundle, onHosts(a.Have, a.Nodes, a.Pending), until(a.Intermediate))
	due := a.Due.UTC().Format(time.RFC3339)
	switch a.Step {
	case "spread":
		fmt.Fprintf(w, "A rotation is under way: the next root signs once it is on every living host, from %s on\n", due)
	case "retire":
		fmt.Fprintf(w, "A rotation is under way: the old root is accepted until %s\n", due)
	}
}

func newCARotate(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the root certificate",
		Long: `Makes a new root certificate. It goes to every host first; once every living host has it, and an hour has gone by, it signs, and
certificates under it come with the hosts' usual renewals. The old root is accepted for two more days, the life of two certificates.
No call fails meanwhile. The servers do all of it; by itself a root is replaced at half of its life of ten years. When a new root is
on its way already this says how far it is.`,
		Example: "  meshagent ca rotate",
		Args:    argCount(0, 0),
	}
	out := outputFlag(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			a, err := c.RotateCA(ctx)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), a, func(w io.Writer) { printCA(w, &a) })
		})
	}
	return c
}

func newCABundle(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "export-bundle",
		Short: "Print the root certificates that this host accepts, as PEM",
		Long: `Prints the root certificates of the mesh, for a program outside of it that checks the certificates of services. During a rotation
there are two: print them again then, within a day.`,
		Example: "  meshagent ca export-bundle > mesh-roots.pem",
		Args:    argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error { return c.Bundle(ctx, cmd.OutOrStdout()) })
		},
	}
}
