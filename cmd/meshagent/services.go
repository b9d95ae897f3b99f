package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/mesh"
)

func newServices(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "services",
		Short: "List the services of the mesh; show and change those of this host",
		Long:  "Lists the services of the mesh. USABLE counts the instances that get calls now.",
		Example: `  meshagent services
  meshagent services -o json
  meshagent services show web`,
	}
	out := outputFlag(c)
	list := func(cmd *cobra.Command) error {
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			s, _, err := c.Services(ctx, 0)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), s, func(w io.Writer) {
				t := newTable(w, "NAMESPACE", "NAME", "PORTS", "PROTOCOL", "USABLE")
				for _, x := range s.Services {
					t.row(cmp.Or(x.Name.Namespace(), "(outside)"), x.Name.Name(), ports(x.Ports), x.Protocol, fmt.Sprintf("%d of %d", x.Usable, x.Total))
				}
				t.flush()
			})
		})
	}
	return group(c, list, newServicesShow(g), newServicesLocal(g), newServicesRegister(g), newServicesDeregister(g),
		newServicesMaintenance(g), newServicesTTL(g))
}

func namespaceFlag(c *cobra.Command) *string {
	return c.Flags().StringP("namespace", "n", mesh.DefaultNamespace, "namespace")
}

func ports(ps []uint16) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(ps), "[]"), " ", ",")
}

func newServicesShow(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:     "show NAME",
		Short:   "Show a service with its instances on all hosts",
		Example: "  meshagent services show web\n  meshagent services show web -n shop\n  meshagent services show web.shop.service.mesh",
		Args:    argCount(1, 1),
	}
	out, ns := outputFlag(c), namespaceFlag(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		name, ok := mesh.ParseHost(args[0], *ns)
		outside, err := mesh.ParseExternal(args[0])
		if !ok && err != nil {
			return usagef("%q is not the name of a service", args[0])
		}
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			s, err := showService(ctx, c, name, outside)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), s, func(w io.Writer) {
				fmt.Fprintf(w, "%s: %s, ports %s, %d of %d instances get calls\n\n", s.Name.FQDN(), s.Protocol, ports(s.Ports), s.Usable, s.Total)
				t := newTable(w, "NODE", "STATUS", "INSTANCE", "ADDRESS", "HEALTH", "WEIGHT", "LABELS")
				for _, i := range s.Instances {
					health := i.Health.String()
					if i.SitsOut != "" {
						health += ", sits out " + i.SitsOut
					}
					t.row(cmp.Or(i.NodeName, "(outside)"), i.NodeStatus, i.ID, i.Dial(), health, i.Weight, labels(i.Labels))
				}
				t.flush()
			})
		})
	}
	return c
}

// showService returns the service of the mesh or, where there is none, the host outside that a name may be.
func showService(ctx context.Context, c *api.Client, name, outside mesh.ServiceName) (s api.Service, err error) {
	if !name.IsZero() {
		s, err = c.Service(ctx, name)
		if e, ok := errors.AsType[*api.Error](err); outside.IsZero() || !ok || e.Code != api.CodeNotFound {
			return s, err
		}
	}
	return c.Service(ctx, outside)
}

func newServicesLocal(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:     "local",
		Short:   "List the services of this host with their checks",
		Example: "  meshagent services local",
		Args:    argCount(0, 0),
	}
	out := outputFlag(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			l, err := c.Local(ctx)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), l, func(w io.Writer) { printLocals(w, l) })
		})
	}
	return c
}

func printLocals(w io.Writer, l api.Locals) {
	checks := 0
	t := newTable(w, "SERVICE", "ID", "ADDRESS", "HEALTH", "MAINTENANCE", "FROM")
	for _, s := range l.Services {
		t.row(s.Service, s.ID, s.Address, s.Health, s.Maintenance, s.Source)
		checks += len(s.Checks)
	}
	t.flush()
	if checks > 0 {
		fmt.Fprintln(w)
		t = newTable(w, "SERVICE", "ID", "CHECK", "HEALTH", "OUTPUT")
		for _, s := range l.Services {
			for _, k := range s.Checks {
				t.row(s.Service, s.ID, k.Name, k.Health, k.Output)
			}
		}
		t.flush()
	}
	if len(l.Problems) > 0 {
		fmt.Fprintln(w, "\nNot taken:")
		problems(w, l.Problems)
	}
}

func newServicesRegister(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "register -f FILE",
		Short: "Define a service of this host",
		Long: `Defines a service that runs on this host, as a file in services.d would (docs/services.md). It is kept until it is
deregistered, also over a restart of the agent.`,
		Example: "  meshagent services register -f web.yaml\n  echo '{name: web, port: 8080, protocol: http}' | meshagent services register -f -",
		Args:    argCount(0, 0),
	}
	file, out := c.Flags().StringP("file", "f", "", "definition, YAML or JSON; - for standard input"), outputFlag(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if *file == "" {
			return usagef("give a file with -f")
		}
		b, err := readFile(*file, cmd.InOrStdin(), api.MaxBody)
		if err != nil {
			return err
		}
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			l, err := c.Register(ctx, b)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), l, func(w io.Writer) { fmt.Fprintf(w, "service %s registered with the id %s\n", l.Service, l.ID) })
		})
	}
	return c
}

func newServicesDeregister(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:     "deregister ID",
		Short:   "Remove a service of this host that was registered by command or API",
		Example: "  meshagent services deregister web",
		Args:    argCount(1, 1),
	}
	ns := namespaceFlag(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			if err := c.Deregister(ctx, *ns, args[0]); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "service %s deregistered\n", args[0])
			return nil
		})
	}
	return c
}

func newServicesMaintenance(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:     "maintenance ID on|off",
		Short:   "Take a service of this host out of balancing, or back",
		Long:    "Takes a service of this host out of balancing everywhere, or back. It stays so over restarts.",
		Example: "  meshagent services maintenance web on --reason 'new disk'\n  meshagent services maintenance web off",
		Args:    argCount(2, 2),
	}
	ns, reason := namespaceFlag(c), c.Flags().String("reason", "", "why, for other operators")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if args[1] != "on" && args[1] != "off" {
			return usagef("%q is neither on nor off", args[1])
		}
		m := api.Maintenance{On: args[1] == "on", Reason: *reason}
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			if err := c.SetMaintenance(ctx, *ns, args[0], m); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "maintenance of %s is %s\n", args[0], args[1])
			return nil
		})
	}
	return c
}

func newServicesTTL(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:     "ttl ID CHECK passing|warning|critical",
		Short:   "Give an application's word for its ttl check",
		Example: "  meshagent services ttl web alive passing\n  meshagent services ttl web alive critical --note 'queue is full'",
		Args:    argCount(3, 3),
	}
	ns, note := namespaceFlag(c), c.Flags().String("note", "", "what the application has to say")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		t := api.TTL{Output: *note}
		if err := t.Health.UnmarshalText([]byte(args[2])); err != nil || t.Health == mesh.Maintenance {
			return usagef("%q is not one of passing, warning, critical", args[2])
		}
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			if err := c.UpdateTTL(ctx, *ns, args[0], args[1], t); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "check %s of %s is %s\n", args[1], args[0], t.Health)
			return nil
		})
	}
	return c
}
