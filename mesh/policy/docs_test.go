package policy

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/gatewayapi"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

func docs(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestDocsNameEveryField: under the heading of each type stands a table with all its fields, in order, and whether each is
// acted on or refused.
func TestDocsNameEveryField(t *testing.T) {
	text := docs(t)
	rows := map[string][]string{}
	heading := ""
	row := regexp.MustCompile("^\\| `([a-zA-Z0-9]+)` \\| (yes|differs|refused) \\| (.*) \\|$")
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if h, ok := strings.CutPrefix(line, "### "); ok {
			heading, _, _ = strings.Cut(h, " ")
		} else if m := row.FindStringSubmatch(line); m != nil {
			rows[heading] = append(rows[heading], m[1]+" "+strings.Replace(m[2], "differs", "yes", 1))
			if m[2] != "refused" && m[3] == "" {
				t.Errorf("%s.%s: the table does not say what it does", heading, m[1])
			}
		}
	}
	want := map[string][]string{}
	for _, root := range []reflect.Type{reflect.TypeFor[istio.VirtualService](), reflect.TypeFor[istio.Gateway](), reflect.TypeFor[istio.DestinationRule](), reflect.TypeFor[istio.AuthorizationPolicy](), reflect.TypeFor[istio.RequestAuthentication](), reflect.TypeFor[istio.PeerAuthentication](),
		reflect.TypeFor[istio.ServiceEntry](), reflect.TypeFor[istio.Sidecar](),
		reflect.TypeFor[gatewayapi.GatewayClassSpec](), reflect.TypeFor[gatewayapi.GatewaySpec](), reflect.TypeFor[gatewayapi.HTTPRouteSpec](), reflect.TypeFor[gatewayapi.GRPCRouteSpec](), reflect.TypeFor[gatewayapi.TLSRouteSpec](), reflect.TypeFor[gatewayapi.TCPRouteSpec](), reflect.TypeFor[gatewayapi.ReferenceGrantSpec](), reflect.TypeFor[gatewayapi.BackendTLSPolicySpec](), reflect.TypeFor[MeshTrafficPolicy](), reflect.TypeFor[ExtensionProvider](), reflect.TypeFor[Certificate]()} {
		fieldsOf(root, want)
	}
	for name, fields := range want {
		if !slices.Equal(rows[name], fields) {
			t.Errorf("docs/policy.md, ### %s:\n has %v\nwant %v", name, rows[name], fields)
		}
	}
	for name := range rows {
		if want[name] == nil {
			t.Errorf("docs/policy.md has a table of fields under %q, which is no type", name)
		}
	}
}

// fieldsOf gathers the fields of a type and of all that it holds.
func fieldsOf(t reflect.Type, out map[string][]string) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || out[t.Name()] != nil || t.NumField() == 0 || t.Field(0).Tag.Get("yaml") == "" {
		return
	}
	for field := range t.Fields() {
		f, is := field, "yes"
		if f.Type.Kind() == reflect.Struct && f.Type.NumField() == 0 { // Unsupported of Istio, or a refused type of the Gateway API
			is = "refused"
		}
		out[t.Name()] = append(out[t.Name()], f.Tag.Get("yaml")+" "+is)
	}
	for field := range t.Fields() {
		fieldsOf(field.Type, out)
	}
}

func TestDocsNameEveryKind(t *testing.T) {
	text := docs(t)
	for _, k := range kinds {
		if row := fmt.Sprintf("| %s | `%s` | %s |", k.name, k.group, strings.Join(k.versions, ", ")); !strings.Contains(text, row) {
			t.Errorf("docs/policy.md lacks the row %s", row)
		}
	}
}

// TestDocsExamples: every example is accepted, and all of them together make sense.
func TestDocsExamples(t *testing.T) {
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(docs(t), -1)
	if len(blocks) < 5 {
		t.Fatalf("only %d examples", len(blocks))
	}
	var all []mesh.Policy
	for _, b := range blocks {
		ps, err := Parse("docs/policy.md", []byte(b[1]))
		if err != nil {
			t.Errorf("%v\n%s", err, b[1])
		}
		for _, p := range ps {
			p.Created = uint64(len(all) + 1)
			all = append(all, p)
		}
	}
	for _, f := range Analyze(td, all, nil) {
		t.Errorf("%+v", f)
	}
}

// TestDocsExplainEveryCode: docs/analyze.md has a heading for each code, with its name and level, and no other.
func TestDocsExplainEveryCode(t *testing.T) {
	b, err := os.ReadFile("../../docs/analyze.md")
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, m := range regexp.MustCompile("(?m)^### (.*)$").FindAllStringSubmatch(string(b), -1) {
		got = append(got, m[1])
	}
	for id, c := range codes {
		if id != c.name {
			id += ": " + c.name
		}
		want = append(want, fmt.Sprintf("%s (%s)", id, c.level))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("docs/analyze.md explains\n%v\nthere are\n%v", got, want)
	}
}
