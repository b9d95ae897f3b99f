package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// claimHeader is a claim that the service gets in a header.
type claimHeader struct {
	name string // in lower case
	path []string
}

// outputs reads what a rule tells the service of the user.
func (c *compiler) outputs(path string, in *istio.JWTRule, r *tokenRule) {
	r.forward = in.ForwardOriginalToken
	names := map[string]bool{}
	name := func(path, name string) string {
		c.headerName(path, name, "changed")
		low := strings.ToLower(name)
		if names[low] {
			c.fail(path, "", "%s is written already", low)
		}
		names[low] = true
		return low
	}
	if in.OutputPayloadToHeader != "" {
		r.payload = name(path+".outputPayloadToHeader", in.OutputPayloadToHeader)
	}
	full(c, path+".outputClaimToHeaders", "fill it, or remove it", in.OutputClaimToHeaders)
	for i, o := range in.OutputClaimToHeaders {
		at := fmt.Sprintf("%s.outputClaimToHeaders[%d]", path, i)
		if o.Claim == "" || slices.Contains(strings.Split(o.Claim, "."), "") {
			c.fail(at+".claim", "write the name of a claim, or those on the way to it as a.b", "%q is none", o.Claim)
		}
		r.claims = append(r.claims, claimHeader{name(at+".header", o.Header), strings.Split(o.Claim, ".")})
	}
}

// UserHeader is a header that the service gets instead of what the client sent; without a value it gets none.
type UserHeader struct {
	Name  string
	Value []byte
}

// tells computes what the service gets of a valid token. Claims that are no text, number or truth value, or are not there, make no header.
func (r *tokenRule) tells(token string, a *Auth) (out []UserHeader) {
	if r.payload != "" {
		out = append(out, UserHeader{r.payload, []byte(encodedPayload(token))})
	}
	for _, c := range r.claims {
		if v, ok := scalarText(a.at(c.path)); ok && plain(v) {
			out = append(out, UserHeader{c.name, []byte(v)})
		}
	}
	return out
}

// plain reports whether a value can be that of a header as it is.
func plain(v string) bool {
	return v != "" && v == strings.TrimSpace(v) && !strings.ContainsFunc(v, func(c rune) bool { return c < ' ' || c > '~' })
}

// UserHeaders appends the headers of a request that policies for a target take out or write: those that say who the user is, which nobody else may
// send, and that of the token, where it is not passed on. a is what Authenticate found, nil without a token.
func (m *Model) UserHeaders(dst []UserHeader, t *Target, r *Request, a *Auth) []UserHeader {
	if a != nil {
		dst = append(dst, a.tells...)
		if rule := a.rule; !rule.forward {
			for _, h := range rule.headers {
				if slices.ContainsFunc(r.values(h.name), h.holds) {
					dst = append(dst, UserHeader{Name: h.name})
				}
			}
		}
	}
	for _, l := range [...][]*tokens{m.tokens.root, m.tokens.by[t.Service.Namespace()]} {
		for _, p := range l {
			if !p.writes || !p.selects(t) {
				continue
			}
			for _, rule := range p.rules {
				if rule.payload != "" {
					dst = append(dst, UserHeader{Name: rule.payload})
				}
				for _, c := range rule.claims {
					dst = append(dst, UserHeader{Name: c.name})
				}
			}
		}
	}
	return dst
}

// TokenParams are the parameters of the query that are not passed on, where the token may be.
func (a *Auth) TokenParams() []string {
	if a == nil || a.rule.forward {
		return nil
	}
	return a.rule.params
}

// TokenCookies are the cookies that are not passed on, where the token may be.
func (a *Auth) TokenCookies() []string {
	if a == nil || a.rule.forward {
		return nil
	}
	return a.rule.cookies
}

// AppendCookiesWithout appends the cookies of a field but for some, each with "; " behind it, and reports whether it left one out. They are told
// apart as Authenticate tells them.
func AppendCookiesWithout(dst []byte, field string, names []string) (out []byte, left bool) {
	for pair := range strings.SplitSeq(field, ";") {
		pair = strings.TrimSpace(pair)
		if name, _, ok := strings.Cut(pair, "="); ok && slices.Contains(names, name) {
			left = true
			continue
		}
		dst = append(append(dst, pair...), "; "...)
	}
	return dst, left
}

// AppendQueryWithout appends a raw query without some parameters. They are told apart as Authenticate tells them.
func AppendQueryWithout(dst []byte, raw string, names []string) []byte {
	for first := true; raw != ""; {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		k, _, _ := strings.Cut(pair, "=")
		if slices.Contains(names, unescape(k)) {
			continue
		}
		if !first {
			dst = append(dst, '&')
		}
		dst, first = append(dst, pair...), false
	}
	return dst
}
