package server_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/api/apitest"
	"github.com/meshagent/meshagent/agent/api/server"
	"github.com/meshagent/meshagent/mesh/policy"
)

// TestWholeSentences: what bad requests get, word for word.
func TestWholeSentences(t *testing.T) {
	h := server.New(apitest.New().Config()).Handler(true)
	const asJSON, asYAML = "Content-Type: application/json", "Content-Type: application/yaml"
	for _, c := range []struct {
		method, target, header, body string
		code                         api.Code
		want                         string
	}{
		{"GET", "/api/v1/nodes", "", "", api.CodeNotFound, "there is nothing at \"/api/v1/nodes\"\nwhat there is says /api/v1/openapi.yaml"},
		{"PATCH", "/api/v1/policies", "", "", api.CodeNotAllowed, "\"/api/v1/policies\" does not take \"PATCH\"\nit takes GET, HEAD, POST"},
		{"POST", "/api/v1/leave", "", "x", api.CodeTooLarge, "this call takes no body"},

		{"GET", "/api/v1/services?affter=1", "", "", api.CodeInvalid, "query: unknown parameter \"affter\"\nthis route takes after, wait"},
		{"GET", "/api/v1/status?x", "", "", api.CodeInvalid, "query: unknown parameter \"x\"\nthis route takes none"},
		{"GET", "/api/v1/services?after=1&after=2", "", "", api.CodeInvalid, "query: parameter after is there twice"},
		{"GET", "/api/v1/services?after=1;wait=1s", "", "", api.CodeInvalid, "query: invalid semicolon separator in query"},
		{"GET", "/api/v1/services?after=%zz", "", "", api.CodeInvalid, "query: invalid URL escape \"%zz\""},
		{"GET", "/api/v1/services?after=-1", "", "", api.CodeInvalid, "query: after=\"-1\" is not a number from 0 to 18446744073709551615"},
		{"GET", "/api/v1/services?after=18446744073709551616", "", "", api.CodeInvalid, "query: after=\"18446744073709551616\" is not a number from 0 to 18446744073709551615"},
		{"GET", "/api/v1/services?after=", "", "", api.CodeInvalid, "query: after=\"\" is not a number from 0 to 18446744073709551615"},
		{"GET", "/api/v1/services?after=1&wait=61s", "", "", api.CodeInvalid, "query: wait=\"61s\" is not a time of up to 1m0s\nwrite 30s or 500ms"},
		{"GET", "/api/v1/services?after=1&wait=30", "", "", api.CodeInvalid, "query: wait=\"30\" is not a time of up to 1m0s\nwrite 30s or 500ms"},
		{"GET", "/api/v1/services?after=1&wait=-1s", "", "", api.CodeInvalid, "query: wait=\"-1s\" is not a time of up to 1m0s\nwrite 30s or 500ms"},
		{"GET", "/api/v1/services?after=1&wait=99999999999999999999h", "", "", api.CodeInvalid, "query: wait=\"99999999999999999999h\" is not a time of up to 1m0s\nwrite 30s or 500ms"},
		{"GET", "/api/v1/services?wait=1s", "", "", api.CodeInvalid, "query: wait needs after"},
		{"GET", "/api/v1/services/default/Web", "", "", api.CodeInvalid, "invalid name: service name \"Web\": character 'W' is not allowed here: use a-z, 0-9 and inner hyphens"},
		{"GET", "/api/v1/services/default/wbe", "", "", api.CodeNotFound, "no host runs a service default/wbe\nGET /api/v1/services lists what there is"},
		{"GET", "/api/v1/live", "", "", api.CodeInvalid, "query: index is missing\ngive the index that a write answered with"},
		{"GET", "/api/v1/live?index=x", "", "", api.CodeInvalid, "query: index=\"x\" is not a number from 0 to 18446744073709551615"},
		{"GET", "/api/v1/live?index=1&wait=0s", "", "", api.CodeInvalid, "query: wait=\"0s\" is not a time of up to 1m0s\nwrite 30s or 500ms"},
		{"GET", "/api/v1/dns", "", "", api.CodeInvalid, "query: name=\"\" is not a name of 1 to 255 characters\ngive ?name=web.service.mesh"},
		{"GET", "/api/v1/policies?kind=pod", "", "", api.CodeInvalid, "query: kind=\"pod\" is not known\nkinds are " + strings.Join(policy.Kinds(), ", ")},
		{"GET", "/api/v1/policies?namespace=A", "", "", api.CodeInvalid, "query: invalid name: namespace \"A\": character 'A' is not allowed here: use a-z, 0-9 and inner hyphens"},
		{"GET", "/api/v1/policies?consistency=strong", "", "", api.CodeInvalid, "query: consistency=\"strong\" is neither stale nor linearizable"},
		{"GET", "/api/v1/policies?consistency=linearizable&after=1", "", "", api.CodeInvalid, "query: only stale reads can wait"},
		{"GET", "/api/v1/policies/g/k/n/x", "", "", api.CodeNotFound, "there is no policy g/k/n/x"},
		{"DELETE", "/api/v1/policies/g/k/n/x?index=a", "", "", api.CodeInvalid, "query: index=\"a\" is not a number from 0 to 18446744073709551615"},
		{"DELETE", "/api/v1/policies/g/k/n/x?dryRun=1", "", "", api.CodeInvalid, "query: dryRun=\"1\" is neither true nor false"},
		{"DELETE", "/api/v1/policies/g/k/n/x", "", "", api.CodeNotFound, "g/k/n/x: no such policy"},

		{"POST", "/api/v1/policies", "Content-Type: text/html", "x", api.CodeInvalid, "header Content-Type: \"text/html\" is not what goes here\nsend application/json or application/yaml"},
		{"POST", "/api/v1/policies", "Content-Type: a/b; c", "x", api.CodeInvalid, "header Content-Type \"a/b; c\": mime: invalid media parameter"},
		{"POST", "/api/v1/policies", asJSON, "", api.CodeInvalid, "body: the JSON ends too early"},
		{"POST", "/api/v1/policies", asJSON, "\xff", api.CodeInvalid, "body: it is not UTF-8"},
		{"POST", "/api/v1/policies", asJSON, "{", api.CodeInvalid, "body: the JSON ends too early"},
		{"POST", "/api/v1/policies", asJSON, "[]", api.CodeInvalid, "body: an object is needed here"},
		{"POST", "/api/v1/policies", asJSON, "null", api.CodeInvalid, "body: an object is needed here"},
		{"POST", "/api/v1/policies", asJSON, "{}", api.CodeInvalid, "body: writes: it is missing"},
		{"POST", "/api/v1/policies", asJSON, `{"writes":[]} {}`, api.CodeInvalid, "body: there is more behind the JSON value"},
		{"POST", "/api/v1/policies", asJSON, `{"writes":[]`, api.CodeInvalid, "body: the JSON ends too early"},
		{"POST", "/api/v1/policies", asJSON, `{"writes":[]}`, api.CodeInvalid, "0 changes in one call: 1 to 1000 are possible"},
		{"POST", "/api/v1/policies", asJSON, `{"writes":[` + strings.Repeat("{},", 1000) + `{}]}`, api.CodeInvalid, "body: writes: more than 1000"},
		{"POST", "/api/v1/policies", asJSON, `{"writes":null}`, api.CodeInvalid, "body: writes: a list is needed here"},
		{"POST", "/api/v1/policies", asJSON, `{"Writes":[]}`, api.CodeInvalid, "body: Writes: unknown field\nfields are writes, dryRun, requestId"},
		{"POST", "/api/v1/policies", asJSON, `{"writes":[],"writes":[]}`, api.CodeInvalid, "body: writes: it is there twice"},
		{"POST", "/api/v1/policies", asJSON, `{"writes":[{"sorce":"x"}]}`, api.CodeInvalid, "body: writes[0].sorce: unknown field\nfields are source, delete, index"},
		{"POST", "/api/v1/policies", asJSON, `{"writes":[{"source":1}]}`, api.CodeInvalid, "body: writes[0].source: 1 is not a string"},
		{"POST", "/api/v1/policies", asJSON, `{"writes":[{"source":null}]}`, api.CodeInvalid, "body: writes[0].source: null is not a string"},
		{"POST", "/api/v1/policies", asJSON, `{"writes":[{"index":-1}]}`, api.CodeInvalid, "body: writes[0].index: -1 is not a whole number that is not negative"},
		{"POST", "/api/v1/policies", asJSON, `{"writes":[{"delete":{"kind":"VirtualService","name":"a","namespace":"b"}}]}`, api.CodeInvalid, "body: writes[0].delete.group: it is missing"},
		{"POST", "/api/v1/policies", asJSON, `{"writes":[],"dryRun":"yes"}`, api.CodeInvalid, `body: dryRun: "yes" is not true or false`},
		{"POST", "/api/v1/policies", asJSON, `{"writes":[{}],"requestId":"` + strings.Repeat("x", 65) + `"}`, api.CodeInvalid, "body: requestId: more than 64 bytes"},
		{"POST", "/api/v1/policies", asJSON, `{"writes":[{}]}`, api.CodeInvalid, "writes[0]: either source or delete is needed"},
		{"POST", "/api/v1/policies", asJSON, `{"writes":[{"source":"a: b"},{}]}`, api.CodeInvalid, "writes[0].source:1: a: unknown field; it is one of apiVersion, kind, metadata, spec, status\nwrites[1]: either source or delete is needed"},
		{"POST", "/api/v1/policies", asJSON, `{"writes":[x]}`, api.CodeInvalid, "body: invalid character 'x' looking for beginning of value"},
		{"POST", "/api/v1/policies", asYAML, "", api.CodeInvalid, "body: holds no resource"},
		{"POST", "/api/v1/policies", asYAML, strings.Replace(webRoute, "subset", "subst", 1), api.CodeInvalid, `body:8: VirtualService "web": spec.http[0].route[0].destination.subst: unknown field; did you mean "subset"?`},
		{"POST", "/api/v1/policies?dryRun=maybe", asYAML, webRoute, api.CodeInvalid, "query: dryRun=\"maybe\" is neither true nor false"},

		{"PUT", "/api/v1/local/services/a/b/maintenance", asJSON, `{"reason":"x"}`, api.CodeInvalid, "body: on: it is missing"},
		{"PUT", "/api/v1/local/services/a/b/maintenance", asYAML, `on: true`, api.CodeInvalid, "header Content-Type: \"application/yaml\" is not what goes here\nsend application/json"},
		{"PUT", "/api/v1/local/services/a/b/maintenance", asJSON, `{"on":true}`, api.CodeNotFound, "no service a/b on this host"},
		{"PUT", "/api/v1/local/services/a/b/checks/c", asJSON, `{"output":"fine"}`, api.CodeInvalid, "body: health: it is missing"},
		{"PUT", "/api/v1/local/services/a/b/checks/c", asJSON, `{"health":"good"}`, api.CodeInvalid, "body: health: health \"good\" is not one of passing, warning, critical, maintenance"},
		{"PUT", "/api/v1/local/services/a/b/checks/c", asJSON, `{"health":0}`, api.CodeInvalid, "body: health: 0 is not a string"},
		{"PUT", "/api/v1/local/services/a/b/checks/c", asJSON, `{"health":"maintenance"}`, api.CodeInvalid, "body: health: maintenance is no word of an application\nuse passing, warning or critical"},
		{"POST", "/api/v1/tokens", asJSON, `{"ttl":"1d"}`, api.CodeInvalid, "body: ttl: \"1d\" is not a time from 1s to 720h\nwrite 15m"},
		{"POST", "/api/v1/tokens", asJSON, `{"ttl":"721h"}`, api.CodeInvalid, "body: ttl: \"721h\" is not a time from 1s to 720h\nwrite 15m"},
		{"POST", "/api/v1/tokens", asJSON, `{"uses":10001}`, api.CodeInvalid, "body: uses: 10001 is not from 1 to 10000"},
		{"POST", "/api/v1/tokens", asJSON, `{"uses":1.5}`, api.CodeInvalid, "body: uses: 1.5 is not a whole number"},
	} {
		r := request(c.method, c.target, c.body)
		if name, value, ok := strings.Cut(c.header, ": "); ok {
			r.Header.Set(name, value)
		}
		if e := failure(t, h, r); e.Code != c.code || e.Error() != c.want {
			t.Errorf("%s %.80s %.80s\n got %s: %s\nwant %s: %s", c.method, c.target, c.body, e.Code, e.Error(), c.code, c.want)
		}
	}
}

// TestMediaTypes: YAML by all its names, and what curl sends when it is not told.
func TestMediaTypes(t *testing.T) {
	for _, mediaType := range []string{"", "application/x-www-form-urlencoded", "application/yaml", "application/x-yaml", "text/yaml; charset=utf-8"} {
		f := apitest.New()
		h := server.New(f.Config()).Handler(true)
		for _, c := range []struct {
			query  string
			stored int
		}{{"?dryRun=true", 0}, {"", 2}} {
			r := request("POST", "/api/v1/policies"+c.query, webRoute+"---\n"+webSubsets)
			if mediaType != "" {
				r.Header.Set("Content-Type", mediaType)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			var a api.Applied
			if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || w.Code != http.StatusOK || len(a.Outcomes) != 2 || len(f.Load().Policies) != c.stored {
				t.Errorf("%q %s: %d %s, %d are stored", mediaType, c.query, w.Code, w.Body, len(f.Load().Policies))
			}
		}
	}
}

const webSubsets = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec:
  host: web
  subsets:
  - name: v2
    labels: {version: v2}
`

func TestHead(t *testing.T) {
	srv := httptest.NewServer(server.New(apitest.New().Config()).Handler(false))
	defer srv.Close()
	resp, err := http.Head(srv.URL + "/api/v1/services")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get(api.VersionHeader) != "1" || resp.Header.Get("Cache-Control") != "no-store" ||
		resp.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
}

// TestCompareAndSet: a write that names an index is made only when nobody was faster.
func TestCompareAndSet(t *testing.T) {
	f := apitest.New()
	h := server.New(f.Config()).Handler(true)
	put := func(index string) *http.Request {
		b, err := json.Marshal(webRoute)
		if err != nil {
			t.Fatal(err)
		}
		return request("POST", "/api/v1/policies", `{"writes":[{"source":`+string(b)+`,"index":`+index+`}]}`, "Content-Type: application/json")
	}
	if e := failure(t, h, put("3")); e.Code != api.CodeConflict {
		t.Errorf("%+v", e)
	}
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, put("0")); w.Code != http.StatusOK {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if e := failure(t, h, put("0")); e.Code != api.CodeConflict {
		t.Errorf("%+v", e)
	}
	const target = "/api/v1/policies/networking.istio.io/VirtualService/default/web"
	if e := failure(t, h, request("DELETE", target+"?index=10", "")); e.Code != api.CodeConflict {
		t.Errorf("%+v", e)
	}
	w = httptest.NewRecorder()
	if h.ServeHTTP(w, request("DELETE", target+"?index=11", "")); w.Code != http.StatusOK || len(f.Load().Policies) != 0 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
