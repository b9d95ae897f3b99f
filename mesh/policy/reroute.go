package policy

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// perMatch makes one route per match of a rule whose matches differ in what is replaced of the path, or in the name of their metrics.
func (c *compiler) perMatch(path string, r *HTTPRoute, from []istio.HTTPMatch) []*HTTPRoute {
	named := slices.ContainsFunc(from, func(m istio.HTTPMatch) bool { return m.StatPrefix != "" })
	redirects := r.Action.Redirect != nil && r.Action.Redirect.PathPrefix != ""
	if redirects && len(r.Matches) == 0 {
		c.fail(path+".match", "match on a prefix of uri", "is missing, and prefixRewrite needs a prefix to replace")
	}
	if !named && !redirects && (r.Action.Rewrite == nil || len(r.Matches) < 2) {
		return []*HTTPRoute{r}
	}
	var out []*HTTPRoute
	for i := range r.Matches {
		one, path := *r, fmt.Sprintf("%s.match[%d]", path, i)
		one.Matches = r.Matches[i : i+1]
		if one.Stat = from[i].StatPrefix; !statName.MatchString(one.Stat) {
			c.fail(path+".statPrefix", "use letters, digits, '-', '_' and '.', at most 64 of them", "%q is no name for metrics", one.Stat)
		}
		if redirects {
			d, u := *r.Action.Redirect, r.Matches[i].URI
			if u == nil || u.Kind != Prefix || u.Text == "" {
				c.fail(path+".uri", "match on a prefix", "prefixRewrite needs a prefix to replace")
			} else {
				d.PathPrefix = u.Text
			}
			one.Action.Redirect = &d
		}
		out = append(out, &one)
	}
	return out
}

var statName = regexp.MustCompile(`^[A-Za-z0-9_.-]{0,64}$`)

var redirectCodes = []int{301, 302, 303, 307, 308}

// redirection compiles a redirect. One that replaces a prefix has a PathPrefix that perMatch replaces by that of each match.
func (c *compiler) redirection(path string, r *istio.HTTPRoute) *Redirect {
	d := r.Redirect
	if d == nil {
		return nil
	}
	out := &Redirect{Scheme: d.Scheme, Authority: d.Authority, Path: d.URI, Port: d.Port, Code: d.RedirectCode}
	if d.RedirectCode == 0 {
		out.Code = http.StatusMovedPermanently
	} else if !slices.Contains(redirectCodes, d.RedirectCode) {
		c.fail(path+".redirectCode", "write 301, 302, 303, 307 or 308", "%d is no redirect", d.RedirectCode)
	}
	if s := d.Scheme; s != "" && s != "http" && s != "https" {
		c.fail(path+".scheme", "", "%q is neither http nor https", s)
	}
	field := ".uri"
	if d.PrefixRewrite != "" {
		if d.URI != "" {
			c.fail(path+".prefixRewrite", "remove one of the two", "cannot stand beside uri")
		}
		field, out.Path, out.PathPrefix = ".prefixRewrite", d.PrefixRewrite, "/"
		if why, hint, _ := strings.Cut(decodedPathFault(d.PrefixRewrite, Exact), "; "); why != "" {
			c.fail(path+field, hint, "%q: %s", d.PrefixRewrite, why)
		}
	}
	if p := out.Path; !httpguts.ValidHeaderFieldValue(p) || strings.ContainsAny(p, " \\#") || p != "" && p[0] != '/' {
		c.fail(path+field, "write a path such as /v2", "%q cannot stand in a Location", p)
	}
	if !validAuthority(d.Authority) {
		c.fail(path+".authority", "write a host, or host:port", "%q cannot stand in a Location", d.Authority)
	}
	if d.DerivePort != "" && d.Port != 0 {
		c.fail(path+".derivePort", "remove one of the two", "cannot stand beside port")
	}
	switch d.DerivePort {
	case "":
	case "FROM_PROTOCOL_DEFAULT":
		out.Derive = OfScheme
	case "FROM_REQUEST_PORT":
		out.Derive = OfRequest
	default:
		c.fail(path+".derivePort", "write FROM_PROTOCOL_DEFAULT or FROM_REQUEST_PORT", "%q is no port", d.DerivePort)
	}
	if d.Scheme == "" && d.Authority == "" && out.Path == "" && d.Port == 0 {
		c.fail(path, "write uri, prefixRewrite, authority, port or scheme", "would send a caller to where it came from")
	}
	return out
}

// maxBody is Istio's bound of a direct response's body, in bytes.
const maxBody = 1 << 20

func (c *compiler) direct(path string, d *istio.DirectResponse) *DirectResponse {
	if d == nil {
		return nil
	}
	out := &DirectResponse{Status: d.Status}
	if d.Status < 200 || d.Status > 599 {
		c.fail(path+".status", "", "%d is not a status from 200 to 599", d.Status)
	}
	if b := d.Body; b != nil {
		var err error
		switch {
		case b.String != nil && b.Bytes != nil:
			c.fail(path+".body", "remove one of the two", "has string and bytes")
		case b.String != nil:
			out.Body = []byte(*b.String)
		case b.Bytes != nil:
			if out.Body, err = base64.StdEncoding.DecodeString(*b.Bytes); err != nil {
				c.fail(path+".body.bytes", "write plain text as string", "is not base64: %v", err)
			}
		}
		if len(out.Body) > maxBody {
			c.fail(path+".body", "", "%d bytes: at most %d are sent", len(out.Body), maxBody)
		}
	}
	return out
}

func (c *compiler) rewriting(path string, r *istio.HTTPRoute) *Rewrite {
	w := r.Rewrite
	if w == nil {
		return nil
	}
	out := &Rewrite{Path: w.URI, Authority: w.Authority}
	if len(r.Route) == 0 {
		c.fail(path, "", "only a rule with route can rewrite")
	}
	if w.URI == "" && w.Authority == "" && w.URIRegexRewrite == nil {
		c.fail(path, "write uri, uriRegexRewrite or authority", "changes nothing")
	}
	if why, hint, _ := strings.Cut(pathFault(w.URI, Exact), "; "); w.URI != "" && why != "" {
		c.fail(path+".uri", hint, "%q: %s", w.URI, why)
	}
	if !validAuthority(w.Authority) {
		c.fail(path+".authority", "write a host, or host:port", "%q is no host", w.Authority)
	}
	if x := w.URIRegexRewrite; x != nil {
		if w.URI != "" {
			c.fail(path+".uriRegexRewrite", "remove one of the two", "cannot stand beside uri")
		}
		out.Pattern, out.Template = c.replacement(path+".uriRegexRewrite", x)
	}
	return out
}

// replacement compiles a change of the path by a regular expression. What replaces a match comes out as Go's regexp writes it.
func (c *compiler) replacement(path string, x *istio.RegexRewrite) (re *regexp.Regexp, to string) {
	if x.Match == "" || x.Rewrite == "" {
		c.fail(path, "write {match: RE2, rewrite: text with \\1}", "needs match and rewrite")
		return nil, ""
	}
	re, err := istio.CompilePart(x.Match)
	if err != nil {
		c.fail(path+".match", "", "%v", err)
		return nil, ""
	}
	var b strings.Builder
	for i := 0; i < len(x.Rewrite); i++ {
		ch := x.Rewrite[i]
		switch {
		case ch == '$':
			b.WriteString("$$")
			continue
		case ch != '\\':
			b.WriteByte(ch)
			continue
		}
		i++
		switch {
		case i < len(x.Rewrite) && x.Rewrite[i] >= '0' && x.Rewrite[i] <= '9':
			if n := int(x.Rewrite[i] - '0'); n > re.NumSubexp() {
				c.fail(path+".rewrite", "", "\\%d: match has %d groups", n, re.NumSubexp())
			}
			fmt.Fprintf(&b, "${%c}", x.Rewrite[i])
		case i < len(x.Rewrite) && x.Rewrite[i] == '\\':
			b.WriteByte('\\')
		default:
			c.fail(path+".rewrite", "write \\0 to \\9, or \\\\ for a backslash", "a backslash that begins no reference")
		}
	}
	return re, b.String()
}
