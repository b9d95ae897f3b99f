package server_test

import (
	"encoding/json"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/api/apitest"
	"github.com/meshagent/meshagent/agent/api/server"
)

func virtualService(name, host, destination string) string {
	return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: " + name + "}\nspec:\n  hosts: [" + host +
		"]\n  http:\n  - route:\n    - destination: {" + destination + "}\n"
}

func destinationRule(name, host, version string) string {
	return "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: " + name + "}\nspec:\n  host: " + host +
		"\n  subsets:\n  - {name: v2, labels: {version: " + version + "}}\n"
}

// TestWarnings: each step is one file that is applied, or a key that is deleted, on what the steps before left.
func TestWarnings(t *testing.T) {
	const noSubset = `VirtualService/default/web routes to subset "v2" of default/web, which no DestinationRule defines: such calls are answered with 503`
	const unknown = "no host runs default/wbe, which it names is the name right?"
	for name, steps := range map[string][]struct{ do, want string }{
		"all is well": {{virtualService("web", "web", "host: web"), ""}, {destinationRule("web", "web", "v2"), ""}},
		"both at once, in any order": {{virtualService("web", "web", "host: web, subset: v2") + "---\n" + destinationRule("web", "web", "v2"), ""},
			{"DestinationRule/default/web", noSubset}, {virtualService("web", "web", "host: web"), ""}},
		"a subset without rule":                {{virtualService("web", "web", "host: web, subset: v2"), noSubset}, {destinationRule("web", "web", "v2"), ""}},
		"what was wrong before is not said":    {{virtualService("web", "web", "host: web, subset: v2"), noSubset}, {destinationRule("web", "web", "v1"), ""}},
		"but said again of what is written":    {{virtualService("web", "web", "host: web, subset: v2"), noSubset}, {virtualService("web", "web", "host: web, subset: v2"), noSubset}},
		"a subset that nobody has":             {{destinationRule("web", "web", "v9"), `DestinationRule/default/web no instance of default/web has the labels of subset "v2"`}},
		"a destination that nobody runs":       {{virtualService("web", "web", "host: wbe"), "VirtualService/default/web routes to default/wbe, which no host runs is the name right?"}},
		"a host that nobody runs":              {{virtualService("web", "wbe", "host: web"), "VirtualService/default/web " + unknown}},
		"a rule for a host that nobody runs":   {{destinationRule("web", "wbe", "v2"), "DestinationRule/default/web " + unknown}},
		"a second one for the same host":       {{virtualService("a", "web", "host: web"), ""}, {virtualService("b", "web", "host: web"), "VirtualService/default/b default/web has an older VirtualService already: it stays, this one is without effect there"}},
		"it takes over when the first is gone": {{virtualService("a", "web", "host: web"), ""}, {virtualService("b", "web", "host: web"), "VirtualService/default/b default/web has an older VirtualService already: it stays, this one is without effect there"}, {"VirtualService/default/a", ""}},
		"an update keeps its age": {{virtualService("b", "web", "host: web"), ""}, {virtualService("a", "web", "host: web"), "VirtualService/default/a default/web has an older VirtualService already: it stays, this one is without effect there"},
			{virtualService("b", "web", "host: web.default"), ""}},
	} {
		t.Run(name, func(t *testing.T) {
			h := server.New(apitest.New().Config()).Handler(true)
			for i, s := range steps {
				r := request("POST", "/api/v1/policies", s.do)
				if !strings.HasPrefix(s.do, "apiVersion") {
					r = request("DELETE", "/api/v1/policies/networking.istio.io/"+s.do, "")
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				var a api.Applied
				if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || w.Code != 200 {
					t.Fatalf("step %d: %d %s", i+1, w.Code, w.Body)
				}
				var got []string
				for _, p := range a.Warnings {
					got = append(got, strings.TrimSpace(strings.TrimPrefix(p.Subject, "networking.istio.io/")+" "+p.Reason+" "+p.Hint))
				}
				if want := strings.Split(s.want, "\n"); !slices.Equal(got, want) && (s.want != "" || len(got) > 0) {
					t.Errorf("step %d:\n got %q\nwant %q", i+1, got, want)
				}
			}
		})
	}
}
