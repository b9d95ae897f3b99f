package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// claimRule is a VirtualService with a rule for a condition.
func claimRule(match string) string {
	return fmt.Sprintf("%s  - {match: [%s], directResponse: {status: 200}}\n", atEdge, match)
}

const atEdge = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example.com]
  gateways: [edge]
  http:
`

// TestClaimsRoute: at a gateway claims of a valid token decide where a request goes, as headers do.
func TestClaimsRoute(t *testing.T) {
	user := &Auth{rule: &tokenRule{tokenSpec: tokenSpec{lists: [][]string{{"roles"}}}}, Claims: map[string]any{"sub": "alice", "groups": []any{"dev", "ops"}, "admin": true, "scope": "read write", "roles": "a b", "text": "a b", "https://x.example/t": "1",
		"realm": map[string]any{"role": "admin", "Roles": []any{"x"}}, "empty": []any{}}}
	at := func(kind, name, value string) string {
		return fmt.Sprintf("{%s: {%q: %s}}", kind, ofToken+"claims"+name, value)
	}
	for _, c := range []struct {
		match        string
		user, nobody bool
	}{
		{at("headers", ".sub", "{exact: alice}"), true, false},
		{at("headers", ".sub", "{exact: Alice}"), false, false},
		{at("headers", "[sub]", "{prefix: ali}"), true, false},
		{at("headers", ".sub", "{regex: 'a.*e'}"), true, false},
		{at("headers", ".Sub", "{exact: alice}"), false, false}, // names of claims have a case
		{at("headers", ".sub", "{}"), true, false},
		{at("headers", ".none", "{}"), false, false},
		{at("headers", ".groups", "{exact: ops}"), true, false},
		{at("headers", ".groups", "{exact: 'dev,ops'}"), false, false},
		{at("headers", ".empty", "{}"), false, false},
		{at("headers", ".admin", "{exact: 'true'}"), true, false},
		{at("headers", ".scope", "{exact: write}"), true, false},
		{at("headers", ".roles", "{exact: b}"), true, false},
		{at("headers", ".text", "{exact: b}"), false, false},
		{at("headers", "[https://x.example/t]", "{exact: '1'}"), true, false},
		{at("headers", ".realm.role", "{exact: admin}"), true, false},
		{at("headers", "[realm][Roles]", "{exact: x}"), true, false},
		{at("headers", ".realm", "{}"), false, false}, // is no value
		{at("withoutHeaders", ".groups", "{exact: ops}"), false, true},
		{at("withoutHeaders", ".groups", "{exact: sales}"), true, true},
		{at("withoutHeaders", ".sub", "{}"), false, true},
		{"{headers: {x: {exact: a}, '@request.auth.claims.sub': {exact: alice}}}", true, false},
	} {
		m := tokenModel(t, strings.Replace(gatewayDoc, "NAME", "edge", 1), claimRule(c.match))
		routes := m.gateways[0].Servers[0].HTTP[0].Routes
		for who, want := range map[*Auth]bool{user: c.user, nil: c.nobody} {
			r := bearing("", map[string][]string{"x": {"a"}, "@request.auth.claims.sub": {"alice"}, "@request.auth.claims[sub]": {"alice"}}) // what a header of that name says is nothing
			r.Auth = who
			if got := firstHTTP(routes, r) != nil; got != want {
				t.Errorf("%s with a token %v: %v", c.match, who != nil, got)
			}
			m := &routes[0].Matches[0]
			if ok := !slices.ContainsFunc(m.check(r), func(c condition) bool { return !c.ok }); ok != want {
				t.Errorf("%s: explain says %v of %s", c.match, ok, m)
			}
		}
	}
	m := tokenModel(t, strings.Replace(gatewayDoc, "NAME", "edge", 1), claimRule(at("headers", ".realm.role", "{exact: admin}")))
	if s := m.gateways[0].Servers[0].HTTP[0].Routes[0].Matches[0].String(); s != `claim realm.role "admin"` {
		t.Errorf("it says %s", s)
	}
}

const gatewayDoc = `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: NAME}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}
`

// TestClaimsOfDelegates: a VirtualService without hosts may ask for claims where those that delegate to it are for gateways alone.
func TestClaimsOfDelegates(t *testing.T) {
	leaf := strings.Replace(claimRule("{headers: {'@request.auth.claims.sub': {exact: alice}}}"), "name: shop", "name: leaf", 1)
	leaf = strings.Replace(strings.Replace(leaf, "  hosts: [shop.example.com]\n", "", 1), "  gateways: [edge]\n", "", 1)
	for gateways, want := range map[string]int{"[edge]": 200, "[edge, mesh]": 503} {
		root := strings.Replace(atEdge, "[edge]", gateways, 1) + "  - {delegate: {name: leaf}}\n"
		m := tokenModel(t, strings.Replace(gatewayDoc, "NAME", "edge", 1), leaf, strings.Replace(root, "shop.example.com", "shop", 1))
		got := m.gateways[0].Servers[0].HTTP[0].Routes[0].Action.Direct
		if got == nil || got.Status != want {
			t.Errorf("%s: %+v", gateways, got)
		}
	}
}

// TestClaimsCostNothing: what claims say is compared without memory.
func TestClaimsCostNothing(t *testing.T) {
	a := &Auth{Claims: map[string]any{"groups": []any{"dev", "ops"}, "scope": "read write", "realm": map[string]any{"admin": true}}, rule: &tokenRule{tokenSpec: tokenSpec{lists: [][]string{{"x", "y"}}}}}
	r := &Request{Auth: a}
	var ks []KeyMatch
	for claim, v := range map[string]string{"groups": "ops", "scope": "write", "realm admin": "true"} {
		ks = append(ks, KeyMatch{Claim: strings.Fields(claim), Value: StringMatch{Kind: Exact, Text: v}})
	}
	m := &Match{Headers: ks}
	if n := testing.AllocsPerRun(100, func() {
		if !m.headers(r) {
			t.Fatal("it does not match")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestClaimsWithoutTokens: that nobody takes tokens where a rule asks for claims is told.
func TestClaimsWithoutTokens(t *testing.T) {
	i := newIssuer(t, "https://good.example", "k1")
	rule := claimRule("{withoutHeaders: {'@request.auth.claims.sub': {}}}")
	services := world("ingressgateway 80 gateway istio=ingressgateway")
	for more, want := range map[string]int{taking(i, t, ""): 1, strings.Replace(taking(i, t, ""), "app: web", "istio: ingressgateway", 1): 0} {
		ps, err := Parse("p.yaml", []byte(strings.Replace(gatewayDoc, "NAME", "edge", 1)+"---\n"+rule+"---\n"+more))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range Analyze(td, ps, services) {
			if f.Code == codeNoTokens {
				got = append(got, f.Path+" "+f.Reason)
			}
		}
		if len(got) != want || want > 0 && got[0] != "spec.http[0] asks for claims, and no policy takes tokens at the gateway: there are none" {
			t.Errorf("%q", got)
		}
	}
}
