package proxy

import (
	"net/http"

	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/http1"
)

// cors is a CORS policy with the fields that do not depend on the request.
type cors struct {
	*policy.CORS
	actual    []http1.Pair // of an answer to an allowed origin, beside the origin
	preflight []http1.Pair // of one to a preflight
}

func newCORS(k *policy.CORS) *cors {
	if k == nil {
		return nil
	}
	out := &cors{CORS: k}
	add := func(to *[]http1.Pair, name, value string) {
		if value != "" {
			*to = append(*to, http1.Pair{Name: name, Value: []byte(value)})
		}
	}
	credentials := ""
	if k.Credentials {
		credentials = "true"
	}
	const vary = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
	add(&out.actual, "Access-Control-Allow-Credentials", credentials)
	add(&out.actual, "Access-Control-Expose-Headers", k.Expose)
	add(&out.preflight, "Access-Control-Allow-Credentials", credentials)
	add(&out.preflight, "Access-Control-Max-Age", k.MaxAge)
	add(&out.preflight, "Vary", vary)
	if !out.spelt(k.Methods) {
		add(&out.preflight, "Access-Control-Allow-Methods", k.Methods)
	}
	if !out.spelt(k.Headers) {
		add(&out.preflight, "Access-Control-Allow-Headers", k.Headers)
	}
	return out
}

// answersCORS looks at the origin of a request. It reports whether it was a preflight that has its answer.
func (c *call) answersCORS() bool {
	k := c.rule.cors
	if k == nil {
		return false
	}
	origin := c.valuesOf("origin")
	if len(origin) == 0 {
		return false
	}
	allowed := len(origin) == 1 && k.Allows(origin[0])
	r := &c.x.Request
	method := r.Get("access-control-request-method")
	preflight := string(r.Method) == http.MethodOptions && len(method) > 0
	if allowed {
		c.origin = r.Get("origin")
	}
	if !preflight || !allowed && k.Forward {
		return false
	}
	var fields []http1.Pair
	if allowed {
		fields = append(fields, http1.Pair{Name: allowOrigin, Value: c.origin})
		fields = append(fields, k.preflight...)
		if k.spelt(k.Methods) {
			fields = append(fields, http1.Pair{Name: "Access-Control-Allow-Methods", Value: method})
		}
		if h := r.Get("access-control-request-headers"); k.spelt(k.Headers) && len(h) > 0 {
			fields = append(fields, http1.Pair{Name: "Access-Control-Allow-Headers", Value: h})
		}
	}
	c.origin = nil // it has its fields
	c.respond(c.rule.act, http.StatusOK, nil, fields...)
	return true
}

const allowOrigin = "Access-Control-Allow-Origin"

// allow appends the fields by which a browser shows an answer to the page, if its origin is allowed.
func (c *call) allow(fields []http1.Pair) []http1.Pair {
	if c.origin == nil {
		return fields
	}
	return append(append(fields, http1.Pair{Name: allowOrigin, Value: c.origin}), c.rule.cors.actual...)
}

var varyOrigin = http1.Pair{Name: "Vary", Value: []byte("Origin")}

// spelt reports whether a list that means all must be written out: with credentials, browsers do not take "*" for all.
func (k *cors) spelt(list string) bool { return k.Credentials && list == "*" }
