package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
)

// snapshotTime is what a snapshot may take beyond callTime.
const snapshotTime = 30 * time.Minute

func newSnapshot(g *globals) *cobra.Command {
	return group(&cobra.Command{Use: "snapshot", Short: "Save and restore what the servers keep"}, nil, newSnapshotSave(g), newSnapshotRestore(g))
}

func newSnapshotSave(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "save FILE|-",
		Short: "Save the store of the servers to a file",
		Long: `Saves policy, tokens, trust bundle and the sealed keys of the certificate authority to a file that only its owner reads.
The seal key of a server (seal.key in its data directory) is not in it: keep one as well, in another place. On a server only.`,
		Example: "  meshagent snapshot save mesh-2026-01-31.snap",
		Args:    argCount(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.call(cmd, snapshotTime, func(ctx context.Context, c *api.Client) error {
				if args[0] == "-" {
					return c.Backup(ctx, cmd.OutOrStdout())
				}
				n, err := writeWhole(args[0], func(w io.Writer) error { return c.Backup(ctx, w) })
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %d bytes saved\n", args[0], n)
				return nil
			})
		},
	}
}

// writeWhole writes a file of mode 0600 that is there as a whole or not at all.
func writeWhole(name string, write func(w io.Writer) error) (size int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	defer f.Close()
	if err := write(f); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if err := f.Close(); err != nil {
		return 0, err
	}
	return st.Size(), os.Rename(f.Name(), name)
}

func newSnapshotRestore(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "restore FILE|-",
		Short: "Replace the store of the servers by a saved one",
		Long: `Replaces all policy, tokens and keys of the certificate authority by what was saved, on all servers. What was written since is
lost. On a server only.`,
		Example: "  meshagent snapshot restore mesh-2026-01-31.snap",
		Args:    argCount(1, 1),
	}
	yes := yesFlag(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		in := cmd.InOrStdin()
		if args[0] == "-" {
			if !*yes {
				return usagef("--yes is needed when the snapshot comes from standard input")
			}
		} else {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			if err := confirm(cmd, *yes, "All that the servers keep is replaced by "+args[0]+"."); err != nil {
				return err
			}
			in = f
		}
		return g.call(cmd, snapshotTime, func(ctx context.Context, c *api.Client) error {
			if err := c.Restore(ctx, in); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s restored\n", nameOf(args[0]))
			return nil
		})
	}
	return c
}
