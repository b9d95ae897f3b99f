package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// question is what explain is asked.
type question struct {
	from, to, host string
	port           uint16
	namespace      string
	headers        []string
	user           *policy.User
	method, target string // target is a path with a query; or with gateway a URL
	gateway        string
	client         string // address of the gateway's
}

func newExplain(g *globals) *cobra.Command {
	var q question
	c := &cobra.Command{
		Use:   "explain (--from SERVICE --to SERVICE [METHOD PATH] | --gateway SERVICE METHOD URL)",
		Short: "Say what would become of a call, and why",
		Long: `Works out what would become of a call that is not made: each rule that is asked and why it does not match, the rule that counts, where it
sends the call and in what shares, the instances there with weight and health, retries and time-outs, and for each instance
whether it lets the call in and which policy decides that.

For a service that does not speak HTTP leave out METHOD and PATH: it is about a connection then. With --gateway it is about a request from outside
of the mesh: which server takes it in, whether the gateway lets it pass, and where its rules send it.`,
		Example: `  meshagent explain --from frontend --to my-service GET /x -H 'end-user: jason'
  meshagent explain --from batch.jobs --to db
  meshagent explain --gateway ingressgateway GET https://shop.example.com/x
  meshagent explain --from frontend --to api --port 8080 POST '/orders?dry=1' -o json`,
		Args: argCount(0, 2),
	}
	out, ns := outputFlag(c), namespaceFlag(c)
	user := c.Flags().String("user", "", "file with the claims of the user's token in JSON, or the token; - for standard input")
	c.Flags().StringVar(&q.from, "from", "", "the service that calls, or a SPIFFE ID")
	c.Flags().StringVar(&q.to, "to", "", "the service that is called")
	c.Flags().StringVar(&q.gateway, "gateway", "", "the service of protocol gateway that a request from outside comes to")
	c.Flags().StringVar(&q.client, "client", "", "the address that it comes from")
	c.Flags().Uint16Var(&q.port, "port", 0, "the port that is called; the service's only one without it")
	c.Flags().StringVar(&q.host, "host", "", "the Host of the request, or what the client of TLS asks for; the service's name without it")
	c.Flags().StringArrayVarP(&q.headers, "header", "H", nil, "header of the request, as 'name: value'; again for more")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if q.namespace = *ns; len(args) > 0 {
			q.method, q.target = args[0], "/"
		}
		if len(args) > 1 {
			q.target = args[1]
		}
		if *user != "" {
			b, err := readFile(*user, cmd.InOrStdin(), 64<<10)
			if err != nil {
				return err
			}
			if q.user, err = policy.ParseUser(b); err != nil {
				return fmt.Errorf("%s %w", nameOf(*user), err)
			}
		}
		return g.call(cmd, 0, func(ctx context.Context, c *api.Client) error {
			ask := explain
			if q.gateway != "" {
				ask = explainGateway
			}
			e, names, err := ask(ctx, c, q)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), e, func(w io.Writer) { printExplanation(w, e, names) })
		})
	}
	return c
}

// world is what explaining has asked the agent for.
type world struct {
	ctx    context.Context
	c      *api.Client
	m      *policy.Model
	td     mesh.TrustDomain
	v      policy.View
	names  map[mesh.NodeID]string
	usable map[*mesh.Instance]bool
	out    map[*mesh.Instance]string
}

func newWorld(ctx context.Context, c *api.Client, user *policy.User) (*world, error) {
	ps, td, err := policies(ctx, c)
	if err != nil {
		return nil, err
	}
	w := &world{ctx: ctx, c: c, m: policy.Compile(td, 0, ps), td: td, names: map[mesh.NodeID]string{}, usable: map[*mesh.Instance]bool{}, out: map[*mesh.Instance]string{}}
	w.v = policy.View{Services: map[mesh.ServiceName]*mesh.Service{}, Usable: func(i *mesh.Instance) bool { return w.usable[i] }, User: user,
		SitsOut: func(i *mesh.Instance) string { return w.out[i] }}
	return w, places(ctx, c, &w.v)
}

// learn asks for a service; nil if there is none.
func (w *world) learn(name mesh.ServiceName) (*mesh.Service, error) {
	s, err := service(w.ctx, w.c, name)
	if s == nil || err != nil {
		return nil, err
	}
	for i, x := range s.live {
		w.names[x.Node] = x.NodeName
		w.usable[s.Instances[i]], w.out[s.Instances[i]] = x.Usable, x.SitsOut
	}
	s.Entry = w.m.Entry(name)
	w.v.Services[name] = &s.Service
	return &s.Service, nil
}

// explainGateway is explain for a request from outside.
func explainGateway(ctx context.Context, c *api.Client, q question) (*policy.Explanation, map[mesh.NodeID]string, error) {
	name, ok := mesh.ParseHost(q.gateway, q.namespace)
	switch {
	case !ok:
		return nil, nil, usagef("--gateway %q is not the name of a service", q.gateway)
	case q.from != "" || q.to != "" || q.port != 0 || q.host != "":
		return nil, nil, usagef("with --gateway the URL says host and port, and nobody of the mesh calls: leave out --from, --to, --port and --host")
	case q.method == "":
		return nil, nil, usagef("what comes to the gateway? Write a method and a URL, such as GET https://shop.example.com/x")
	}
	u, err := url.Parse(q.target)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, nil, usagef("%q is no URL, such as https://shop.example.com/x", q.target)
	}
	port := map[string]string{"http": "80", "https": "443"}[u.Scheme]
	number, err := strconv.ParseUint(cmp.Or(u.Port(), port), 10, 16)
	if err != nil {
		return nil, nil, usagef("%q has no port", q.target)
	}
	q.from, q.host, q.target = q.gateway, u.Host, cmp.Or(u.EscapedPath(), "/")
	if u.RawQuery != "" {
		q.target += "?" + u.RawQuery
	}
	r, err := q.request(name)
	if err != nil {
		return nil, nil, err
	}
	if r.Port, r.Scheme = uint16(number), u.Scheme; q.client != "" {
		if r.Source.IP, err = netip.ParseAddr(q.client); err != nil {
			return nil, nil, usagef("--client %q is no address", q.client)
		}
	}
	w, err := newWorld(ctx, c, q.user)
	if err != nil {
		return nil, nil, err
	}
	gateway, err := w.learn(name)
	if err != nil {
		return nil, nil, err
	}
	if gateway == nil || len(gateway.Instances) == 0 || gateway.Instances[0].Protocol != mesh.Gateway {
		return nil, nil, fmt.Errorf("no host runs %s as a service of protocol gateway", name)
	}
	in := gateway.Instances[0]
	w.v.From, w.v.Labels = w.v.At(&mesh.Instance{Node: in.Node})
	for _, s := range w.m.EdgeDestinations(in) {
		if _, err := w.learn(s); err != nil {
			return nil, nil, err
		}
	}
	return w.m.ExplainGateway(w.v, in, r), w.names, nil
}

// explain asks the agent for policy and services, and works it out. names are those of nodes.
func explain(ctx context.Context, c *api.Client, q question) (e *policy.Explanation, names map[mesh.NodeID]string, err error) {
	to, ok := mesh.ParseHost(q.to, q.namespace)
	if !ok {
		to, err = mesh.ParseExternal(q.to)
		if err != nil || to.IsWildcard() {
			return nil, nil, usagef("--to %q is not the name of a service", q.to)
		}
	}
	if _, err = q.request(to); err != nil {
		return nil, nil, err
	}
	w, err := newWorld(ctx, c, q.user)
	if err != nil {
		return nil, nil, err
	}
	m, v, td, learn := w.m, &w.v, w.td, w.learn
	to = m.Resolve(to)
	r, err := q.request(to)
	if err != nil {
		return nil, nil, err
	}
	called, err := learn(to)
	if err != nil {
		return nil, nil, err
	}
	if r.Source, err = caller(q, td, learn); err != nil {
		return nil, nil, err
	}
	if r.Port, err = q.called(to, called); err != nil {
		return nil, nil, err
	}
	if from, ok := mesh.ParseHost(q.from, q.namespace); ok && v.Services[from] != nil && len(v.Services[from].Instances) > 0 {
		v.From, v.Labels = v.At(&mesh.Instance{Node: v.Services[from].Instances[0].Node})
	}
	for _, s := range m.Service(to).Destinations() {
		if _, err := learn(m.Resolve(s)); err != nil {
			return nil, nil, err
		}
	}
	switch {
	case r.Method != "":
	case called != nil && called.Protocol(r.Port) == mesh.TLS:
		r.TLS, r.SNI = true, cmp.Or(strings.ToLower(q.host), to.FQDN())
	case q.host != "":
		return nil, nil, usagef("only a request and a connection of TLS have a host: write the method and path of one")
	}
	if called != nil && !called.Protocol(r.Port).Carries(r.Method != "") {
		if r.Method == "" {
			return nil, nil, usagef("%s speaks %s: write a method and a path", to, called.Protocol(r.Port))
		}
		return nil, nil, usagef("%s speaks %s at port %d: leave out method and path", to, called.Protocol(r.Port), r.Port)
	}
	return m.Explain(*v, to, r), w.names, nil
}

// places lets v know where instances are.
func places(ctx context.Context, c *api.Client, v *policy.View) error {
	ms, err := c.Members(ctx)
	if err != nil {
		return err
	}
	nodes := map[mesh.NodeID]*mesh.Node{}
	for i := range ms.Members {
		nodes[ms.Members[i].ID] = &ms.Members[i]
	}
	v.At = func(i *mesh.Instance) (mesh.Locality, mesh.Labels) {
		n := nodes[i.Node]
		if n == nil {
			return i.Locality, i.Labels
		}
		return n.Locality, policy.PlaceLabels(n, i.Labels)
	}
	v.IP = func(i *mesh.Instance) (at netip.Addr) {
		if n := nodes[i.Node]; n != nil {
			at = n.Addr
		}
		return at
	}
	return nil
}

// request is the request as the data path sees it, but for caller and port.
func (q *question) request(to mesh.ServiceName) (*policy.Request, error) {
	if q.from == "" {
		return nil, usagef("--from is missing: which service calls?")
	}
	headers := map[string][]string{}
	for _, h := range q.headers {
		name, value, ok := strings.Cut(h, ":")
		if name = strings.ToLower(strings.TrimSpace(name)); !ok || name == "" {
			return nil, usagef("--header %q is not of the form 'name: value'", h)
		}
		headers[name] = append(headers[name], strings.TrimSpace(value))
	}
	r := &policy.Request{Method: q.method, Scheme: "http", Authority: q.host, Header: func(n string) []string { return headers[n] }}
	if q.method == "" {
		if len(q.headers) > 0 || q.user != nil {
			return nil, usagef("only a request has headers and a user: write its method and path")
		}
		return r, nil
	}
	if r.Authority == "" {
		r.Authority = to.FQDN()
	}
	u, err := url.ParseRequestURI(q.target)
	if err != nil || !strings.HasPrefix(q.target, "/") {
		return nil, usagef("%q is not a path: begin it with a slash", q.target)
	}
	r.Path, r.Query = u.Path, u.RawQuery
	if headers["host"] == nil {
		headers["host"] = []string{r.Authority}
	}
	return r, nil
}

// caller is who --from names: an identity, or a service with the identity and labels of one of its instances.
func caller(q question, td mesh.TrustDomain, learn func(mesh.ServiceName) (*mesh.Service, error)) (policy.Source, error) {
	if strings.HasPrefix(q.from, "spiffe://") {
		id, err := mesh.ParseIdentity(q.from)
		if err != nil {
			return policy.Source{}, usagef("--from: %v", err)
		}
		return policy.Source{Identity: id}, nil
	}
	name, ok := mesh.ParseHost(q.from, q.namespace)
	if !ok {
		return policy.Source{}, usagef("--from %q is not the name of a service", q.from)
	}
	s, err := learn(name)
	if err != nil {
		return policy.Source{}, err
	}
	if s != nil && len(s.Instances) > 0 {
		return policy.Source{Identity: s.Instances[0].Identity(td), Labels: s.Instances[0].Labels}, nil
	}
	id, err := mesh.WorkloadIdentity(td, name.Namespace(), name.Name())
	return policy.Source{Identity: id}, err
}

// called is the port that is called.
func (q *question) called(to mesh.ServiceName, s *mesh.Service) (uint16, error) {
	if q.port != 0 || s == nil {
		return q.port, nil
	}
	ps := s.Ports()
	if len(ps) > 1 {
		return 0, usagef("%s has the ports %s: say which with --port", to, ports(ps))
	}
	return ps[0], nil
}

func printExplanation(w io.Writer, e *policy.Explanation, names map[mesh.NodeID]string) {
	to := e.Service.FQDN()
	if e.Port != 0 {
		to += fmt.Sprintf(", port %d", e.Port)
	}
	if e.User != "" {
		to += ", for " + clean(e.User)
	}
	if e.Gateway {
		fmt.Fprintf(w, "A client outside calls %s, %s\n\n", to, e.Caller)
	} else {
		fmt.Fprintf(w, "%s calls %s\n\n", e.Caller, to)
	}
	if e.Entry != nil {
		fmt.Fprintf(w, "The gateway: %s\n", clean(verdict(*e.Entry)))
	}
	if e.Server != "" {
		fmt.Fprintln(w, clean(e.Server))
	}
	if e.Bound != "" {
		fmt.Fprintf(w, "Routes of the Gateway API are bound to the call at %s\n", e.Bound)
	}
	if len(e.Rules) == 0 && !e.Gateway {
		fmt.Fprintln(w, "No rule is asked: it goes where it is addressed")
	}
	for _, t := range e.Rules {
		name := ""
		if t.Name != "" {
			name = fmt.Sprintf(" (%s)", t.Name)
		}
		fmt.Fprintln(w, clean(fmt.Sprintf("%s %s%s: %s", show(t.Policy), t.Path, name, &t)))
	}
	line := func(what string, values ...string) {
		if v := strings.Join(values, ", "); v != "" {
			fmt.Fprintf(w, "  %-9s %s\n", what, clean(v))
		}
	}
	line("fault", e.Fault...)
	line("pages of", e.CORS)
	line("headers", e.Headers...)
	for _, l := range e.Limits {
		line("rate", l)
	}
	if a := e.Answer; a != nil {
		printReply(w, a)
		return
	}
	if e.Path != "" {
		line("sent as", e.Host+e.Path)
		line("time-out", orNone(e.Timeout))
		retries := "none"
		if e.Retries > 0 {
			retries = fmt.Sprintf("%d on %s", e.Retries, e.RetryOn)
		}
		line("retries", retries)
		line("each try", e.PerTry)
		line("copies", e.Mirrors...)
	}
	for _, s := range e.Shares {
		printShare(w, s, names)
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func printReply(w io.Writer, a *policy.Reply) {
	what := fmt.Sprintf("answered with %d", a.Status)
	if a.Status == 0 {
		what = "closed"
	}
	if a.Location != "" {
		what += ", Location " + a.Location
	}
	fmt.Fprintf(w, "\nIt is %s: %s\n", clean(what), clean(a.Reason))
}

func printShare(w io.Writer, s policy.Share, names map[mesh.NodeID]string) {
	what := []string{s.Service.String()}
	if s.Service.IsZero() {
		what[0] = "nowhere"
	}
	if s.Subset != "" {
		what = append(what, "subset "+s.Subset)
	}
	if s.Port != 0 {
		what = append(what, fmt.Sprintf("port %d", s.Port))
	}
	if s.LB != "" {
		what = append(what, s.LB)
	}
	if s.ConnectTimeout != "" {
		what = append(what, "connects within "+s.ConnectTimeout)
	}
	fmt.Fprintf(w, "\n%.4g %% to %s\n", s.Percent, clean(strings.Join(slices.Concat(what, s.Headers), ", ")))
	for _, line := range s.Settings {
		what, text, _ := strings.Cut(line, ": ")
		fmt.Fprintf(w, "  %-9s %s\n", what, clean(text))
	}
	if s.Problem != "" {
		fmt.Fprintf(w, "  Such calls fail: %s\n", s.Problem)
	}
	if len(s.Instances) == 0 {
		return
	}
	columns := []any{"  NODE", "INSTANCE", "HEALTH", "WEIGHT", "LABELS", "PICKED", "AUTHORIZATION"}
	located := slices.ContainsFunc(s.Instances, func(p policy.Place) bool { return p.Locality != "" || p.Near != "" })
	if located {
		columns = slices.Insert(columns, 5, any("LOCALITY"))
	}
	t := newTable(w, columns...)
	for _, p := range s.Instances {
		picked := "yes"
		if !p.Picked {
			picked = "no: " + p.Why
		} else if p.Near != "" {
			picked = "yes, " + p.Near
		}
		i := p.Instance
		node := names[i.Node]
		if i.Outside {
			node = "(outside)"
		}
		said := verdict(p.Verdict)
		if i.Outside {
			said = p.Reason
		}
		row := []any{"  " + node, i.ID, i.Health, i.Weight, labels(i.Labels), picked, said}
		if located {
			row = slices.Insert(row, 5, any(orNone(p.Locality)))
		}
		t.row(row...)
	}
	t.flush()
}

func verdict(p policy.Verdict) string {
	switch {
	case p.Allowed && p.Reason != "":
		return "allowed " + p.Reason
	case p.Allowed && p.Policy == nil:
		return "allowed: no policy is about it"
	case p.Allowed:
		return "allowed by " + show(*p.Policy)
	case p.Policy == nil:
		return "denied: " + p.Reason
	}
	return "denied by " + show(*p.Policy)
}
