package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// TestStatuses: the conditions of each resource, and those at each parent of a route. All was written at store index 7.
func TestStatuses(t *testing.T) {
	services := world("echo 80 http", "shop/api 80 http", "db 5432 tcp", "ingress 0 gateway")
	const rules = "  rules: [{backendRefs: [{name: echo, port: 80}]}]\n"
	to := func(parents string) string { return "  parentRefs: [" + parents + "]\n" }
	const echo, api = "{group: '', kind: Service, name: echo%s}", "{group: '', kind: Service, namespace: shop, name: api}"
	const edge = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {namespace: default, name: edge}\nspec:\n  gatewayClassName: meshagent\n" +
		"  listeners: [{name: web, port: 80, protocol: HTTP}, {name: tls, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c, namespace: certs}]}}]\n---\n"
	toEdge := func(section string) string {
		return gw("HTTPRoute", "default/r", "  parentRefs: [{name: edge, sectionName: "+section+"}]\n"+rules)
	}
	at := func(more string) string { return fmt.Sprintf(echo, more) }
	for _, c := range []struct{ name, yaml, want string }{
		{"a VirtualService", virtual("w", "{hosts: [echo], http: [{route: [{destination: {host: echo}}]}]}"), "Reconciled"},
		{"one that leads nowhere", virtual("w", "{hosts: [echo], http: [{route: [{destination: {host: gone}}]}]}"), "Reconciled | ERROR IST0101"},
		{"one that a newer server understands", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: w}\nspec: {hosts: [echo], future: 1}\n",
			"-Reconciled:Invalid | ERROR IST0106"},
		{"a route", gw("HTTPRoute", "default/r", to(at(""))+rules), "echo Accepted ResolvedRefs Programmed"},
		{"of a port", gw("HTTPRoute", "default/r", to(at(", port: 80"))+rules), "echo:80 Accepted ResolvedRefs Programmed"},
		{"of a port that is not there", gw("HTTPRoute", "default/r", to(at(", port: 81"))+rules), "echo:81 -Accepted:NoMatchingParent ResolvedRefs Programmed"},
		{"of a service that is not there", gw("HTTPRoute", "default/r", to("{group: '', kind: Service, name: gone}")+rules),
			"gone -Accepted:NoMatchingParent ResolvedRefs Programmed | WARNING NoMatchingParent"},
		{"a consumer's, and one parent is not there", gw("HTTPRoute", "default/r", to(api+", {group: '', kind: Service, namespace: x, name: api}")+rules),
			"api Accepted ResolvedRefs Programmed, api -Accepted:NoMatchingParent ResolvedRefs Programmed | WARNING NoMatchingParent"},
		{"without its backend", gw("HTTPRoute", "default/r", to(at(""))+strings.Replace(rules, "echo", "gone", 1)),
			"echo Accepted -ResolvedRefs:BackendNotFound Programmed | ERROR BackendNotFound"},
		{"without a grant", gw("HTTPRoute", "default/r", to(at(""))+"  rules: [{backendRefs: [{name: api, namespace: shop, port: 80}]}]\n"),
			"echo Accepted -ResolvedRefs:RefNotPermitted Programmed | ERROR RefNotPermitted"},
		{"behind a GRPCRoute", gw("HTTPRoute", "default/r", to(at(""))+rules) + gw("GRPCRoute", "default/g", to(at(""))+rules),
			"echo -Accepted:Conflicted ResolvedRefs Programmed | WARNING Conflicted"},
		{"the younger TCPRoute", gw("TCPRoute", "default/r", to("{group: '', kind: Service, name: db}")+"  rules: [{backendRefs: [{name: db, port: 5432}]}]\n") +
			gw("TCPRoute", "default/q", to("{group: '', kind: Service, name: db}")+"  rules: [{backendRefs: [{name: db, port: 5432}]}]\n"),
			"db Accepted ResolvedRefs Programmed"},
		{"a route of a Gateway", toEdge("web") + edge, "edge/web Accepted ResolvedRefs Programmed"},
		{"of a listener that it has not", toEdge("other") + edge, "edge/other -Accepted:NoMatchingParent ResolvedRefs Programmed | WARNING NoMatchingParent"},
		{"of a Gateway that is not there", toEdge("web"), "edge/web -Accepted:NoMatchingParent ResolvedRefs Programmed | WARNING NoMatchingParent"},
		{"a Gateway", edge + toEdge("web"), "Accepted Programmed [web 1 Accepted ResolvedRefs Programmed] [tls 0 Accepted -ResolvedRefs:RefNotPermitted Programmed] | ERROR RefNotPermitted"},
		{"of a class that is not there", strings.Replace(edge, "gatewayClassName: meshagent", "gatewayClassName: gone", 1), "-Accepted:Invalid -Programmed:Invalid | ERROR IST0101"},
		{"that nobody serves", strings.ReplaceAll(edge, "namespace: default", "namespace: empty"),
			"Accepted -Programmed:NoResources [web 0 Accepted ResolvedRefs -Programmed:NoResources] [tls 0 Accepted -ResolvedRefs:RefNotPermitted -Programmed:NoResources] | ERROR RefNotPermitted | WARNING IST0127"},
		{"a class", gw("GatewayClass", "default/c", "  controllerName: "+ControllerName+"\n"), "Accepted"},
		{"a grant", gw("ReferenceGrant", "default/g", "  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]\n  to: [{group: '', kind: Service}]\n"), "Reconciled"},
	} {
		var ps []mesh.Policy
		for n, doc := range strings.Split(strings.TrimSuffix(c.yaml, "---\n"), "---\n") {
			key := mesh.PolicyKey{Group: "networking.istio.io", Kind: "VirtualService", Namespace: "default", Name: "w"}
			if p, err := Parse("", []byte(doc)); err == nil {
				key = p[0].PolicyKey
			} else if n > 0 {
				t.Fatal(err)
			}
			ps = append(ps, mesh.Policy{PolicyKey: key, Source: []byte(doc), Created: uint64(n + 1), Modified: 7})
		}
		st := Statuses(td, ps, services, func(index uint64) (int, int) { return int(index), 7 })[ps[0].PolicyKey]
		if got := inShort(st); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		pending := Statuses(td, ps, services, func(uint64) (int, int) { return 2, 3 })[ps[0].PolicyKey]
		if text := inShort(pending); !strings.Contains(text, ":Pending") && !strings.Contains(text, ":Invalid") && !strings.Contains(text, ":NoResources") && ps[0].Kind != "GatewayClass" {
			t.Errorf("%s: not live everywhere: %s", c.name, text)
		}
	}
}

// inShort is a status on one line: a hyphen before what is not so.
func inShort(s *mesh.PolicyStatus) string {
	conditions := func(cs []mesh.Condition) string {
		var out []string
		for _, c := range cs {
			if text := c.Type; c.Status == "True" {
				out = append(out, text)
			} else {
				out = append(out, "-"+text+":"+c.Reason)
			}
			if c.ObservedGeneration != 7 {
				out = append(out, fmt.Sprint(c.ObservedGeneration))
			}
		}
		return strings.Join(out, " ")
	}
	parts := []string{conditions(s.Conditions)}
	for i, p := range s.Parents {
		name := p.ParentRef.Name
		if p.ParentRef.Port != 0 {
			name += fmt.Sprintf(":%d", p.ParentRef.Port)
		}
		if p.ParentRef.SectionName != "" {
			name += "/" + p.ParentRef.SectionName
		}
		if i == 0 {
			parts = nil
		}
		parts = append(parts, name+" "+conditions(p.Conditions))
	}
	var text strings.Builder
	text.WriteString(strings.Join(parts, ", "))
	for _, l := range s.Listeners {
		fmt.Fprintf(&text, " [%s %d %s]", l.Name, l.AttachedRoutes, conditions(l.Conditions))
	}
	for _, m := range s.ValidationMessages {
		text.WriteString(" | " + m.Level + " " + m.Type.Code)
	}
	return text.String()
}

// TestSummary: the worst is told.
func TestSummary(t *testing.T) {
	is := func(reason, status string) mesh.Condition { return mesh.Condition{Status: status, Reason: reason} }
	message := func(level, code string) mesh.PolicyMessage {
		return mesh.PolicyMessage{Level: level, Type: mesh.MessageType{Code: code}}
	}
	for _, c := range []struct {
		s    mesh.PolicyStatus
		want string
	}{
		{mesh.PolicyStatus{}, "ok"},
		{mesh.PolicyStatus{Conditions: []mesh.Condition{is("Reconciled", "True")}, ValidationMessages: []mesh.PolicyMessage{message("INFO", "IST0131")}}, "ok"},
		{mesh.PolicyStatus{Conditions: []mesh.Condition{is("Pending", "False")}, ValidationMessages: []mesh.PolicyMessage{message("WARNING", "IST0130")}}, "Pending"},
		{mesh.PolicyStatus{ValidationMessages: []mesh.PolicyMessage{message("WARNING", "IST0130")}}, "warning IST0130"},
		{mesh.PolicyStatus{Parents: []mesh.ParentStatus{{Conditions: []mesh.Condition{is("Conflicted", "False")}}}}, "Conflicted"},
		{mesh.PolicyStatus{Parents: []mesh.ParentStatus{{Conditions: []mesh.Condition{is("Pending", "False")}}}, ValidationMessages: []mesh.PolicyMessage{message("WARNING", "X"), message("ERROR", "IST0101")}}, "error IST0101"},
	} {
		if got := c.s.Summary(); got != c.want {
			t.Errorf("%+v: %s, want %s", c.s, got, c.want)
		}
	}
}
