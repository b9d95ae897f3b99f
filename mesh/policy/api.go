// Package policy turns resources that users wrote (Istio's networking and security kinds, routes of the Gateway API) into one Model
// of routing and authorization, and answers questions of the data path from it: pure functions, no I/O.
//
// Imported by proxy, agent, agent/api/server and cmd/meshagent. Guarantees: what is not supported is refused by name; a file
// with one invalid document is refused as a whole; a stored policy that does not compile denies what it governs.
package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/internal/strictyaml"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/gatewayapi"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// kind is one kind of resource that is accepted.
type kind struct {
	group, name string
	versions    []string
	// read decodes and validates the spec of d; what is wrong goes to d.errs.
	read func(d *doc)
}

var kinds = []kind{
	{"networking.istio.io", "VirtualService", []string{"v1", "v1beta1", "v1alpha3"}, read[istio.VirtualService]},
	{"networking.istio.io", "Gateway", []string{"v1", "v1beta1", "v1alpha3"}, read[istio.Gateway]},
	{"networking.istio.io", "DestinationRule", []string{"v1", "v1beta1", "v1alpha3"}, read[istio.DestinationRule]},
	{"security.istio.io", "PeerAuthentication", []string{"v1", "v1beta1"}, read[istio.PeerAuthentication]},
	{"security.istio.io", "RequestAuthentication", []string{"v1", "v1beta1"}, read[istio.RequestAuthentication]},
	{"security.istio.io", "AuthorizationPolicy", []string{"v1", "v1beta1"}, read[istio.AuthorizationPolicy]},
	{"networking.istio.io", "ServiceEntry", []string{"v1", "v1beta1", "v1alpha3"}, read[istio.ServiceEntry]},
	{"networking.istio.io", "WorkloadEntry", []string{"v1", "v1beta1", "v1alpha3"}, read[istio.WorkloadEntry]},
	{"networking.istio.io", "Sidecar", []string{"v1", "v1beta1", "v1alpha3"}, read[istio.Sidecar]},
	{"", SecretKind, []string{"v1"}, read[secretSpec]},
	{"", configMapKind, []string{"v1"}, read[configMapSpec]},
	{gatewayGroup, "GatewayClass", []string{"v1", "v1beta1"}, read[gatewayapi.GatewayClassSpec]},
	{gatewayGroup, "Gateway", []string{"v1", "v1beta1"}, read[gatewayapi.GatewaySpec]},
	{gatewayGroup, "HTTPRoute", []string{"v1", "v1beta1"}, read[gatewayapi.HTTPRouteSpec]},
	{gatewayGroup, "GRPCRoute", []string{"v1"}, read[gatewayapi.GRPCRouteSpec]},
	{gatewayGroup, "TLSRoute", []string{"v1", "v1alpha3", "v1alpha2"}, read[gatewayapi.TLSRouteSpec]},
	{gatewayGroup, "TCPRoute", []string{"v1", "v1alpha2"}, read[gatewayapi.TCPRouteSpec]},
	{gatewayGroup, "BackendTLSPolicy", []string{"v1", "v1alpha3"}, read[gatewayapi.BackendTLSPolicySpec]},
	{gatewayGroup, "ReferenceGrant", []string{"v1", "v1beta1"}, read[gatewayapi.ReferenceGrantSpec]},
	{trafficGroup, "MeshTrafficPolicy", []string{"v1"}, read[MeshTrafficPolicy]},
	{trafficGroup, "ExtensionProvider", []string{"v1"}, read[ExtensionProvider]},
	{trafficGroup, CertificateKind, []string{"v1"}, read[Certificate]},
}

// Kinds returns the kinds that are accepted, as apiVersion and kind.
func Kinds() []string {
	var out []string
	for _, k := range kinds {
		out = append(out, strings.TrimPrefix(k.group+"/"+k.versions[0]+" "+k.name, "/"))
	}
	return out
}

// FindKind returns group and kind of a name as people type it: virtualservice, VirtualService, virtualservices, vs.
func FindKind(s string) (group, name string, ok bool) {
	l := strings.ToLower(s)
	for short, full := range map[string]string{"vs": "virtualservice", "dr": "destinationrule", "ap": "authorizationpolicy", "ra": "requestauthentication", "pa": "peerauthentication", "se": "serviceentry", "we": "workloadentry", "refgrant": "referencegrant", "mtp": "meshtrafficpolicy", "gw": "gateway", "cm": "configmap", "btlspolicy": "backendtlspolicy"} {
		if l == short {
			l = full
		}
	}
	l, of, dotted := strings.Cut(l, ".") // as kubectl writes it where two groups have the name
	for _, k := range kinds {
		n := strings.ToLower(k.name)
		if dotted && of != k.group {
			continue
		}
		if l == n || l == n+"s" || l == strings.TrimSuffix(n, "y")+"ies" {
			return k.group, k.name, true
		}
	}
	return "", "", false
}

// doc is one resource while it is read.
type doc struct {
	strictyaml.Document
	key        mesh.PolicyKey
	apiVersion string
	spec       *strictyaml.Node
	dry        bool    // it is to be tried only
	lifted     bool    // spec is what stands beside the head
	tokens     *tokens // of a RequestAuthentication: compiled once, for what was verified by it is kept there
	value      any     // the decoded spec: a pointer to the kind's type of package istio or gatewayapi
	errs       strictyaml.Errors
}

func (d *doc) fail(line int, path, hint, format string, args ...any) {
	if d.key.Kind != "" {
		path = fmt.Sprintf("%s %q: %s", d.key.Kind, d.key.Name, path)
	}
	d.errs.Add(&strictyaml.Error{File: d.File, Line: line, Path: path, Msg: fmt.Sprintf(format, args...), Hint: hint})
}

// Parse reads a file of resources, YAML or JSON, in documents or in a List. Everything is validated; one error refuses the whole
// file. Errors are joined, and each names file, line, resource, field, and what to do; after strictyaml.MaxErrors of them the
// others are counted. Created and Modified stay 0.
func Parse(file string, data []byte) ([]mesh.Policy, error) {
	docs, err := strictyaml.Split(file, data)
	if err != nil {
		return nil, err
	}
	var out []mesh.Policy
	var errs strictyaml.Errors
	seen := map[mesh.PolicyKey]int{}
	for _, sd := range docs {
		list, err := items(sd)
		errs.Add(err)
		for _, sd := range list {
			d := parseDoc(sd)
			d.refuseSealed()
			if line, ok := seen[d.key]; ok && d.errs.Len() == 0 {
				d.fail(d.Line, "metadata.name", "remove one", "the same resource is at line %d", line)
			}
			if d.errs.Len() > 0 {
				errs.Add(d.errs.Err())
				continue
			}
			seen[d.key] = d.Line
			out = append(out, mesh.Policy{PolicyKey: d.key, APIVersion: d.apiVersion, Source: sd.Source})
		}
	}
	if err := errs.Err(); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, &strictyaml.Error{File: file, Msg: "holds no resource"}
	}
	return out, nil
}

// items takes a List apart; each item's source is then its JSON.
func items(d strictyaml.Document) ([]strictyaml.Document, error) {
	if k := d.Root.Get("kind"); k == nil || k.Text != "List" {
		return []strictyaml.Document{d}, nil
	}
	var l list
	if err := d.Decode(&l); err != nil {
		return nil, err
	}
	if l.APIVersion != "v1" {
		return nil, &strictyaml.Error{File: d.File, Line: d.Line, Path: "apiVersion", Msg: fmt.Sprintf("%q is not the version of a List", l.APIVersion), Hint: "write v1"}
	}
	var out []strictyaml.Document
	for _, m := range l.Items {
		out = append(out, strictyaml.Document{File: d.File, Line: m.node.Line, Source: m.node.JSON(), Root: m.node})
	}
	return out, nil
}

// list is what a List has.
type list struct {
	APIVersion string   `yaml:"apiVersion"`
	Kind       string   `yaml:"kind"`
	Metadata   ignored  `yaml:"metadata"`
	Items      []member `yaml:"items"`
}

// member is an item of a List.
type member struct{ node *strictyaml.Node }

// UnmarshalNode keeps the node.
func (m *member) UnmarshalNode(n *strictyaml.Node) error {
	m.node = n
	return nil
}

// head is what every resource has. What is ignored is what kubectl and Kubernetes add to a resource that they show.
type head struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Metadata   struct {
		Name              string            `yaml:"name"`
		Namespace         string            `yaml:"namespace"`
		Labels            map[string]string `yaml:"labels"`
		Annotations       map[string]string `yaml:"annotations"`
		CreationTimestamp ignored           `yaml:"creationTimestamp"`
		ResourceVersion   ignored           `yaml:"resourceVersion"`
		UID               ignored           `yaml:"uid"`
		Generation        ignored           `yaml:"generation"`
		ManagedFields     ignored           `yaml:"managedFields"`
		Finalizers        ignored           `yaml:"finalizers"`
		OwnerReferences   ignored           `yaml:"ownerReferences"`
		SelfLink          ignored           `yaml:"selfLink"`
	} `yaml:"metadata"`
	Spec   ignored `yaml:"spec"` // read on its own, when the kind is known
	Status ignored `yaml:"status"`
}

// ignored takes any value.
type ignored struct{}

// UnmarshalNode accepts the value.
func (*ignored) UnmarshalNode(*strictyaml.Node) error { return nil }

func parseDoc(sd strictyaml.Document) *doc {
	sd, lifted := lift(sd)
	d := &doc{Document: sd, lifted: lifted}
	var h head
	if err := sd.Decode(&h); err != nil {
		d.errs.Add(err)
		return d
	}
	group, version, grouped := strings.Cut(h.APIVersion, "/")
	if !grouped { // v1, of the group without a name
		group, version = "", group
	}
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.group == group && k.name == h.Kind })
	if instead := refused[group+"/"+h.Kind]; i < 0 && instead != "" {
		d.fail(d.Line, "kind", instead, "%s of %s is not what meshagent acts on", h.Kind, h.APIVersion)
		return d
	}
	if i < 0 {
		d.fail(d.Line, "kind", "supported are "+strings.Join(Kinds(), ", "), "%q of apiVersion %q is not supported", h.Kind, h.APIVersion)
		return d
	}
	k := kinds[i]
	if !slices.Contains(k.versions, version) {
		d.fail(d.Line, "apiVersion", "write "+group+"/"+k.versions[0], "%q is not a version of %s that is supported", h.APIVersion, k.name)
		return d
	}
	ns := h.Metadata.Namespace
	if ns == "" {
		ns = mesh.DefaultNamespace
	}
	d.key = mesh.PolicyKey{Group: group, Kind: k.name, Namespace: ns, Name: h.Metadata.Name}
	d.apiVersion = h.APIVersion
	for part := range strings.SplitSeq(h.Metadata.Name, ".") {
		if err := mesh.CheckLabel("metadata.name", part); err != nil {
			d.fail(d.Line, "metadata.name", "use a-z, 0-9, '-' and '.'", "%q is not a resource's name", h.Metadata.Name)
			break
		}
	}
	if v, ok := h.Metadata.Annotations["istio.io/dry-run"]; ok && k.name == "AuthorizationPolicy" {
		if d.dry = v == "true"; !d.dry && v != "false" { // it would be enforced
			d.fail(d.Line, "metadata.annotations", "write true or false", "istio.io/dry-run: %q says neither that it is to be tried only, nor that it is not", v)
		}
	}
	if err := mesh.CheckLabel("metadata.namespace", ns); err != nil {
		d.fail(d.Line, "metadata.namespace", "", "%v", err)
	}
	if d.spec = d.Root.Get("spec"); d.spec == nil {
		d.spec = &strictyaml.Node{Kind: strictyaml.Map, Line: d.Line}
	}
	k.read(d)
	return d
}

// read decodes the spec and validates it by compiling it on its own. Null is refused everywhere in it: Istio reads it as
// absent, and what is absent in a rule matches everything.
func read[T any](d *doc) {
	spec := new(T)
	sub := strictyaml.Document{File: d.File, Line: d.spec.Line, Root: d.spec}
	if err := sub.DecodeNoNull(spec); err != nil {
		d.addSpec(err)
		return
	}
	var probs []fieldError
	switch s := any(spec).(type) {
	case *istio.VirtualService:
		_, probs = compileVirtualService(d.key, s, nil)
	case *istio.Gateway:
		_, probs = compileIstioGateway(d.key, s)
	case *istio.DestinationRule:
		_, _, probs = compileDestinationRule(d.key, s)
	case *istio.PeerAuthentication:
		probs = checkPeer(d.key, s)
	case *istio.RequestAuthentication:
		d.tokens, probs = compileTokens(d.key, s)
	case *istio.AuthorizationPolicy:
		var a *authz
		if a, probs = compileAuthz(d.key, s); a.audit && d.dry {
			d.fail(d.Line, "metadata.annotations", "remove the annotation", "istio.io/dry-run: an AUDIT policy decides nothing, and has no effect to be tried")
		} else if a.provider != "" && d.dry {
			d.fail(d.Line, "metadata.annotations", "remove the annotation", "istio.io/dry-run: a CUSTOM policy cannot be tried: who decides would have to be asked about every call")
		}
	case *istio.ServiceEntry:
		_, probs = compileServiceEntry(d.key, s)
	case *istio.WorkloadEntry:
		_, probs = compileWorkloadEntry(d.key, s)
	case *istio.Sidecar:
		_, probs = compileSidecar(d.key, s)
	case *gatewayapi.GatewayClassSpec:
		probs = compileGatewayClass(d.key, s)
	case *gatewayapi.GatewaySpec:
		_, probs = compileAPIGateway(d.key, s)
	case *secretSpec:
		_, probs = compileSecret(d.key, s)
	case *configMapSpec:
		probs = compileConfigMap(d.key, s)
	case *gatewayapi.BackendTLSPolicySpec:
		_, probs = compileBackendTLS(d.key, s)
	case *gatewayapi.ReferenceGrantSpec:
		_, probs = compileGrant(d.key, s)
	case *MeshTrafficPolicy:
		_, probs = compileTraffic(d.key, s)
	case *ExtensionProvider:
		_, probs = compileProvider(d.key, s)
	case *Certificate:
		_, probs = compileCertificate(d.key, s)
	default:
		_, probs = compileRoute(d.key, s)
	}
	for _, p := range probs {
		if p.more > 0 {
			d.errs.AddUntold(p.more)
			continue
		}
		d.fail(lineOf(d.spec, p.path), d.under(p.path), p.hint, "%s", p.msg)
	}
	d.value = spec
}

// under is the path of a field of the spec.
func (d *doc) under(path string) string {
	if d.lifted {
		return path
	}
	return "spec." + path
}

// addSpec adds the errors of a spec with the resource's name and the full path.
func (d *doc) addSpec(err error) {
	list := []error{err}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		list = j.Unwrap()
	}
	for _, e := range list {
		if se, ok := errors.AsType[*strictyaml.Error](e); ok {
			se.Path = strings.TrimSuffix(fmt.Sprintf("%s %q: %s", d.key.Kind, d.key.Name, d.under(se.Path)), ".")
		}
		d.errs.Add(e)
	}
}

// lineOf finds the line of the deepest part of a path such as http[0].route[1].weight that exists.
func lineOf(n *strictyaml.Node, path string) int {
	line := n.Line
	for _, step := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		var next *strictyaml.Node
		if n.Kind == strictyaml.List {
			i := 0
			for _, c := range step {
				i = i*10 + int(c-'0')
			}
			if i >= 0 && i < len(n.Vals) {
				next = n.Vals[i]
			}
		} else {
			next = n.Get(step)
		}
		if next == nil {
			break
		}
		n, line = next, next.Line
	}
	return line
}

// fieldError is a value that decodes and cannot be meant; or the number of those that were not kept.
type fieldError struct {
	path, msg, hint string
	more            int
}

// Compile builds the Model of all policies of a mesh. It never fails: a policy that cannot be understood, which only a newer
// server can have stored, denies what it governs and is a Problem.
func Compile(td mesh.TrustDomain, index uint64, ps []mesh.Policy) *Model {
	return new(Cache).Compile(td, index, ps)
}

// byAge sorts policies: the older first, since the first VirtualService of a host has it.
func byAge(ps []mesh.Policy) []mesh.Policy {
	return slices.SortedFunc(slices.Values(ps), func(a, b mesh.Policy) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), a.PolicyKey.Compare(b.PolicyKey))
	})
}

func assemble(td mesh.TrustDomain, index uint64, ps []mesh.Policy, docs []*decoded) *Model {
	m := &Model{secrets: map[SecretRef]uint64{}, configMaps: map[mesh.PolicyKey]string{}, providers: map[mesh.PolicyKey]*Provider{}, limited: map[RouteRef][]*Limit{}, index: index, td: td, services: map[mesh.ServiceName]*ServicePolicy{}, authz: &authzIndex{},
		declared: map[mesh.ServiceName]*mesh.Entry{}, foreign: map[mesh.ServiceName]mesh.ServiceName{}, sidecars: map[string][]*sidecar{}}
	g := &gateway{grants: map[grant]bool{}, classes: map[string]bool{}, edges: edges{gateways: map[string]*Gateway{}}, delegates: delegates{}, soonest: map[mesh.ServiceName]bool{}, hedges: map[mesh.ServiceName]*Hedge{}}
	for i, d := range docs {
		if s, ok := d.virtualService(); ok && d.key == ps[i].PolicyKey {
			g.delegates.add(d.key, s)
		}
	}
	compiled := compileRoutes(ps, docs, g.delegates)
	for i, p := range ps {
		m.add(p, docs[i], compiled[i], g)
	}
	m.join()
	g.bind(m)
	g.edges.bind(m)
	m.settle()
	m.provided()
	m.secureBackends(g.backends)
	m.preferSoonest(g.soonest)
	m.hedge(g.hedges)
	return m
}

func (m *Model) add(p mesh.Policy, d *decoded, compiled any, g *gateway) {
	err := d.err
	if err == nil && d.key != p.PolicyKey {
		err = fmt.Errorf("the source is of %s", d.key)
	}
	if err != nil {
		m.invalid(p, err)
		g.edges.addInvalid(p)
		return
	}
	switch s := d.value.(type) {
	case *istio.VirtualService:
		vs := compiled.(*virtualService)
		for _, l := range vs.lacks {
			m.problem(p.PolicyKey, codeNotFound, l)
		}
		m.addRoutes(p, vs)
		g.edges.services = append(g.edges.services, boundService{p.PolicyKey, "", vs})
	case *istio.Gateway:
		gw, _ := compileIstioGateway(p.PolicyKey, s)
		g.edges.addGateway(m, gw)
	case *istio.DestinationRule:
		host, d, _ := compileDestinationRule(p.PolicyKey, s)
		sp := m.service(host)
		m.addClientSecrets(d)
		if older := sp.addDestination(d); older != nil {
			m.problem(p.PolicyKey, codeTwoDestinationRules, fmt.Sprintf("%s has the DestinationRule %s already, which is older: it stays",
				host, older.Policy.Name))
		}
	case *istio.PeerAuthentication: // is always so
	case *istio.RequestAuthentication:
		m.tokens.add(d.tokens, p.Namespace == RootNamespace)
	case *istio.AuthorizationPolicy:
		a, _ := compileAuthz(p.PolicyKey, s)
		a.dry = d.dry
		m.authz.add(a, p.Namespace == RootNamespace)
	case *istio.ServiceEntry:
		e, _ := compileServiceEntry(p.PolicyKey, s)
		m.joining.entries = append(m.joining.entries, e)
	case *istio.WorkloadEntry:
		w, _ := compileWorkloadEntry(p.PolicyKey, s)
		m.joining.workloads = append(m.joining.workloads, w)
	case *istio.Sidecar:
		sc, _ := compileSidecar(p.PolicyKey, s)
		m.addSidecar(sc)
	case *gatewayapi.GatewayClassSpec:
		g.classes[p.Name] = true
	case *gatewayapi.GatewaySpec:
		gw, _ := compileAPIGateway(p.PolicyKey, s)
		g.gateways = append(g.gateways, gw)
	case *configMapSpec:
		m.configMaps[p.PolicyKey] = s.Data[caKey]
	case *gatewayapi.BackendTLSPolicySpec:
		b, _ := compileBackendTLS(p.PolicyKey, s)
		g.backends = append(g.backends, b)
	case *secretSpec:
		m.secrets[SecretRef{p.Namespace, p.Name}] = p.Modified
	case *gatewayapi.ReferenceGrantSpec:
		grants, _ := compileGrant(p.PolicyKey, s)
		for _, x := range grants {
			g.grants[x] = true
		}
	case *ExtensionProvider:
		m.providers[p.PolicyKey], _ = compileProvider(p.PolicyKey, s)
	case *Certificate:
		o, _ := compileCertificate(p.PolicyKey, s)
		m.addCertificate(o)
	case *MeshTrafficPolicy:
		t, _ := compileTraffic(p.PolicyKey, s)
		for _, svc := range t.services {
			sp := m.service(svc)
			sp.Limits = append(sp.Limits, t.limits...)
			if t.soonest {
				g.soonest[svc] = true
			}
			if h := g.hedges[svc]; t.hedge != nil && h == nil {
				g.hedges[svc] = t.hedge
			} else if t.hedge != nil {
				m.problem(p.PolicyKey, codeConflicted, fmt.Sprintf("%s says already when requests to %s are hedged", h.Policy, svc))
			}
		}
		for _, r := range t.routes {
			m.limited[r] = append(m.limited[r], t.limits...)
		}
	default:
		r := compiled.(*gatewayRoute)
		r.created = p.Created
		g.routes = append(g.routes, r)
	}
}

func (m *Model) service(s mesh.ServiceName) *ServicePolicy {
	sp := m.services[s]
	if sp == nil {
		sp = &ServicePolicy{Destination: &Destination{}}
		m.services[s] = sp
	}
	return sp
}

func (m *Model) problem(key mesh.PolicyKey, code, reason string) {
	m.problems = append(m.problems, Problem{key, code, reason})
}

// invalid makes a policy that cannot be understood deny: routing and destinations the hosts that they name, and where not all
// of these can be read, as with authorization, its whole namespace, since whom it governs is not known. An AuthorizationPolicy
// of RootNamespace governs all namespaces, and denies in all. A route for services of other namespaces governs the calls of its own
// alone, and a ReferenceGrant allows nothing then.
func (m *Model) invalid(p mesh.Policy, err error) {
	m.problem(p.PolicyKey, codeInvalid, err.Error())
	if p.Kind == "Sidecar" { // nothing may be called
		m.sidecars[p.Namespace] = slices.Insert(m.sidecars[p.Namespace], 0, &sidecar{key: p.PolicyKey, hosts: []scopeHost{}})
		return
	}
	hosts, all := namedHosts(p)
	for _, h := range hosts {
		if sp := m.service(h); p.Group == gatewayGroup && h.Namespace() != p.Namespace {
			sp.Bound = append(sp.Bound, Binding{Callers: p.Namespace, HTTP: []*HTTPRoute{}, TCP: []*TCPRoute{}, TLS: []*TCPRoute{}})
		} else {
			sp.Invalid = p.PolicyKey.String() + " cannot be understood"
		}
	}
	if !all {
		a := &authz{key: p.PolicyKey, text: p.PolicyKey.String(), deny: true, rules: []authzRule{{}}}
		m.authz.add(a, p.Namespace == RootNamespace && (p.Kind == "AuthorizationPolicy" || p.Kind == "RequestAuthentication"))
	}
}

// namedHosts reads the hosts out of a resource that is not valid otherwise; all is false when there may be others.
func namedHosts(p mesh.Policy) (out []mesh.ServiceName, all bool) {
	docs, err := strictyaml.Split("", p.Source)
	if err != nil || len(docs) != 1 {
		return nil, false
	}
	switch p.Kind {
	case "ReferenceGrant", "WorkloadEntry", SecretKind, configMapKind, "GatewayClass", "ExtensionProvider", CertificateKind:
		return nil, true
	}
	spec := docs[0].Root.Get("spec")
	if p.Kind == "MeshTrafficPolicy" || p.Kind == "BackendTLSPolicy" {
		return namedRefs(spec.Get("targetRefs"), p.Namespace, "")
	}
	if p.Group == gatewayGroup {
		return namedRefs(spec.Get("parentRefs"), p.Namespace, "Gateway")
	}
	var names []*strictyaml.Node
	switch p.Kind {
	case "VirtualService", "ServiceEntry":
		if l := spec.Get("hosts"); l != nil {
			names = l.Vals
		}
	case "DestinationRule":
		if h := spec.Get("host"); h != nil {
			names = append(names, h)
		}
	}
	all = len(names) > 0
	for _, n := range names {
		if h, ok := parseHost(n.Text, p.Namespace); ok {
			out = append(out, h)
		} else {
			all = false
		}
	}
	return out, all
}

// namedRefs is namedHosts for references, whose kind may be left out. What is a Gateway governs no call of a service; what is neither may.
func namedRefs(refs *strictyaml.Node, from, kind string) (out []mesh.ServiceName, all bool) {
	if refs == nil || refs.Kind != strictyaml.List || len(refs.Vals) == 0 {
		return nil, false
	}
	all = true
	for _, r := range refs.Vals {
		text := func(key, absent string) string {
			if n := r.Get(key); n != nil {
				return n.Text
			}
			return absent
		}
		switch text("kind", kind) {
		case "Service":
		case "Gateway":
			continue
		default:
			all = false
			continue
		}
		if s, err := mesh.NewServiceName(text("namespace", from), text("name", "")); err == nil {
			out = append(out, s)
		} else {
			all = false
		}
	}
	return out, all
}

// Problems returns the policies that deny because they could not be understood, or are without effect because an older one
// governs the same, or refer to what they may not.
func (m *Model) Problems() []Problem { return m.problems }

// StoreIndex is the index of the store that the model was compiled from.
func (m *Model) StoreIndex() uint64 { return m.index }

// Both are immutable.
var (
	noPolicy   = &ServicePolicy{Destination: &Destination{}}
	notReadYet = &ServicePolicy{Invalid: notRead, Destination: &Destination{}}
)

const notRead = "no policy has been read yet"

// Service returns the traffic policy of a service; never nil. That of a nil Model refuses everything.
func (m *Model) Service(s mesh.ServiceName) *ServicePolicy {
	if m == nil {
		return notReadYet
	}
	s = m.Resolve(s)
	if sp := m.services[s]; sp != nil {
		return sp
	}
	if sp := m.wildcard(s); sp != nil {
		return sp
	}
	return noPolicy
}
