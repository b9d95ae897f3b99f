package policy

import (
	"net"
	"net/url"
	"strconv"
	"strings"
)

// RewritePath returns the path of a request that the route matched, canonical and without query, after the route's rewrite.
// p is the request's canonical path. A path that stays, or that the rule does not rewrite, is returned as it is.
//
// As in Istio, a condition {prefix: x} has its x replaced, a condition on the whole path (exact, regex) the whole path, and a
// match without a condition on the path counts as the prefix "/". A compiled route that rewrites has at most one match; of
// several, the first whose condition on the path holds would count, whatever its other conditions.
//
// The result is "" when the new path would have dot segments that the old one had not (prefix /a of /a../b, rewritten to /): such
// a request must be refused as a bad one. What is not empty must be escaped before it is sent: it may hold '?' and '%'.
func (r *HTTPRoute) RewritePath(p string) string {
	w := r.Action.Rewrite
	if w == nil || w.Path == "" && w.Pattern == nil || p == "*" {
		return p
	}
	if w.Pattern != nil {
		p = w.Pattern.ReplaceAllString(p, w.Template)
		for strings.Contains(p, "//") { // \1 often begins with a slash
			p = strings.ReplaceAll(p, "//", "/")
		}
		return whole(p)
	}
	var n int
	if w.Prefix != "" {
		if !strings.HasPrefix(p, w.Prefix) {
			return p
		}
		n = len(w.Prefix)
	} else {
		n = r.matched(p)
	}
	return swap(w.Path, p[n:])
}

// matched returns how many bytes of a path the condition of the first match that holds for it covers.
func (r *HTTPRoute) matched(p string) int {
	for i := range r.Matches {
		m := &r.Matches[i]
		switch {
		case !m.uri(p):
		case m.URI == nil:
			return 1
		case m.URI.Kind == Prefix:
			return len(m.URI.Text)
		default:
			return len(p)
		}
	}
	if len(r.Matches) == 0 {
		return 1
	}
	return len(p) // no match holds: the route did not match this path
}

// swap joins what replaces a prefix with what followed the prefix; "" when the result climbs.
func swap(to, rest string) string {
	if strings.HasSuffix(to, "/") {
		rest = strings.TrimPrefix(rest, "/")
	}
	return whole(to + rest)
}

// whole returns a path if it is canonical, else "".
func whole(p string) string {
	if canonicalFault(p, Exact) != "" {
		return ""
	}
	return p
}

// Location returns where the redirect points, an absolute URL that is ready to be sent. host is the Host that the caller sent, with
// its port. Of the request, Scheme, Path and Query are used. As in Istio, a path replaces the whole path, and a query of the
// redirect the request's, which otherwise stays; so does the caller's port, unless authority, port or scheme is given. The
// default port of a scheme is left out.
func (r *Redirect) Location(req *Request, host string) string {
	u := url.URL{Scheme: req.Scheme, Host: host, Path: req.Path, RawQuery: req.Query}
	if r.Scheme != "" && r.Scheme != u.Scheme {
		u.Scheme, u.Host = r.Scheme, withoutPort(host)
	}
	if r.Authority != "" {
		port := strings.TrimPrefix(u.Host, withoutPort(u.Host))
		if u.Host = r.Authority; r.KeepPort {
			u.Host += port
		}
	}
	port := r.Port
	switch r.Derive {
	case OfScheme:
		port = defaultPort(u.Scheme)
	case OfRequest:
		port = req.Port
	}
	if port != 0 {
		u.Host = withoutPort(u.Host)
		if port != defaultPort(u.Scheme) {
			u.Host += ":" + strconv.Itoa(int(port))
		}
	}
	if r.Path != "" {
		var own bool
		var query string
		if u.RawPath, query, own = strings.Cut(r.Path, "?"); own {
			u.RawQuery = query
		}
		if p, err := url.PathUnescape(u.RawPath); err == nil {
			u.Path = p
		} else {
			u.Path, u.RawPath = u.RawPath, ""
		}
		if n := len(r.PathPrefix); n > 0 && len(req.Path) >= n && strings.EqualFold(req.Path[:n], r.PathPrefix) {
			if p := swap(u.Path, req.Path[n:]); p != "" {
				u.Path, u.RawPath = p, ""
			}
		}
	}
	return u.String()
}

func defaultPort(scheme string) uint16 {
	if scheme == "https" {
		return 443
	}
	return 80
}

// withoutPort returns a host without its port; brackets of an IPv6 address stay.
func withoutPort(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		if strings.Contains(h, ":") {
			return "[" + h + "]"
		}
		return h
	}
	return host
}
