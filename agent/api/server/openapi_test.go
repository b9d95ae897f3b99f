package server_test

import (
	"encoding"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/api/apitest"
	"github.com/meshagent/meshagent/agent/api/server"
	"github.com/meshagent/meshagent/internal/strictyaml"
	"github.com/meshagent/meshagent/mesh"
)

// description is the OpenAPI description, decoded.
type description map[string]any

func readDescription(t testing.TB) description {
	docs, err := strictyaml.Split("openapi.yaml", []byte(api.OpenAPI()))
	if err != nil {
		t.Fatal(err)
	}
	var d description
	if err := json.Unmarshal(docs[0].Root.JSON(), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// at follows keys through maps; a missing one gives an empty map.
func at(v any, keys ...string) map[string]any {
	for _, k := range keys {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	m, _ := v.(map[string]any)
	return m
}

// deref follows a reference within the description.
func (d description) deref(t testing.TB, v any) map[string]any {
	m, _ := v.(map[string]any)
	ref, ok := m["$ref"].(string)
	if !ok {
		return m
	}
	target := at(map[string]any(d), strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
	if target == nil {
		t.Errorf("%s leads nowhere", ref)
	}
	return target
}

func texts(v any) (out []string) {
	l, _ := v.([]any)
	for _, x := range l {
		out = append(out, x.(string))
	}
	return out
}

func set(l []string) []string { return slices.Compact(slices.Sorted(slices.Values(l))) }

func TestOpenAPIHasEveryRoute(t *testing.T) {
	d := readDescription(t)
	if d["openapi"] != "3.1.0" {
		t.Errorf("openapi: %v", d["openapi"])
	}
	described, ids := map[string]map[string]any{}, map[string]bool{}
	for path, ops := range at(map[string]any(d), "paths") {
		for method, op := range at(ops) {
			described[strings.ToUpper(method)+" "+path] = at(op)
			id, _ := at(op)["operationId"].(string)
			if ids[id] || id == "" || at(op)["summary"] == nil {
				t.Errorf("%s %s: operationId %q: each has one of its own, and a summary", method, path, id)
			}
			ids[id] = true
		}
	}
	for _, r := range server.Routes() {
		name := r.Method + " " + r.Path
		op, ok := described[name]
		if !ok {
			t.Errorf("%s is not described", name)
			continue
		}
		delete(described, name)
		var inPath, inQuery []string
		params, _ := op["parameters"].([]any)
		for _, p := range params {
			p := d.deref(t, p)
			switch n := p["name"].(string); p["in"] {
			case "path":
				if inPath = append(inPath, n); p["required"] != true {
					t.Errorf("%s: %s is required", name, n)
				}
			case "query":
				inQuery = append(inQuery, n)
			}
		}
		var vars []string
		for part := range strings.SplitSeq(r.Path, "/") {
			if v, ok := strings.CutPrefix(part, "{"); ok {
				vars = append(vars, strings.TrimSuffix(v, "}"))
			}
		}
		if !slices.Equal(inPath, vars) {
			t.Errorf("%s: in path are %v, described are %v", name, vars, inPath)
		}
		if !slices.Equal(set(inQuery), set(r.Query)) {
			t.Errorf("%s: it takes %v, described are %v", name, r.Query, inQuery)
		}
		if (op["security"] != nil) != r.Auth {
			t.Errorf("%s: it needs an operator: %v, described is %v", name, r.Auth, op["security"])
		}
		if (op["requestBody"] != nil) != r.Body {
			t.Errorf("%s: it takes a body: %v, described is %v", name, r.Body, op["requestBody"])
		}
		if d.deref(t, at(op, "responses")["default"])["description"] == nil {
			t.Errorf("%s: its errors are not described", name)
		}
		if v := at(op, "responses", "200", "headers"); slices.Contains(r.Query, "after") != (v["Mesh-Version"] != nil) {
			t.Errorf("%s: it can wait, and its Mesh-Version is described: %v", name, v)
		}
	}
	for name := range described {
		t.Errorf("%s is described, but no route", name)
	}
}

// wireTypes is every struct of package api that travels, by the name of its schema; TestEveryWireTypeIsListed holds it to the source.
var wireTypes = map[string]any{
	"Answer": api.Answer{}, "Applied": api.Applied{}, "Apply": api.Apply{}, "Authority": api.Authority{}, "Federate": api.Federate{}, "Federation": api.Federation{}, "Capture": api.Capture{}, "Captured": api.Captured{}, "TokenKey": api.TokenKey{}, "CA": api.CA{}, "CARoot": api.CARoot{}, "Certificate": api.Certificate{}, "Check": api.Check{},
	"Error": api.Error{}, "Instance": api.Instance{}, "Key": api.Key{}, "Keyring": api.Keyring{}, "Live": api.Live{}, "Local": api.Local{}, "Locals": api.Locals{}, "Login": api.Login{},
	"Maintenance": api.Maintenance{}, "Members": api.Members{}, "NewToken": api.NewToken{}, "Outcome": api.Outcome{}, "Peer": api.Peer{},
	"Policies": api.Policies{}, "Policy": api.Policy{}, "Problem": api.Problem{}, "Ready": api.Ready{}, "Revocation": api.Revocation{}, "Revoke": api.Revoke{}, "Root": api.Root{},
	"Service": api.Service{}, "Services": api.Services{}, "Status": api.Status{}, "Store": api.Store{}, "TTL": api.TTL{},
	"Token": api.Token{}, "TokenSpec": api.TokenSpec{}, "Tokens": api.Tokens{}, "Write": api.Write{},
	"APIToken": api.APIToken{}, "APITokenSpec": api.APITokenSpec{}, "APITokens": api.APITokens{}, "NewAPIToken": api.NewAPIToken{}, "Whoami": api.Whoami{},
	// of package mesh
	"Locality": mesh.Locality{}, "Node": mesh.Node{}, "PolicyKey": mesh.PolicyKey{},
	"Condition": mesh.Condition{}, "ListenerStatus": mesh.ListenerStatus{}, "MessageType": mesh.MessageType{}, "ParentRef": mesh.ParentRef{}, "ParentStatus": mesh.ParentStatus{}, "PolicyMessage": mesh.PolicyMessage{},
	"PolicyStatus": mesh.PolicyStatus{},
}

// requests are the types that are read strictly.
var requests = []string{"APITokenSpec", "Apply", "Authority", "Federate", "Maintenance", "PolicyKey", "Revoke", "TTL", "TokenSpec", "Write"}

// enums is every type that is a string of a few words.
var enums = map[string][]string{
	"BundleFormat": words([]api.BundleFormat{api.PEM, api.SPIFFE}), "Code": words(api.Codes()), "Consistency": words([]api.Consistency{api.Linearizable, api.Stale}),
	"Health": names[mesh.Health](), "NodeStatus": names[mesh.Status](), "Protocol": names[mesh.Protocol](),
}

// enumOf is the schema of an enum's type.
var enumOf = map[reflect.Type]string{reflect.TypeFor[api.Code](): "Code", reflect.TypeFor[api.Consistency](): "Consistency", reflect.TypeFor[api.BundleFormat](): "BundleFormat",
	reflect.TypeFor[mesh.Health](): "Health", reflect.TypeFor[mesh.Status](): "NodeStatus", reflect.TypeFor[mesh.Protocol](): "Protocol"}

func words[T ~string](l []T) (out []string) {
	for _, x := range l {
		out = append(out, string(x))
	}
	return set(out)
}

func names[T interface {
	~uint8
	fmt.Stringer
}]() (out []string) {
	for i := T(0); !strings.HasPrefix(i.String(), "unknown("); i++ {
		out = append(out, i.String())
	}
	return set(out)
}

func TestEveryWireTypeIsListed(t *testing.T) {
	for _, file := range []string{"../api.go", "../errors.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.TypeSpec); ok && s.Name.IsExported() {
				if _, isStruct := s.Type.(*ast.StructType); isStruct && wireTypes[s.Name.Name] == nil {
					t.Errorf("%s: %s is not among wireTypes", file, s.Name.Name)
				} else if !isStruct && enums[s.Name.Name] == nil {
					t.Errorf("%s: %s is not among enums", file, s.Name.Name)
				}
			}
			return true
		})
	}
}

func TestOpenAPIHasEveryField(t *testing.T) {
	d := readDescription(t)
	schemas := maps.Clone(at(map[string]any(d), "components", "schemas"))
	for name, v := range wireTypes {
		s := at(schemas, name)
		delete(schemas, name)
		if s == nil || s["type"] != "object" {
			t.Errorf("%s has no schema", name)
			continue
		}
		if open := s["additionalProperties"] == nil; open == slices.Contains(requests, name) {
			t.Errorf("%s: what is read has additionalProperties: false, and nothing else has", name)
		}
		props := maps.Clone(at(s, "properties"))
		var required []string
		for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
			if f.Anonymous {
				continue
			}
			field, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
			if opts == "" {
				required = append(required, field)
			}
			if want, got := schemaOf(f.Type), shape(props[field]); want != got {
				t.Errorf("%s.%s: its type is %s, described is %s", name, field, want, got)
			}
			delete(props, field)
		}
		for field := range props {
			t.Errorf("%s.%s is described, but no field", name, field)
		}
		if got := texts(s["required"]); !slices.Equal(set(got), set(required)) {
			t.Errorf("%s: required are %v, described are %v", name, required, got)
		}
	}
	for name, want := range enums {
		if got := set(texts(at(schemas, name)["enum"])); !slices.Equal(got, want) {
			t.Errorf("%s: it has %v, described are %v", name, want, got)
		}
		delete(schemas, name)
	}
	for name := range schemas {
		t.Errorf("%s is described, but no type", name)
	}
}

// schemaOf returns a type's schema in short.
func schemaOf(t reflect.Type) string {
	if n, ok := enumOf[t]; ok {
		return "ref " + n
	}
	switch {
	case t == reflect.TypeFor[time.Time]():
		return "string date-time"
	case reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()), t.Kind() == reflect.String:
		return "string"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return schemaOf(t.Elem())
	case reflect.Bool:
		return "boolean"
	case reflect.Int:
		return "integer"
	case reflect.Uint16, reflect.Uint64:
		return "integer from 0"
	case reflect.Slice:
		return "array of " + schemaOf(t.Elem())
	case reflect.Map:
		return "object of " + schemaOf(t.Elem())
	case reflect.Struct:
		return "ref " + t.Name()
	}
	return "unknown " + t.String()
}

// shape returns a schema of the description in short.
func shape(v any) string {
	s := at(v)
	if ref, ok := s["$ref"].(string); ok {
		return "ref " + strings.TrimPrefix(ref, "#/components/schemas/")
	}
	switch s["type"] {
	case "array":
		return "array of " + shape(s["items"])
	case "object":
		return "object of " + shape(s["additionalProperties"])
	case "integer":
		if s["minimum"] == 0.0 {
			return "integer from 0"
		}
	case nil:
		return "nothing"
	}
	if f, ok := s["format"]; ok {
		return fmt.Sprint(s["type"], " ", f)
	}
	return fmt.Sprint(s["type"])
}

func TestEveryReferenceLeadsSomewhere(t *testing.T) {
	d := readDescription(t)
	used := map[string]bool{}
	var walk func(v any)
	walk = func(v any) {
		switch x := v.(type) {
		case map[string]any:
			if ref, ok := x["$ref"].(string); ok {
				d.deref(t, x)
				used[ref] = true
			}
			for _, y := range x {
				walk(y)
			}
		case []any:
			for _, y := range x {
				walk(y)
			}
		}
	}
	walk(map[string]any(d))
	for _, part := range []string{"schemas", "parameters", "headers", "responses"} {
		for name := range at(map[string]any(d), "components", part) {
			if !used["#/components/"+part+"/"+name] {
				t.Errorf("components.%s.%s: nobody uses it", part, name)
			}
		}
	}
}

// conforms says where a value differs from its schema.
func (d description) conforms(t testing.TB, v, schema any, path string) (bad []string) {
	s := d.deref(t, schema)
	wrong := func(format string, args ...any) { bad = append(bad, path+": "+fmt.Sprintf(format, args...)) }
	kind := map[string]string{"<nil>": "null", "string": "string", "bool": "boolean", "float64": "number", "[]interface {}": "array",
		"map[string]interface {}": "object"}[fmt.Sprintf("%T", v)]
	if n, ok := v.(float64); ok && n == float64(int64(n)) {
		kind = "integer"
	}
	if s["type"] != nil && s["type"] != kind {
		wrong("is of type %s, not %v", kind, s["type"])
		return bad
	}
	switch x := v.(type) {
	case string:
		if e := texts(s["enum"]); e != nil && !slices.Contains(e, x) {
			wrong("%q is not one of %v", x, e)
		}
		if s["format"] == "date-time" {
			if _, err := time.Parse(time.RFC3339, x); err != nil {
				wrong("%v", err)
			}
		}
	case []any:
		for i, y := range x {
			bad = append(bad, d.conforms(t, y, s["items"], fmt.Sprintf("%s[%d]", path, i))...)
		}
	case map[string]any:
		for _, r := range texts(s["required"]) {
			if _, ok := x[r]; !ok {
				wrong("%s is missing", r)
			}
		}
		for k, y := range x {
			p := at(s, "properties")[k]
			if p == nil {
				p = s["additionalProperties"]
			}
			if p == nil {
				wrong("%s is not described", k)
				continue
			}
			bad = append(bad, d.conforms(t, y, p, path+"."+k)...)
		}
	}
	return bad
}

// samples is a call of each route that works on a Fake, in this order.
var samples = []struct{ method, target, mediaType, body, route string }{
	{"GET", "/metrics", "", "", "/metrics"},
	{"GET", "/api/v1/openapi.yaml", "", "", "/api/v1/openapi.yaml"},
	{"GET", "/api/v1/ready", "", "", "/api/v1/ready"},
	{"GET", "/api/v1/members?after=0", "", "", "/api/v1/members"},
	{"GET", "/api/v1/services?after=0&wait=1s", "", "", "/api/v1/services"},
	{"GET", "/api/v1/services/default/web", "", "", "/api/v1/services/{namespace}/{name}"},
	{"PUT", "/api/v1/local/services", "application/yaml", "{name: web, port: 80}", "/api/v1/local/services"},
	{"PUT", "/api/v1/local/services/default/web/maintenance", "application/json", `{"on":true,"reason":"new disk"}`, "/api/v1/local/services/{namespace}/{id}/maintenance"},
	{"PUT", "/api/v1/local/services/default/web/checks/alive", "application/json", `{"health":"warning"}`, "/api/v1/local/services/{namespace}/{id}/checks/{check}"},
	{"GET", "/api/v1/local/services", "", "", "/api/v1/local/services"},
	{"DELETE", "/api/v1/local/services/default/web", "", "", "/api/v1/local/services/{namespace}/{id}"},
	{"POST", "/api/v1/policies", "application/yaml", webRoute, "/api/v1/policies"},
	{"GET", "/api/v1/policies?kind=vs&namespace=default&consistency=linearizable&status=true", "", "", "/api/v1/policies"},
	{"GET", "/api/v1/policies/networking.istio.io/VirtualService/default/web?status=true", "", "", "/api/v1/policies/{group}/{kind}/{namespace}/{name}"},
	{"GET", "/api/v1/live?index=11&wait=1s", "", "", "/api/v1/live"},
	{"GET", "/api/v1/status", "", "", "/api/v1/status"},
	{"DELETE", "/api/v1/policies/networking.istio.io/VirtualService/default/web?index=11", "", "", "/api/v1/policies/{group}/{kind}/{namespace}/{name}"},
	{"GET", "/api/v1/keyring?version=1&wait=1s", "", "", "/api/v1/keyring"},
	{"POST", "/api/v1/keyring/rotate", "", "", "/api/v1/keyring/rotate"},
	{"GET", "/api/v1/ca", "", "", "/api/v1/ca"},
	{"GET", "/api/v1/ca/bundle", "", "", "/api/v1/ca/bundle"},
	{"GET", "/api/v1/ca/bundle?format=spiffe", "", "", "/api/v1/ca/bundle"},
	{"GET", "/api/v1/capture", "", "", "/api/v1/capture"},
	{"POST", "/api/v1/ca/rotate", "", "", "/api/v1/ca/rotate"},
	{"POST", "/api/v1/ca/federation", "application/json", `{"trustDomain":"other.mesh","bundle":"PEM"}`, "/api/v1/ca/federation"},
	{"POST", "/api/v1/ca/authority", "application/json", `{"own":true}`, "/api/v1/ca/authority"},
	{"POST", "/api/v1/ca/revoke", "application/json", `{"node":"three","reason":"stolen"}`, "/api/v1/ca/revoke"},
	{"POST", "/api/v1/tokens", "application/json", `{"ttl":"1h"}`, "/api/v1/tokens"},
	{"GET", "/api/v1/tokens", "", "", "/api/v1/tokens"},
	{"DELETE", "/api/v1/tokens/first", "", "", "/api/v1/tokens/{id}"},
	{"POST", "/api/v1/apitokens", "application/json", `{"name":"deploy","scopes":["write:policies/shop"],"ttl":"1h"}`, "/api/v1/apitokens"},
	{"GET", "/api/v1/apitokens", "", "", "/api/v1/apitokens"},
	{"DELETE", "/api/v1/apitokens/admin", "", "", "/api/v1/apitokens/{id}"},
	{"GET", "/api/v1/whoami", "", "", "/api/v1/whoami"},
	{"GET", "/api/v1/login", "", "", "/api/v1/login"},
	{"GET", "/api/v1/dns?name=web.service.mesh&type=A", "", "", "/api/v1/dns"},
	{"GET", "/api/v1/store/snapshot", "", "", "/api/v1/store/snapshot"},
	{"PUT", "/api/v1/store/snapshot", "application/octet-stream", "a backup", "/api/v1/store/snapshot"},
	{"POST", "/api/v1/leave", "", "", "/api/v1/leave"},
}

const webRoute = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - route:
    - destination: {host: web, subset: v2}
`

// TestAnswersAreAsDescribed calls every route on an agent of a mesh, and what needs no mesh on one that knows nothing.
func TestAnswersAreAsDescribed(t *testing.T) {
	d := readDescription(t)
	f := apitest.New()
	f.Update(func(s *apitest.State) {
		s.Problems = []api.Problem{{Subject: "file", Reason: "reason", Hint: "hint"}}
		s.Locals = []api.Local{{Service: mesh.MustServiceName("web"), ID: "web", Checks: []api.Check{{Name: "alive", Since: time.Now()}}}}
	})
	cfg := f.Config()
	cfg.Login = &api.Login{Issuer: "https://login.example", ClientID: "meshagent", Scopes: []string{"openid"}}
	cfg.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		fmt.Fprintln(w, "up 1")
	})
	h := server.New(cfg).Handler(true)
	left := map[string]bool{}
	for _, r := range server.Routes() {
		left[r.Method+" "+r.Path] = true
	}
	for _, c := range samples {
		delete(left, c.method+" "+c.route)
		d.call(t, h, c.method, c.target, c.mediaType, c.body, c.route)
		if c.method == "PUT" && c.target == "/api/v1/local/services" { // gives the service its check back
			f.Update(func(s *apitest.State) { s.Locals[0].Checks = []api.Check{{Name: "alive"}} })
		}
	}
	for r := range left {
		t.Errorf("%s is not called", r)
	}

	f.Update(func(s *apitest.State) {
		*s = apitest.State{Pending: []string{"policy"}, Status: api.Status{Store: &api.Store{}}}
	})
	for _, target := range []string{"ready", "status", "members", "services", "local/services", "policies", "policies?consistency=linearizable",
		"live?index=1", "tokens", "dns?name=x"} {
		path, _, _ := strings.Cut(target, "?")
		d.call(t, h, "GET", "/api/v1/"+target, "", "", "/api/v1/"+path)
	}
}

func (d description) call(t *testing.T, h http.Handler, method, target, mediaType, body, route string) {
	t.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Header.Set("Content-Type", mediaType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	resp := at(map[string]any(d), "paths", route, strings.ToLower(method), "responses", fmt.Sprint(w.Code))
	if resp == nil {
		t.Errorf("%s %s: answer %d is not described: %s", method, target, w.Code, w.Body)
		return
	}
	content := at(resp, "content")
	if len(content) == 0 {
		if w.Body.Len() > 0 || w.Code != http.StatusNoContent {
			t.Errorf("%s %s: %d %s", method, target, w.Code, w.Body)
		}
		return
	}
	schema := at(content, w.Header().Get("Content-Type"), "schema")
	if schema == nil {
		t.Errorf("%s %s: content type %q is not described", method, target, w.Header().Get("Content-Type"))
		return
	}
	if w.Header().Get("Content-Type") != "application/json" {
		return
	}
	var v any
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
		t.Errorf("%s %s: %v", method, target, err)
	}
	for _, bad := range d.conforms(t, v, schema, "answer") {
		t.Errorf("%s %s: %s", method, target, bad)
	}
}
