package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/mesh"
)

func newCA(g *globals) *cobra.Command {
	return group(&cobra.Command{Use: "ca", Short: "Show and replace the root certificate, export it, and revoke hosts and services"}, nil,
		newCAStatus(g), newCARotate(g), newCABundle(g), newCARevoke(g), newCAFederate(g))
}

func newCAStatus(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:     "status",
		Short:   "Show the root certificates, how far a rotation is, and who is revoked",
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
	if a.Given {
		fmt.Fprintln(w, "It was given: give the next one before, with meshagent ca rotate --intermediate FILE --intermediate-key FILE --root FILE")
	}
	for _, k := range a.TokenKeys {
		fmt.Fprintf(w, "The %s key of tokens is %s\n", clean(k.Role), clean(k.ID))
	}
	due := a.Due.UTC().Format(time.RFC3339)
	switch a.Step {
	case "spread":
		fmt.Fprintf(w, "A rotation is under way: the next root signs once it is on every living host, from %s on\n", due)
	case "retire":
		fmt.Fprintf(w, "A rotation is under way: the old root is accepted until %s\n", due)
	}
	if len(a.Federated) > 0 {
		fmt.Fprintln(w)
		t := newTable(w, "FEDERATED", "KNOWN BY", "SINCE")
		for _, f := range a.Federated {
			t.row(f.TrustDomain, knownBy(&f), f.Since.UTC().Format(time.RFC3339))
		}
		t.flush()
	}
	if len(a.Revoked) > 0 {
		fmt.Fprintln(w)
		t := newTable(w, "REVOKED", "NAME", "SINCE", "REASON")
		for _, r := range a.Revoked {
			t.row(revokedID(r), r.Name, r.Since.UTC().Format(time.RFC3339), r.Reason)
		}
		t.flush()
	}
}

func newCARotate(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the root certificate, or have certificates come from an authority of your own",
		Long: `Makes a new root certificate. It goes to every host first; once every living host has it, and an hour has gone by, it signs, and
certificates under it come with the hosts' usual renewals. The old root is accepted for five more days, the life of two certificates.
No call fails meanwhile. The servers do all of it; by itself a root is replaced at half of its life of ten years. When a new root is
on its way already this says how far it is.

With --intermediate, --intermediate-key and --root certificates come from an authority of your own: from an intermediate that it has
signed, whose key the servers seal. Its root goes the same way, and nothing of it is made by the servers: give the next intermediate
before this one ends; under a root that hosts have already it signs at once. --own returns to a root that the servers make.`,
		Example: "  meshagent ca rotate\n  meshagent ca rotate --intermediate mesh.pem --intermediate-key mesh.key --root root.pem\n  meshagent ca rotate --own",
		Args:    argCount(0, 0),
	}
	out, authority := outputFlag(c), authorityFlags(c)
	own := c.Flags().Bool("own", false, "return from an authority of yours to a root that the servers make")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		in, err := authority()
		if err != nil {
			return err
		}
		if *own {
			if in != nil {
				return usagef("give either --own or --intermediate")
			}
			in = &api.Authority{Own: true}
		}
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			var a api.CA
			if in != nil {
				a, err = c.ReplaceCA(ctx, *in)
			} else {
				a, err = c.RotateCA(ctx)
			}
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), a, func(w io.Writer) { printCA(w, &a) })
		})
	}
	return c
}

// authorityFlags adds the flags that name an authority of the operator's, and returns what reads their files; nil when there are none.
func authorityFlags(c *cobra.Command) func() (*api.Authority, error) {
	cert := c.Flags().String("intermediate", "", "file of an intermediate certificate (PEM), with what stands between it and the root behind it")
	key := c.Flags().String("intermediate-key", "", "file of its key (PEM), not encrypted: servers seal it")
	root := c.Flags().String("root", "", "file of the root certificate (PEM) that hosts are to accept")
	return func() (*api.Authority, error) {
		if *cert == "" && *key == "" && *root == "" {
			return nil, nil
		}
		if *cert == "" || *key == "" || *root == "" {
			return nil, usagef("--intermediate, --intermediate-key and --root belong together: give all three")
		}
		var in api.Authority
		for _, f := range []struct {
			into *string
			name string
		}{{&in.Certificate, *cert}, {&in.Key, *key}, {&in.Root, *root}} {
			b, err := readFile(f.name, nil, 12<<10)
			if err != nil {
				return nil, err
			}
			if *f.into = string(b); len(b) == 0 {
				return nil, fmt.Errorf("%s is empty", f.name)
			}
		}
		return &in, nil
	}
}

func revokedID(r api.Revocation) string {
	if r.Node.IsZero() {
		return r.Service.String()
	}
	return r.Node.String()
}

func newCARevoke(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "revoke --node NAME|ID | --service [NAMESPACE/]ACCOUNT",
		Short: "Make every host refuse a host or a service, though its certificates are good",
		Long: `Every host refuses the host or the service in new connections at once, cuts the connections that it opened, and calls none of its
instances any more. A host is no member from then on, and its key cannot join again; it still knows the gossip key: rotate that too.
A service gets no certificates, wherever it runs. It stays so until it is taken back with --lift.`,
		Example: "  meshagent ca revoke --node host3 --reason 'stolen' && meshagent keyring rotate\n  meshagent ca revoke --service shop/cart\n  meshagent ca revoke --node host3 --lift",
		Args:    argCount(0, 0),
	}
	out, yes := outputFlag(c), yesFlag(c)
	var in api.Revoke
	c.Flags().StringVar(&in.Node, "node", "", "the host, by name or id")
	service := c.Flags().String("service", "", "the service account, default/ without a namespace")
	c.Flags().StringVar(&in.Reason, "reason", "", "for whoever looks later, 256 bytes at most")
	c.Flags().BoolVar(&in.Lift, "lift", false, "take a revocation back: a host may then join again")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if (in.Node == "") == (*service == "") {
			return usagef("give either --node or --service")
		}
		if *service != "" {
			err := g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
				st, err := c.Status(ctx)
				if err == nil {
					in.Service, err = identityOf(st.TrustDomain, *service)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		who := in.Node
		if who == "" {
			who = in.Service.String()
		}
		if err := confirm(cmd, *yes || in.Lift, fmt.Sprintf("Every host refuses %s from now on.", who)); err != nil {
			return err
		}
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			r, err := c.Revoke(ctx, in)
			if err != nil {
				return err
			}
			if *out == asTable && !in.Lift && in.Node != "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "The host still knows the gossip key: meshagent keyring rotate")
			}
			return out.print(cmd.OutOrStdout(), r, func(w io.Writer) {
				did := "revoked"
				if in.Lift {
					did = "no longer revoked"
				}
				fmt.Fprintf(w, "%s %s\n", clean(who), did)
			})
		})
	}
	return c
}

func newCAFederate(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "federate TRUST-DOMAIN --bundle FILE | --remove",
		Short: "Make the roots of another trust domain known to gateways and applications",
		Long: `Gateways with tls mode ISTIO_MUTUAL, calls of hosts outside with that mode, and applications that do mutual TLS themselves with certificates of
the Workload API verify identities of another trust domain, and of no other, by its roots. Given again, new roots take the place of the
old ones: give both while the other side rotates. Hosts of the mesh take each other by this mesh's roots alone. "meshagent ca status" lists
the trust domains.`,
		Example: "  meshagent ca federate other.mesh --bundle other-roots.pem\n  meshagent ca federate other.mesh --bundle other.json\n  meshagent ca federate other.mesh --remove",
		Args:    argCount(1, 1),
	}
	out := outputFlag(c)
	file := c.Flags().String("bundle", "", "file of its root certificates (PEM), or of its bundle of SPIFFE (JSON), which has the keys of its tokens too")
	remove := c.Flags().Bool("remove", false, "forget the trust domain")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if (*file == "") != *remove {
			return usagef("give either --bundle or --remove")
		}
		in := api.Federate{TrustDomain: args[0], Remove: *remove}
		if !*remove {
			b, err := readFile(*file, nil, 32<<10)
			if err != nil {
				return err
			}
			if in.Bundle = string(b); len(b) == 0 {
				return fmt.Errorf("%s is empty", *file)
			}
		}
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			f, err := c.Federate(ctx, in)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), f, func(w io.Writer) {
				if in.Remove {
					fmt.Fprintf(w, "%s is forgotten\n", clean(f.TrustDomain))
				} else {
					fmt.Fprintf(w, "%s is known by %s\n", clean(f.TrustDomain), knownBy(&f))
				}
			})
		})
	}
	return c
}

// knownBy says what speaks for another trust domain.
func knownBy(f *api.Federation) string {
	s := plural(len(f.Roots), "root")
	if f.TokenKeys > 0 {
		s += " and " + plural(f.TokenKeys, "key") + " of tokens"
	}
	return s
}

// identityOf reads [NAMESPACE/]ACCOUNT.
func identityOf(td mesh.TrustDomain, s string) (mesh.Identity, error) {
	namespace, account, ok := strings.Cut(s, "/")
	if !ok {
		namespace, account = mesh.DefaultNamespace, s
	}
	return mesh.WorkloadIdentity(td, namespace, account)
}

func newCABundle(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "export-bundle",
		Short: "Print the root certificates that this host accepts",
		Long: `Prints the root certificates of the mesh, for a program outside of it that checks the certificates of services; as a bundle of SPIFFE also
the keys of their tokens. During a rotation there are two of each. A root signs an hour after it is there, at the earliest, and its certificates come
within a day; a key of tokens, of which there is another one every 45 days, signs after that hour: who judges tokens prints them again
every half hour.`,
		Example: "  meshagent ca export-bundle > mesh-roots.pem\n  meshagent ca export-bundle --format spiffe > mesh.json",
		Args:    argCount(0, 0),
	}
	as := c.Flags().String("format", string(api.PEM), "pem, or spiffe: a bundle of SPIFFE (JSON), as SPIRE and other meshes take it")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		f := api.BundleFormat(*as)
		if f != api.PEM && f != api.SPIFFE {
			return usagef("--format %q: pem and spiffe are possible", *as)
		}
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error { return c.Bundle(ctx, f, cmd.OutOrStdout()) })
	}
	return c
}
