package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// These are what changes of the code that no other test noticed have taught (make mutate).

// TestRequestsAloneAreNoConnections: an operation that looks at what only requests have matches no connection by ALLOW and each by DENY, whatever it
// compares with.
func TestRequestsAloneAreNoConnections(t *testing.T) {
	target := &Target{Service: mesh.MustServiceName("web"), Port: 80}
	conn := &Request{Source: Source{Identity: id("default", "front"), IP: netip.MustParseAddr("10.1.2.3")}}
	fields := []string{"hosts: [web]", "notHosts: [api]", "methods: [GET]", "notMethods: [PUT]", "paths: [/a]", "notPaths: [/b]", "ports: ['80']", "notPorts: ['81']"}
	for i, f := range fields {
		for j, g := range fields[i:] {
			op := f
			if j > 0 {
				op += ", " + g
			}
			connections := strings.HasPrefix(strings.ToLower(f), "ports") || strings.HasPrefix(f, "notPorts")
			m := authorizing(t, "rules: [{to: [{operation: {"+op+"}}]}]")
			if got := m.Authorize(target, conn).Allow; got != connections {
				t.Errorf("ALLOW %s: %v", op, got)
			}
			m = authorizing(t, "action: DENY\nrules: [{to: [{operation: {"+op+"}}]}]")
			if m.Authorize(target, conn).Allow {
				t.Errorf("DENY %s does not match a connection", op)
			}
		}
	}
}

// TestSourcesDecideInPairs: each field of a source decides on its own, and beside others that it may stand with; those that may not are refused.
func TestSourcesDecideInPairs(t *testing.T) {
	target := &Target{Service: mesh.MustServiceName("web"), Port: 80}
	r := &Request{Source: Source{Identity: id("default", "front"), IP: netip.MustParseAddr("10.1.2.3")}, Method: "GET", Path: "/", Authority: "web",
		Auth: &Auth{Principal: "iss/alice"}, Header: func(string) []string { return nil }}
	fields := []struct{ is, isNot string }{
		{"principals: [cluster.local/ns/default/sa/front*]", "principals: [cluster.local/ns/default/sa/fronts*]"}, // the star stands for nothing, too
		{"notPrincipals: ['*xtest.mesh/ns/default/sa/front']", "notPrincipals: ['*test.mesh/ns/default/sa/front']"},
		{"namespaces: [default]", "namespaces: [other]"},
		{"notNamespaces: [other]", "notNamespaces: [default]"},
		{"trustDomains: [test.mesh]", "trustDomains: [other]"},
		{"notTrustDomains: [other]", "notTrustDomains: [test.mesh]"},
		{"requestPrincipals: [iss/alice]", "requestPrincipals: [iss/bob]"},
		{"notRequestPrincipals: [iss/bob]", "notRequestPrincipals: [iss/alice]"},
		{"ipBlocks: [10.1.2.3]", "ipBlocks: [10.1.2.4]"},
		{"notIpBlocks: [10.1.2.4]", "notIpBlocks: [10.1.2.3]"},
		{"remoteIpBlocks: [10.1.2.3]", "remoteIpBlocks: [10.1.2.4]"},
		{"notRemoteIpBlocks: [10.1.2.4]", "notRemoteIpBlocks: [10.1.2.3]"},
		{"serviceAccounts: [front]", "serviceAccounts: [back]"},
		{"notServiceAccounts: [back]", "notServiceAccounts: [front]"},
	}
	account := func(s string) bool { return strings.Contains(s, "erviceAccounts") }
	who := func(s string) bool {
		return strings.HasPrefix(s, "principals") || strings.HasPrefix(s, "notPrincipals") || strings.Contains(s, "amespaces")
	}
	const doc = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec: {rules: [{from: [{source: {%s}}]}]}\n"
	for i, f := range fields {
		for j := range 4 { // itself, and those that stand near
			g := fields[(i+j)%len(fields)]
			src := []string{f.is, f.isNot, f.is + ", " + g.isNot}
			want := []bool{true, false, false}
			switch {
			case j == 0:
				src, want = src[:2], want[:2]
			case account(f.is) && who(g.is) || account(g.is) && who(f.is):
				if _, err := Parse("p.yaml", fmt.Appendf(nil, doc, f.is+", "+g.is)); err == nil || !strings.Contains(err.Error(), "goes without principals and namespaces") {
					t.Errorf("%s, %s: %v", f.is, g.is, err)
				}
				continue
			default:
				src, want = append(src, f.is+", "+g.is), append(want, true)
			}
			for k, s := range src {
				m := authorizing(t, "rules: [{from: [{source: {"+s+"}}]}]")
				if got := m.Authorize(target, r).Allow; got != want[k] {
					t.Errorf("%s: %v", s, got)
				}
			}
		}
	}
}

// TestOnlyAllowAndDenyDecide: a policy that asks others, watches or is tried neither allows nor denies.
func TestOnlyAllowAndDenyDecide(t *testing.T) {
	const provider = "apiVersion: traffic.meshagent.io/v1\nkind: ExtensionProvider\nmetadata: {name: p}\nspec: {envoyExtAuthzHttp: {service: authz, port: 80}}\n---\n"
	const head = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x%s}\nspec: {action: %s}\n"
	target, other := &Target{Service: mesh.MustServiceName("web")}, &Target{Service: mesh.MustServiceName("authz")}
	r := &Request{Source: Source{Identity: id("default", "front")}, Method: "GET", Path: "/", Authority: "web"}
	for _, x := range []struct {
		annotation, spec string
		asks, watches    bool
		remote           bool
		audit            string
		differs          bool
	}{
		{"", "CUSTOM, provider: {name: p}, rules: [{}]", true, false, false, "", false},
		{"", "AUDIT, rules: [{}]", false, true, false, "security.istio.io/AuthorizationPolicy/default/x", false},
		{"", "AUDIT, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/front]}}]}]", false, true, false, "security.istio.io/AuthorizationPolicy/default/x", false},
		{"", "AUDIT, rules: [{from: [{source: {principals: [test.mesh/ns/default/sa/front]}}]}]", false, true, false, "security.istio.io/AuthorizationPolicy/default/x", false},
		{"", "AUDIT, rules: [{from: [{source: {namespaces: [other]}}]}]", false, true, false, "", false},
		{`, annotations: {istio.io/dry-run: "true"}`, "DENY, rules: [{}]", false, true, false, "", true},
		{`, annotations: {istio.io/dry-run: "true"}`, "ALLOW, rules: []", false, true, false, "", true},
		{`, annotations: {istio.io/dry-run: "true"}`, "ALLOW, rules: [{}]", false, true, false, "", false},
		{`, annotations: {istio.io/dry-run: "false"}`, "ALLOW, rules: [{}]", false, false, false, "", false},
		{"", "ALLOW, rules: [{}, {when: [{key: remote.ip, values: [10.0.0.1]}]}]", false, false, true, "", false},
		{"", "ALLOW, rules: [{}, {from: [{source: {remoteIpBlocks: [10.0.0.1]}}]}]", false, false, true, "", false},
		{"", "ALLOW, rules: [{}, {from: [{source: {notRemoteIpBlocks: [10.0.0.1]}}]}]", false, false, true, "", false},
		{"", "ALLOW, rules: [{}, {from: [{source: {remoteIpBlocks: [10.0.0.1], notRemoteIpBlocks: [10.0.0.2]}}]}]", false, false, true, "", false},
	} {
		m := compile(t, provider+fmt.Sprintf(head, x.annotation, x.spec))
		d := m.Authorize(target, r)
		ask, denied := m.Custom(target, r)
		w := m.Watch(target, r, d)
		if !d.Allow || denied != nil || (len(ask) == 1) != x.asks || m.AsksOthers() != x.asks || m.Watches() != x.watches || m.LooksAtRemote() != x.remote || w.Audit != x.audit || w.Differs != x.differs {
			t.Errorf("%s %s: %+v, asks %d, %+v", x.annotation, x.spec, d, len(ask), w)
		}
		if ask, denied := m.Custom(other, r); len(ask) > 0 || denied != nil {
			t.Error("the service that is asked is asked about itself")
		}
	}
}

// TestNoModel: before policy is known nothing passes, and nobody is asked.
func TestNoModel(t *testing.T) {
	var m *Model
	target, r := &Target{Service: mesh.MustServiceName("web")}, &Request{Method: "GET"}
	if d := m.Authorize(target, r); d.Allow || d.Reason != "no policy has been read yet" || m.LooksAtRemote() || m.Watches() || m.AsksOthers() {
		t.Errorf("%+v", d)
	}
}

// TestPoliciesAreListedOnce: also those of several services.
func TestPoliciesAreListedOnce(t *testing.T) {
	m := authorizing(t, "targetRefs: [{kind: Service, name: a}, {kind: Service, name: b}]\nrules: [{}]")
	if all := m.authz.by["default"].allow.all(); len(all) != 1 {
		t.Errorf("listed %d times", len(all))
	}
}

// TestTemplatesMatchPaths: what is no path matches no template.
func TestTemplatesMatchPaths(t *testing.T) {
	for path, want := range map[string]bool{"/": true, "/a/b": true, "": false, "*": false, "a/b": false} {
		if got := matchSegments([]string{"{**}"}, path); got != want {
			t.Errorf("%q: %v", path, got)
		}
	}
}
