package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
)

func newKeyring(g *globals) *cobra.Command {
	return group(&cobra.Command{Use: "keyring", Short: "Show and replace the key that gossip is encrypted with"}, nil,
		newKeyringStatus(g), newKeyringRotate(g))
}

func newKeyringStatus(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:     "status",
		Short:   "Show the keys of gossip by name, and which hosts lack them",
		Long:    "Shows the keys of gossip as this host knows them. The name of a key is the beginning of a hash; keys are never shown.",
		Example: "  meshagent keyring status",
		Args:    argCount(0, 0),
	}
	out := outputFlag(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			k, err := c.Keyring(ctx, 0, 0)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), k, func(w io.Writer) { printKeyring(w, &k) })
		})
	}
	return c
}

func printKeyring(w io.Writer, k *api.Keyring) {
	t := newTable(w, "KEY", "USE")
	for _, x := range k.Keys {
		use := "decrypts"
		if x.Primary {
			use = "encrypts and decrypts"
		}
		t.row(x.ID, use)
	}
	t.flush()
	fmt.Fprintf(w, "\nVersion %d is on %s\n", k.Version, onHosts(k.Have, k.Nodes, k.Pending))
	if k.Step != "" {
		fmt.Fprintf(w, "A rotation is under way, which ends with version %d\n", k.Final)
	}
}

// keyringStep says what a version of the keyring does, so many versions before the last of its rotation.
func keyringStep(left uint64) string {
	switch left {
	case 2:
		return "new key installed"
	case 1:
		return "new key encrypts"
	}
	return "old key removed"
}

// onHosts counts the hosts, and names those that lack something.
func onHosts(have, all int, pending []string) string {
	s := fmt.Sprintf("%d of %d hosts", have, all)
	if len(pending) > 0 {
		s += "; not " + clean(strings.Join(pending, ", "))
	}
	return s
}

func newKeyringRotate(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the key that gossip is encrypted with",
		Long: `Makes a new key and, step by step, installs it on every host, encrypts with it, and removes the old one. Each step waits until
every living host has done the one before; nothing of gossip is lost. Hosts that are off get the new key when they come back. The
servers finish a rotation that was begun, whoever waits for it; when one is under way, it is that one that is waited for.`,
		Example: "  meshagent keyring rotate\n  meshagent keyring rotate --wait=false",
		Args:    argCount(0, 0),
	}
	out := outputFlag(c)
	wait := c.Flags().Bool("wait", true, "wait until it is done, and say how far it is")
	most := c.Flags().Duration("wait-timeout", 2*time.Minute, "how long to wait")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if *most <= 0 {
			return usagef("--wait-timeout %v is no time", *most)
		}
		return g.call(cmd, *most, func(ctx context.Context, c *api.Client) error {
			start := time.Now()
			k, err := c.RotateKeyring(ctx)
			if err != nil {
				return err
			}
			if !*wait {
				return out.print(cmd.OutOrStdout(), k, func(w io.Writer) { printKeyring(w, &k) })
			}
			for version, final := k.Version, k.Final; version <= final; version++ {
				k, err = untilAll(start.Add(*most), func(d time.Duration) (api.Keyring, bool, error) {
					k, err := c.Keyring(ctx, version, d)
					return k, k.Have == k.Nodes, err
				})
				if err != nil {
					return err
				}
				if *out == asTable {
					fmt.Fprintf(cmd.ErrOrStderr(), "%s on %s\n", keyringStep(final-version), onHosts(k.Have, k.Nodes, k.Pending))
				}
				if k.Have < k.Nodes {
					return fmt.Errorf("not done after %v: the rotation goes on by itself once the hosts that lack the keyring answer or end; `meshagent keyring status` says how far it is", *most)
				}
			}
			took := time.Since(start)
			return out.print(cmd.OutOrStdout(), k, func(w io.Writer) {
				fmt.Fprintf(w, "key %s on %d of %d hosts after %d ms\n", k.Keys[0].ID, k.Have, k.Nodes, took.Milliseconds())
			})
		})
	}
	return c
}

// untilAll asks, in calls that wait as long as the API lets them, until all hosts have something or the time is up.
func untilAll[T any](end time.Time, ask func(wait time.Duration) (v T, all bool, err error)) (T, error) {
	for {
		left := time.Until(end)
		v, all, err := ask(min(left, api.MaxWait))
		if err != nil || all || left <= api.MaxWait {
			return v, err
		}
	}
}
