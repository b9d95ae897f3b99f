package policy

import (
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// TestWatch: policies that only watch decide nothing, and tell what they saw.
func TestWatch(t *testing.T) {
	policy := func(name, dry, spec string) string {
		return "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: " + name + ", annotations: {istio.io/dry-run: \"" + dry + "\"}}\nspec: " + spec + "\n"
	}
	get := &Request{Method: "GET", Path: "/", Source: Source{Identity: id("default", "front")}}
	post := &Request{Method: "POST", Path: "/", Source: get.Source}
	web := &Target{Service: mesh.MustServiceName("web")}
	const audit = "{action: AUDIT, rules: [{to: [{operation: {methods: [POST]}}]}]}"
	const noPost = "{action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]}"
	const onlyGet = "{rules: [{to: [{operation: {methods: [GET]}}]}]}"
	const onlyPost = "{rules: [{to: [{operation: {methods: [POST]}}]}]}"
	for _, c := range []struct {
		name, yaml string
		r          *Request
		allow      bool
		audit      string
		dry        string
	}{
		{"audit, another", policy("a", "false", audit), get, true, "", ""},
		{"audit", policy("a", "false", audit), post, true, "security.istio.io/AuthorizationPolicy/default/a", ""},
		{"audit of what is denied", policy("a", "false", audit) + policy("d", "false", noPost), post, false, "security.istio.io/AuthorizationPolicy/default/a", ""},
		{"a DENY that is tried", policy("d", "true", noPost), post, true, "", "denied"},
		{"a DENY that is tried, another", policy("d", "true", noPost), get, true, "", ""},
		{"an ALLOW that is tried", policy("a", "true", onlyGet), post, true, "", "denied"},
		{"an ALLOW that is tried, what it allows", policy("a", "true", onlyGet), get, true, "", ""},
		{"an ALLOW that is tried beside another", policy("a", "true", onlyPost) + policy("b", "false", onlyGet), post, false, "", "allowed"},
		{"a DENY that is tried beside one in force", policy("a", "true", noPost) + policy("b", "false", noPost), post, false, "", ""},
	} {
		m := compile(t, c.yaml)
		d := m.Authorize(web, c.r)
		w := m.Watch(web, c.r, d)
		dry := ""
		if w.Differs && w.Dry.Allow {
			dry = "allowed"
		} else if w.Differs {
			dry = "denied"
		}
		if d.Allow != c.allow || w.Audit != c.audit || dry != c.dry {
			t.Errorf("%s: %+v, %+v", c.name, d, w)
		}
		if !m.Watches() && (c.audit != "" || c.dry != "") {
			t.Errorf("%s: nobody is told to ask", c.name)
		}
		if n := testing.AllocsPerRun(100, func() { m.Watch(web, c.r, d) }); n != 0 {
			t.Errorf("%s: it allocates %v times", c.name, n)
		}
	}
	if compile(t, policy("d", "false", noPost)).Watches() {
		t.Error("who decides watches")
	}
}
