package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/mesh/policy/gatewayapi"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// CORS says which pages of other origins may use what a rule leads to. The proxy answers preflights from it and gives answers the fields
// by which a browser lets the page see them.
type CORS struct {
	Any     bool          // origin
	Origins []StringMatch // any of them
	// Fields of an answer to an origin that is allowed; "" has none. "*" means all, and is written out for calls with credentials.
	Methods, Headers, Expose, MaxAge string
	Credentials                      bool
	// Forward lets a preflight of another origin pass to the service; else it is answered without permission.
	Forward bool
}

// Allows reports whether an origin, as a browser writes it, is allowed.
func (k *CORS) Allows(origin string) bool {
	if k.Any {
		return true
	}
	for i := range k.Origins {
		if k.Origins[i].ok(origin) {
			return true
		}
	}
	return false
}

func (c *compiler) cors(path string, p *istio.CorsPolicy) *CORS {
	if p == nil {
		return nil
	}
	out := &CORS{Credentials: p.AllowCredentials, Forward: true, Methods: c.tokens(path+".allowMethods", p.AllowMethods),
		Headers: c.tokens(path+".allowHeaders", p.AllowHeaders), Expose: c.tokens(path+".exposeHeaders", p.ExposeHeaders)}
	switch p.UnmatchedPreflights {
	case "", "UNSPECIFIED", "FORWARD":
	case "IGNORE":
		out.Forward = false
	default:
		c.fail(path+".unmatchedPreflights", "write FORWARD or IGNORE", "%q is no way to treat them", p.UnmatchedPreflights)
	}
	if p.MaxAge != nil {
		out.MaxAge = strconv.Itoa(int(*p.MaxAge / time.Second))
		if *p.MaxAge%time.Second != 0 {
			c.fail(path+".maxAge", "", "%v is no number of whole seconds", *p.MaxAge)
		}
	}
	if len(p.AllowOrigin)+len(p.AllowOrigins) == 0 {
		c.fail(path+".allowOrigins", "name the origins, or write [{exact: '*'}] for all", "is missing or empty: no origin would be allowed")
	}
	if len(p.AllowOrigin) > 0 && len(p.AllowOrigins) > 0 {
		c.fail(path+".allowOrigin", "remove it, allowOrigins says it", "is there beside allowOrigins")
	}
	exact := func(path, o string) {
		if o == "*" {
			out.Any = true
		} else if why := originFault(o); why != "" {
			c.fail(path, "write it as https://shop.example.com", "%q can never match: %s", o, why)
		}
	}
	for i, o := range p.AllowOrigin {
		exact(fmt.Sprintf("%s.allowOrigin[%d]", path, i), o)
		out.Origins = append(out.Origins, StringMatch{Kind: Exact, Text: o})
	}
	for i := range p.AllowOrigins {
		path, m := fmt.Sprintf("%s.allowOrigins[%d]", path, i), c.str(&p.AllowOrigins[i])
		if m == nil {
			c.fail(path, "write {exact: ...}, {prefix: ...} or {regex: ...}", "names no origin")
			continue
		}
		if m.Kind == Exact {
			exact(path+".exact", m.Text)
		}
		out.Origins = append(out.Origins, *m)
	}
	return out
}

// originFault says why no browser sends a text as Origin (RFC 6454, section 6.2); "" when one may.
func originFault(o string) string {
	scheme, rest, ok := strings.Cut(o, "://")
	switch {
	case o == "null":
		return ""
	case !ok || scheme == "" || rest == "":
		return "an origin is scheme://host or scheme://host:port"
	case strings.ContainsAny(rest, "/?#@ *"):
		return "an origin ends with its host or port"
	case strings.ToLower(o) != o:
		return "origins are in lower case"
	case scheme == "http" && strings.HasSuffix(rest, ":80"), scheme == "https" && strings.HasSuffix(rest, ":443"):
		return "browsers leave out a scheme's own port"
	}
	return ""
}

// tokens joins names of methods or header fields.
func (c *compiler) tokens(path string, list []string) string {
	for i, s := range list {
		if !httpguts.ValidHeaderFieldName(s) { // all are tokens
			c.fail(fmt.Sprintf("%s[%d]", path, i), "", "%q is no name", s)
		}
	}
	return strings.Join(list, ",")
}

// corsAlone refuses changes of fields that a CORS policy writes.
func (c *compiler) corsAlone(path string, a *Action) {
	if a.CORS == nil {
		return
	}
	all := [][]Header{a.Headers.ResponseSet, a.Headers.ResponseAdd}
	for _, d := range a.Destinations {
		all = append(all, d.Headers.ResponseSet, d.Headers.ResponseAdd)
	}
	for _, h := range slices.Concat(all...) {
		if strings.HasPrefix(h.Name, "access-control-") {
			c.fail(path, "remove one of the two", "writes %s, which a change of headers sets, too", h.Name)
		}
	}
}

// gatewayOrigin is what the Gateway API takes for an origin, but for "*".
var gatewayOrigin = regexp.MustCompile(`^(https?)://(\*|(\*\.)?([A-Za-z0-9-]+\.)*[A-Za-z0-9-]+)(:[0-9]{1,5})?$`)

// gatewayCORS compiles the filter: a preflight of another origin is answered without permission.
func (c *compiler) gatewayCORS(path string, p *gatewayapi.CORS) *CORS {
	out := &CORS{Credentials: p.AllowCredentials, Methods: c.tokens(path+".allowMethods", p.AllowMethods),
		Headers: c.tokens(path+".allowHeaders", p.AllowHeaders), Expose: c.tokens(path+".exposeHeaders", p.ExposeHeaders), MaxAge: "5"}
	if p.MaxAge != nil {
		if out.MaxAge = strconv.Itoa(int(*p.MaxAge)); *p.MaxAge < 1 {
			c.fail(path+".maxAge", "", "%d is not a number of seconds from 1", *p.MaxAge)
		}
	}
	alone := func(path string, list []string) {
		if full(c, path, "fill it, or remove it", list); slices.Contains(list, "*") && len(list) > 1 {
			c.fail(path, "remove one of the two", `"*" cannot stand beside others`)
		}
	}
	alone(path+".allowOrigins", p.AllowOrigins)
	alone(path+".allowMethods", p.AllowMethods)
	alone(path+".allowHeaders", p.AllowHeaders)
	if slices.Contains(p.ExposeHeaders, "*") && p.AllowCredentials {
		c.fail(path+".exposeHeaders", "name the headers", `browsers do not take "*" for all where credentials are allowed`)
	}
	if p.AllowOrigins == nil {
		c.fail(path+".allowOrigins", `name the origins, or write ["*"] for all`, "is missing: no origin would be allowed")
	}
	for i, o := range p.AllowOrigins {
		m := gatewayOrigin.FindStringSubmatch(o)
		switch {
		case o == "*":
			out.Any = true
			continue
		case m == nil:
			c.fail(fmt.Sprintf("%s.allowOrigins[%d]", path, i), "write it as https://shop.example.com or https://*.example.com", "%q is no origin", o)
			continue
		}
		scheme, host, port := m[1], strings.ToLower(m[2]), m[5]
		if scheme == "http" && port == ":80" || scheme == "https" && port == ":443" {
			port = "" // browsers leave it out
		}
		if s := scheme + "://" + host + port; !strings.Contains(host, "*") {
			out.Origins = append(out.Origins, StringMatch{Kind: Exact, Text: s})
		} else {
			re := strings.Replace(regexp.QuoteMeta(s), `\*`, `[^/:]+`, 1)
			out.Origins = append(out.Origins, *c.regex(fmt.Sprintf("%s.allowOrigins[%d]", path, i), re))
		}
	}
	return out
}
