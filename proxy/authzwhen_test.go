package proxy_test

import (
	"net/http"
	"testing"
)

// TestAuthorizationConditions: what conditions look at is what the called host sees: fields of the request, the calling host, and who called
// first, as the caller's agent and nobody else says.
func TestAuthorizationConditions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.host("a"), w.host("b")
	b.serve("web", nil)
	frontend := a.caller("frontend")
	get := func(header http.Header) int {
		t.Helper()
		r := frontend.request("GET", "web", "/", nil)
		r.Header = header
		return frontend.send(r).StatusCode
	}
	for _, c := range []struct {
		rules string
		want  map[string]int // by the value of X-Tenant
	}{
		{`[{when: [{key: "request.headers[X-Tenant]", values: [acme]}]}]`, map[string]int{"": 403, "acme": 200, "other": 403}},
		{`[{when: [{key: "request.headers[X-Tenant]", notValues: [other]}]}]`, map[string]int{"": 200, "acme": 200, "other": 403}},
		{`[{from: [{source: {serviceAccounts: [frontend]}}], when: [{key: remote.ip, values: [127.0.0.0/8]}]}]`, map[string]int{"": 200}},
		{`[{when: [{key: remote.ip, values: [203.0.113.0/24]}]}]`, map[string]int{"": 403}},
		{`[{when: [{key: source.ip, values: [203.0.113.0/24]}]}]`, map[string]int{"": 403}},
		{`[{when: [{key: destination.ip, values: [127.0.0.1]}, {key: connection.sni, values: [web.default.service.mesh]}]}]`, map[string]int{"": 200}},
		{`[{when: [{key: destination.ip, values: [203.0.113.9]}]}]`, map[string]int{"": 403}},
		{`[{when: [{key: connection.sni, values: [203.0.113.9]}]}]`, map[string]int{"": 403}},
	} {
		w.apply(authorization("ALLOW", "web", c.rules))
		for tenant, want := range c.want {
			h := http.Header{"X-Forwarded-For": {"203.0.113.9"}} // SECURITY 36: a caller cannot say where he is
			if tenant != "" {
				h.Set("X-Tenant", tenant)
			}
			if got := get(h); got != want {
				t.Errorf("%s with %q: %d, want %d", c.rules, tenant, got, want)
			}
		}
	}
	w.apply(authorization("ALLOW", "web", `[{when: [{key: "request.headers[X-Tenant]", values: [acme]}]}]`))
	if got := get(http.Header{"X-Tenant": {"acme", "other"}}); got != 403 {
		t.Errorf("a second value passes: %d", got)
	}
}
