package policy

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/mesh/policy/gatewayapi"
)

// filters is what the filters of a rule or backend do.
type filters struct {
	headers  HeaderOps
	redirect *Redirect
	rewrite  *Rewrite
	cors     *CORS
	mirrors  []Mirror
}

// filterType checks that a filter has what its type names and nothing else. there says which of the fields are there.
func (c *compiler) filterType(path, typ string, there map[string]bool, seen map[string]bool) {
	known := []string{"RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite", "CORS", "RequestMirror"}
	known = slices.DeleteFunc(known, func(k string) bool { _, has := there[k]; return !has })
	if !slices.Contains(known, typ) {
		c.fail(path+".type", "write "+strings.Join(known, ", "), "%q is not a filter that is supported", typ)
		return
	}
	for _, k := range known {
		field := strings.ToLower(k[:1]) + k[1:]
		switch k {
		case "URLRewrite":
			field = "urlRewrite"
		case "CORS":
			field = "cors"
		}
		switch {
		case k == typ && !there[k]:
			c.fail(path+"."+field, "", "is missing, and the type is %s", typ)
		case k != typ && there[k]:
			c.fail(path+"."+field, "make it a filter of its own", "cannot stand in a filter of type %s", typ)
		}
	}
	if seen[typ] && typ != "RequestMirror" {
		c.fail(path, "put both into one", "a second filter of type %s", typ)
	}
	seen[typ] = true
}

func (c *compiler) httpFilters(path string, fs []gatewayapi.HTTPFilter, matches []rankedMatch) (out filters) {
	seen := map[string]bool{}
	full(c, path, "fill it, or remove it", fs)
	for i := range fs {
		f, path := &fs[i], fmt.Sprintf("%s[%d]", path, i)
		c.filterType(path, f.Type, map[string]bool{
			"RequestHeaderModifier": f.RequestHeaderModifier != nil, "ResponseHeaderModifier": f.ResponseHeaderModifier != nil,
			"RequestRedirect": f.RequestRedirect != nil, "URLRewrite": f.URLRewrite != nil, "CORS": f.CORS != nil, "RequestMirror": f.RequestMirror != nil}, seen)
		c.modify(path, f.RequestHeaderModifier, f.ResponseHeaderModifier, &out.headers)
		if r := f.RequestRedirect; r != nil {
			out.redirect = c.redirect(path+".requestRedirect", r, matches)
		}
		if f.CORS != nil {
			out.cors = c.gatewayCORS(path+".cors", f.CORS)
		}
		if f.RequestMirror != nil {
			out.mirrors = append(out.mirrors, c.gatewayMirror(path+".requestMirror", f.RequestMirror))
		}
		if r := f.URLRewrite; r != nil {
			out.rewrite = c.rewrite(path+".urlRewrite", r, matches)
		}
	}
	if out.redirect != nil && out.rewrite != nil {
		c.fail(path, "remove one", "RequestRedirect and URLRewrite cannot stand together")
	}
	return out
}

func (c *compiler) grpcFilters(path string, fs []gatewayapi.GRPCFilter) (out filters) {
	seen := map[string]bool{}
	full(c, path, "fill it, or remove it", fs)
	for i := range fs {
		f, path := &fs[i], fmt.Sprintf("%s[%d]", path, i)
		c.filterType(path, f.Type, map[string]bool{
			"RequestHeaderModifier": f.RequestHeaderModifier != nil, "ResponseHeaderModifier": f.ResponseHeaderModifier != nil, "RequestMirror": f.RequestMirror != nil}, seen)
		c.modify(path, f.RequestHeaderModifier, f.ResponseHeaderModifier, &out.headers)
		if f.RequestMirror != nil {
			out.mirrors = append(out.mirrors, c.gatewayMirror(path+".requestMirror", f.RequestMirror))
		}
	}
	return out
}

// modify compiles changes of headers.
func (c *compiler) modify(path string, request, response *gatewayapi.HeaderModifier, out *HeaderOps) {
	if request != nil {
		out.RequestSet, out.RequestAdd, out.RequestRemove = c.changes(path+".requestHeaderModifier", request)
	}
	if response != nil {
		out.ResponseSet, out.ResponseAdd, out.ResponseRemove = c.changes(path+".responseHeaderModifier", response)
	}
}

func (c *compiler) changes(path string, m *gatewayapi.HeaderModifier) (set, add []Header, remove []string) {
	seen := map[string]bool{}
	name := func(path, name, done string) string {
		c.headerName(path, name, done)
		low := strings.ToLower(name)
		if seen[low] {
			c.fail(path, "remove one", "%q is there twice: a filter does one thing to a header", name)
		}
		seen[low] = true
		return low
	}
	list := func(path string, in []gatewayapi.NamedValue) (out []Header) {
		full(c, path, "fill it, or remove it", in)
		for i, v := range in {
			p := fmt.Sprintf("%s[%d]", path, i)
			if v.Value == "" || !httpguts.ValidHeaderFieldValue(v.Value) {
				c.fail(p+".value", "", "%q is not the value of a header", v.Value)
			}
			out = append(out, Header{name(p+".name", v.Name, "changed"), v.Value})
		}
		return out
	}
	set, add = list(path+".set", m.Set), list(path+".add", m.Add)
	full(c, path+".remove", "fill it, or remove it", m.Remove)
	for i, n := range m.Remove {
		remove = append(remove, name(fmt.Sprintf("%s.remove[%d]", path, i), n, "removed"))
	}
	if len(seen) == 0 {
		c.fail(path, "write set, add or remove", "changes nothing")
	}
	return set, add, remove
}

func (c *compiler) redirect(path string, r *gatewayapi.RequestRedirect, matches []rankedMatch) *Redirect {
	out := &Redirect{Scheme: r.Scheme, Authority: r.Hostname, KeepPort: true, Port: r.Port, Code: r.StatusCode}
	switch r.Scheme {
	case "":
	case "http", "https":
		if r.Port == 0 {
			out.Port = defaultPort(r.Scheme) // whatever port was called
		}
	default:
		c.fail(path+".scheme", "", "%q is neither http nor https", r.Scheme)
	}
	if r.StatusCode == 0 {
		out.Code = http.StatusFound
	} else if !slices.Contains(redirectCodes, r.StatusCode) {
		c.fail(path+".statusCode", "write 301, 302, 303, 307 or 308", "%d is no redirect", r.StatusCode)
	}
	c.hostname(path+".hostname", r.Hostname)
	if r.Path != nil {
		out.Path, out.PathPrefix = c.newPath(path+".path", r.Path, matches)
	}
	if r.Scheme == "" && r.Hostname == "" && r.Path == nil && r.Port == 0 {
		c.fail(path, "write scheme, hostname, path or port", "would send a caller to where it came from")
	}
	return out
}

func (c *compiler) rewrite(path string, r *gatewayapi.URLRewrite, matches []rankedMatch) *Rewrite {
	out := &Rewrite{Authority: r.Hostname}
	c.hostname(path+".hostname", r.Hostname)
	if r.Path != nil {
		out.Path, out.Prefix = c.newPath(path+".path", r.Path, matches)
	}
	if r.Hostname == "" && r.Path == nil {
		c.fail(path, "write hostname or path", "changes nothing")
	}
	return out
}

func (c *compiler) hostname(path, h string) {
	if h == "" {
		return
	}
	for label := range strings.SplitSeq(h, ".") {
		if strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || label == "" {
			c.fail(path, "write a host name in lower case, without a port", "%q is no host name", h)
			return
		}
	}
}

// newPath compiles a change of the path: what replaces it and, where it replaces a prefix alone, the prefix. Both prefixes are of whole
// segments, so that a slash at their end does not matter; the prefix / has no other form.
func (c *compiler) newPath(path string, p *gatewayapi.PathModifier, matches []rankedMatch) (to, prefix string) {
	field, otherField, value, other := "replaceFullPath", "replacePrefixMatch", p.ReplaceFullPath, p.ReplacePrefixMatch
	switch p.Type {
	case "ReplaceFullPath":
	case "ReplacePrefixMatch":
		field, otherField, value, other = otherField, field, other, value
	default:
		c.fail(path+".type", "write ReplaceFullPath or ReplacePrefixMatch", "%q is not a way to change a path", p.Type)
		return "", ""
	}
	if value == nil {
		c.fail(path+"."+field, "", "is missing, and the type is %s", p.Type)
		return "", ""
	}
	if other != nil {
		c.fail(path+"."+otherField, "remove it", "cannot stand in a path of type %s", p.Type)
	}
	if to = *value; to == "" && p.Type == "ReplacePrefixMatch" {
		to = "/"
	}
	if why, hint, _ := strings.Cut(pathFault(to, Exact), "; "); why != "" {
		c.fail(path+"."+field, hint, "%q: %s", to, why)
	}
	if p.Type == "ReplaceFullPath" {
		return to, ""
	}
	if len(matches) != 1 || matches[0].URI == nil || matches[0].URI.Kind != Segments {
		c.fail(path+".type", "write one match with a path of type PathPrefix", "ReplacePrefixMatch needs a rule with one prefix to replace")
		return to, ""
	}
	to = strings.TrimSuffix(to, "/")
	if prefix = matches[0].URI.Text; prefix == "" {
		return to + "/", "/"
	}
	if to == "" {
		to = "/"
	}
	return to, prefix
}
