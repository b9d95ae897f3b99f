package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/capture"
)

func newCapture(g *globals) *cobra.Command {
	return group(&cobra.Command{Use: "capture", Short: "Lead calls of addresses that ServiceEntries declare to the agent"}, nil,
		newCaptureList(g), newCaptureRun(g), newCaptureUninstall())
}

func newCaptureList(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:     "list",
		Short:   "Show the addresses whose calls are led to the agent where `meshagent capture run` runs",
		Example: "  meshagent capture list",
		Args:    argCount(0, 0),
	}
	out := outputFlag(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			a, err := c.Capture(ctx)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), a, func(w io.Writer) {
				t := newTable(w, "ADDRESS", "SERVICE", "LEADS TO")
				for _, x := range a.Targets {
					t.row(x.Address.String(), x.Service, x.To.String())
				}
				t.flush()
				if len(a.Targets) == 0 {
					fmt.Fprintln(w, "no ServiceEntry declares an address to capture")
				}
			})
		})
	}
	return c
}

func newCaptureRun(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Lead calls of these addresses to the agent until it is ended",
		Long: `Has the kernel lead connections that programs of this host open to the addresses of "meshagent capture list" to the agent, by one table
of nftables, "inet meshagent", which it removes when it is ended. The agent's own connections, those that come from outside, and all others
go their own way; so do all of them when the agent does not answer. It needs CAP_NET_ADMIN and nft (package nftables), and is meant for
meshagent-capture.service.`,
		Example: "  meshagent capture run",
		Args:    argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client(cmd.Context())
			if err != nil {
				return err
			}
			r := capture.Runner{Nft: capture.Nft, Log: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)), Ask: func(ctx context.Context) (capture.Set, error) {
				a, err := c.Capture(ctx)
				s := capture.Set{User: a.User}
				for _, t := range a.Targets {
					s.Targets = append(s.Targets, capture.Target{From: t.Address, To: t.To})
				}
				return s, err
			}}
			return r.Run(cmd.Context())
		},
	}
}

func newCaptureUninstall() *cobra.Command {
	return &cobra.Command{
		Use:     "uninstall",
		Short:   "Remove the rules that `meshagent capture run` left, if there are any",
		Example: "  meshagent capture uninstall",
		Args:    argCount(0, 0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return capture.Uninstall(cmd.Context()) },
	}
}
