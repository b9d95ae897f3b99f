package policy

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// ofToken is what the names of conditions begin with that are on the user's token, beside those on headers, as in Istio.
const ofToken = "@request.auth."

// claimMatch reads the name of a condition on a claim: @request.auth.claims.a.b, or @request.auth.claims[a][b] for names with dots.
func (c *compiler) claimMatch(path, name string) KeyMatch {
	rest, ok := strings.CutPrefix(name, ofToken+"claims")
	var claim []string
	switch in, brackets := strings.CutPrefix(rest, "["); {
	case brackets:
		in, ok = strings.CutSuffix(in, "]")
		claim = strings.Split(in, "][")
	case strings.HasPrefix(rest, "."):
		claim = strings.Split(rest[1:], ".")
	default:
		ok = false
	}
	if !ok || slices.Contains(claim, "") || strings.ContainsAny(strings.Join(claim, ""), "[]") {
		c.fail(path, "write "+ofToken+"claims.NAME, or "+ofToken+"claims[NAME] where it has dots", "%q does not name a claim", name)
	}
	return KeyMatch{Name: ofToken + "claims[" + strings.Join(claim, "][") + "]", Claim: claim}
}

// claimsOnlyAtGateways refuses conditions on claims where nobody has verified a token by the time that rules are asked: a caller's own agent
// does not, the called one does. A VirtualService without hosts is looked at with those that delegate to it.
func (c *compiler) claimsOnlyAtGateways(path string, m *Match) {
	at, hint := m.gateways, "name gateways without mesh, in the match or in spec.gateways"
	if len(at) == 0 {
		at = c.gateways
	}
	if len(at) == 0 {
		hint = "write it into a VirtualService of a gateway"
	}
	if c.leaf || len(at) > 0 && !slices.Contains(at, inMesh) {
		return
	}
	for _, k := range slices.Concat(m.Headers, m.WithoutHeaders) {
		if k.Claim != nil {
			c.fail(path, hint, "%q is known at gateways alone", k.Name)
		}
	}
}

// holds reports whether a request has a value that the condition takes; of a header, whether each of its values is one.
func (k *KeyMatch) holds(r *Request) bool {
	if k.Claim != nil {
		return r.Auth.says(k.Claim, k.Value.ok)
	}
	vs := r.values(k.Name)
	for _, v := range vs {
		if !k.Value.ok(v) {
			return false
		}
	}
	return len(vs) > 0
}

// some reports whether a request has a value that the condition takes.
func (k *KeyMatch) some(r *Request) bool {
	if k.Claim != nil {
		return r.Auth.says(k.Claim, k.Value.ok)
	}
	return slices.ContainsFunc(r.values(k.Name), k.Value.ok)
}

// got are the values in words.
func (k *KeyMatch) got(r *Request) string {
	if k.Claim == nil {
		return quoted(r.values(k.Name))
	}
	var all []string
	r.Auth.says(k.Claim, func(v string) bool { all = append(all, v); return false })
	return quoted(all)
}

// String returns the condition in words.
func (k *KeyMatch) String() string {
	if k.Claim != nil {
		return "claim " + strings.Join(k.Claim, ".") + " " + k.Value.String()
	}
	return "header " + k.Name + " " + k.Value.String()
}

// says reports whether ok takes a claim, or one of a list of them: texts, and numbers and truth values as they are written. scope and permission
// are lists of words, as in Istio, and so is what the rule says. It allocates nothing.
func (a *Auth) says(path []string, ok func(string) bool) bool {
	if a == nil {
		return false
	}
	switch v := a.at(path).(type) {
	case []any:
		return slices.ContainsFunc(v, func(x any) bool {
			s, is := scalarText(x)
			return is && ok(s)
		})
	case string:
		if !a.rule.isList(path) {
			return ok(v)
		}
		for word := range strings.FieldsSeq(v) {
			if ok(word) {
				return true
			}
		}
		return false
	default:
		s, is := scalarText(v)
		return is && ok(s)
	}
}

// isList reports whether a claim that is a text is a list of words.
func (r *tokenRule) isList(path []string) bool {
	name := path[len(path)-1]
	return name == "scope" || name == "permission" || r != nil && slices.ContainsFunc(r.lists, func(l []string) bool { return slices.Equal(l, path) })
}

// scalarText is a claim, or a part of one, that is one value.
func scalarText(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case json.Number:
		return v.String(), true
	}
	return "", false
}
