package server

import (
	"net/url"
	"slices"
	"strings"
	"time"

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
	auth         bool                                  // over TCP an operator is needed
	query        []string                              // parameters that it takes; with "wait" it may take so much longer
	body         int64                                 // limit in bytes; 0: takes none
	time         time.Duration
}

const prefix = api.Prefix

// poll is what routes that tell from the Snapshot take.
var poll = []string{"after", "wait"}

// routes is all there is. What changes something, and what tells secrets, has auth.
var routes = []route{
	{method: "GET", path: "/metrics", do: (*Server).getMetrics},
	{method: "GET", path: prefix + "/openapi.yaml", do: (*Server).getOpenAPI},
	{method: "GET", path: prefix + "/ready", do: (*Server).getReady},
	{method: "GET", path: prefix + "/status", do: (*Server).getStatus},
	{method: "GET", path: prefix + "/members", do: (*Server).getMembers, query: poll},
	{method: "GET", path: prefix + "/services", do: (*Server).getServices, query: poll},
	{method: "GET", path: prefix + "/services/{namespace}/{name}", do: (*Server).getService, query: poll},
	{method: "GET", path: prefix + "/local/services", do: (*Server).getLocal},
	{method: "PUT", path: prefix + "/local/services", do: (*Server).putLocal, auth: true, body: api.MaxBody},
	{method: "DELETE", path: prefix + "/local/services/{namespace}/{id}", do: (*Server).deleteLocal, auth: true},
	{method: "PUT", path: prefix + "/local/services/{namespace}/{id}/maintenance", do: (*Server).putMaintenance, auth: true, body: maxSmallBody},
	{method: "PUT", path: prefix + "/local/services/{namespace}/{id}/checks/{check}", do: (*Server).putCheck, auth: true, body: maxSmallBody},
	{method: "GET", path: prefix + "/policies", do: (*Server).getPolicies, query: append([]string{"kind", "namespace", "consistency"}, poll...)},
	{method: "POST", path: prefix + "/policies", do: (*Server).postPolicies, auth: true, query: []string{"dryRun"}, body: api.MaxBody},
	{method: "GET", path: prefix + "/policies/{group}/{kind}/{namespace}/{name}", do: (*Server).getPolicy, query: append([]string{"consistency"}, poll...)},
	{method: "DELETE", path: prefix + "/policies/{group}/{kind}/{namespace}/{name}", do: (*Server).deletePolicy, auth: true, query: []string{"index", "dryRun"}},
	{method: "GET", path: prefix + "/live", do: (*Server).getLive, query: []string{"index", "wait"}},
	{method: "GET", path: prefix + "/keyring", do: (*Server).getKeyring, query: []string{"version", "wait"}},
	{method: "POST", path: prefix + "/keyring/rotate", do: (*Server).postRotateKeyring, auth: true},
	{method: "GET", path: prefix + "/ca", do: (*Server).getCA},
	{method: "GET", path: prefix + "/ca/bundle", do: (*Server).getBundle},
	{method: "POST", path: prefix + "/ca/rotate", do: (*Server).postRotateCA, auth: true},
	{method: "POST", path: prefix + "/ca/revoke", do: (*Server).postRevoke, auth: true, body: maxSmallBody},
	{method: "GET", path: prefix + "/tokens", do: (*Server).getTokens, auth: true},
	{method: "POST", path: prefix + "/tokens", do: (*Server).postTokens, auth: true, body: maxSmallBody},
	{method: "DELETE", path: prefix + "/tokens/{id}", do: (*Server).deleteToken, auth: true},
	{method: "GET", path: prefix + "/dns", do: (*Server).getDNS, query: []string{"name", "type"}},
	{method: "POST", path: prefix + "/leave", do: (*Server).postLeave, auth: true},
	{method: "GET", path: prefix + "/store/snapshot", do: (*Server).getBackup, auth: true, time: storeTime},
	{method: "PUT", path: prefix + "/store/snapshot", do: (*Server).putRestore, auth: true, body: api.MaxRestore, time: storeTime},
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
