package server

import (
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/api"
)

// Times of a call.
const (
	callTime   = 30 * time.Second // of a usual one
	storeTime  = 10 * time.Minute // of a backup or restore
	answerTime = 5 * time.Second  // to write the answer when the time of a call is up
)

// route is one operation of the API. A {name} in its path stands for one segment.
type route struct {
	method, path string
	do           func(s *Server, c *call) (any, error) // the answer: a value for JSON, nil for none, or one of the types of answer.go
	on           string                                // what it reads or writes, for access: a resource, with names of the path
	auth         bool                                  // over TCP a token is needed
	later        bool                                  // the backend asks what exactly a token allows
	anybody      bool                                  // no token is ever needed on this host
	stranger     bool                                  // nor from afar
	often        bool                                  // no change of an operator: it is not recorded
	query        []string                              // parameters that it takes; with "wait" it may take so much longer
	body         int64                                 // limit in bytes; 0: takes none
	time         time.Duration
}

const prefix = api.Prefix

// poll is what routes that tell from the Snapshot take.
var poll = []string{"after", "wait"}

// routes is all there is. What changes something, and what tells secrets, has auth.
var routes = []route{
	{method: "GET", path: "/metrics", on: "metrics", anybody: true, do: (*Server).getMetrics},
	{method: "GET", path: prefix + "/openapi.yaml", on: "status", anybody: true, do: (*Server).getOpenAPI},
	{method: "GET", path: prefix + "/ready", on: "status", anybody: true, do: (*Server).getReady},
	{method: "GET", path: prefix + "/status", on: "status", do: (*Server).getStatus},
	{method: "GET", path: prefix + "/members", on: "members", do: (*Server).getMembers, query: poll},
	{method: "GET", path: prefix + "/services", on: "services", do: (*Server).getServices, query: poll},
	{method: "GET", path: prefix + "/services/{namespace}/{name}", on: "services", do: (*Server).getService, query: poll},
	{method: "GET", path: prefix + "/local/services", on: "local", do: (*Server).getLocal},
	{method: "PUT", path: prefix + "/local/services", on: "local", do: (*Server).putLocal, auth: true, body: api.MaxBody},
	{method: "DELETE", path: prefix + "/local/services/{namespace}/{id}", on: "local/{namespace}/{id}", do: (*Server).deleteLocal, auth: true},
	{method: "PUT", path: prefix + "/local/services/{namespace}/{id}/maintenance", on: "local/{namespace}/{id}", do: (*Server).putMaintenance, auth: true, body: maxSmallBody},
	{method: "PUT", path: prefix + "/local/services/{namespace}/{id}/checks/{check}", on: "local/{namespace}/{id}", often: true, do: (*Server).putCheck, auth: true, body: maxSmallBody},
	{method: "GET", path: prefix + "/policies", on: "policies", do: (*Server).getPolicies, query: append([]string{"kind", "namespace", "consistency", "status"}, poll...)},
	{method: "POST", path: prefix + "/policies", on: "policies", later: true, do: (*Server).postPolicies, auth: true, query: []string{"dryRun"}, body: api.MaxBody},
	{method: "GET", path: prefix + "/policies/{group}/{kind}/{namespace}/{name}", on: "policies/{namespace}/{kind}/{name}", do: (*Server).getPolicy, query: append([]string{"consistency", "status"}, poll...)},
	{method: "DELETE", path: prefix + "/policies/{group}/{kind}/{namespace}/{name}", on: "policies/{namespace}/{kind}/{name}", do: (*Server).deletePolicy, auth: true, query: []string{"index", "dryRun"}},
	{method: "GET", path: prefix + "/live", on: "live", do: (*Server).getLive, query: []string{"index", "wait"}},
	{method: "GET", path: prefix + "/capture", on: "capture", do: (*Server).getCapture},
	{method: "GET", path: prefix + "/keyring", on: "keyring", do: (*Server).getKeyring, query: []string{"version", "wait"}},
	{method: "POST", path: prefix + "/keyring/rotate", on: "keyring", do: (*Server).postRotateKeyring, auth: true},
	{method: "GET", path: prefix + "/ca", on: "ca", do: (*Server).getCA},
	{method: "GET", path: prefix + "/ca/bundle", on: "ca", do: (*Server).getBundle, query: []string{"format"}},
	{method: "POST", path: prefix + "/ca/rotate", on: "ca", do: (*Server).postRotateCA, auth: true},
	{method: "POST", path: prefix + "/ca/federation", on: "ca", do: (*Server).postFederation, auth: true, body: maxSmallBody},
	{method: "POST", path: prefix + "/ca/authority", on: "ca", do: (*Server).postAuthority, auth: true, body: maxSmallBody},
	{method: "POST", path: prefix + "/ca/revoke", on: "ca", do: (*Server).postRevoke, auth: true, body: maxSmallBody},
	{method: "GET", path: prefix + "/tokens", on: "tokens", do: (*Server).getTokens, auth: true},
	{method: "POST", path: prefix + "/tokens", on: "tokens/client", later: true, do: (*Server).postTokens, auth: true, body: maxSmallBody},
	{method: "DELETE", path: prefix + "/tokens/{id}", on: "tokens/client", later: true, do: (*Server).deleteToken, auth: true},
	{method: "GET", path: prefix + "/apitokens", on: "apitokens", do: (*Server).getAPITokens, auth: true},
	{method: "POST", path: prefix + "/apitokens", on: "apitokens", do: (*Server).postAPITokens, auth: true, body: maxSmallBody},
	{method: "DELETE", path: prefix + "/apitokens/{id}", on: "apitokens", do: (*Server).deleteAPIToken, auth: true},
	{method: "GET", path: prefix + "/whoami", on: "status", later: true, do: (*Server).getWhoami, auth: true},
	{method: "GET", path: prefix + "/login", on: "status", anybody: true, stranger: true, do: (*Server).getLogin},
	{method: "GET", path: prefix + "/dns", on: "dns", do: (*Server).getDNS, query: []string{"name", "type"}},
	{method: "POST", path: prefix + "/leave", on: "mesh", do: (*Server).postLeave, auth: true},
	{method: "GET", path: prefix + "/store/snapshot", on: "store", do: (*Server).getBackup, auth: true, time: storeTime},
	{method: "PUT", path: prefix + "/store/snapshot", on: "store", do: (*Server).putRestore, auth: true, body: api.MaxRestore, time: storeTime},
}

// maxSmallBody is the limit of bodies that have a few fields.
const maxSmallBody = 64 << 10

// find returns the route of a request and what stands for the names in its path. Without a route, allow has the methods that the
// path takes; none: there is no such path. Paths are compared as they came: nothing is cleaned, and nobody is redirected.
func find(method string, u *url.URL) (rt *route, vars map[string]string, allow []string) {
	if method == "HEAD" {
		method = "GET"
	}
	path := strings.Split(u.EscapedPath(), "/")
	for i := range routes {
		vars, ok := match(strings.Split(routes[i].path, "/"), path)
		switch {
		case !ok:
		case routes[i].method == method:
			return &routes[i], vars, nil
		default:
			if allow = append(allow, routes[i].method); routes[i].method == "GET" {
				allow = append(allow, "HEAD")
			}
		}
	}
	slices.Sort(allow)
	return nil, nil, allow
}

func match(pattern, path []string) (vars map[string]string, ok bool) {
	if len(pattern) != len(path) {
		return nil, false
	}
	for i, p := range pattern {
		name, isVar := strings.CutPrefix(p, "{")
		if !isVar {
			if p != path[i] {
				return nil, false
			}
			continue
		}
		v, err := url.PathUnescape(path[i])
		if err != nil || v == "" {
			return nil, false
		}
		if vars == nil {
			vars = map[string]string{}
		}
		vars[strings.TrimSuffix(name, "}")] = v
	}
	return vars, true
}

// action returns what a call of the route asks to do.
func (rt *route) action(vars map[string]string) access.Action {
	a := access.Action{Verb: access.Write, Resource: rt.on}
	if rt.method == "GET" {
		a.Verb = access.Read
	}
	for name, value := range vars {
		// A name with a slash is none: it must not look like two segments.
		a.Resource = strings.ReplaceAll(a.Resource, "{"+name+"}", strings.ReplaceAll(value, "/", "\x00"))
	}
	return a
}
