package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
	"github.com/meshagent/meshagent/proxy/lb"
)

// hashHeader checks the name of a header that decides where a request goes.
func (c *compiler) hashHeader(path, name string) string {
	if !httpguts.ValidHeaderFieldName(name) {
		c.fail(path, "", "%q is not the name of a header", name)
	}
	return strings.ToLower(name)
}

// cookie compiles a cookie. The answer sets it where a ttl says for how long.
func (c *compiler) cookie(path string, k *istio.HTTPCookie) *Cookie {
	out := &Cookie{Name: k.Name}
	if !httpguts.ValidHeaderFieldName(k.Name) { // it is a token, too
		c.fail(path+".name", "write a name such as session", "%q is not the name of a cookie", k.Name)
	}
	if k.TTL == nil {
		if k.Path != "" || k.Attributes != nil {
			c.fail(path+".ttl", "write how long the cookie lives; 0s is until the browser ends", "is missing: no cookie is set without it, and path and attributes are of no use")
		}
		return out
	}
	var b strings.Builder
	if k.Path != "" {
		if k.Path[0] != '/' || !cookieText(k.Path) {
			c.fail(path+".path", "begin it with a slash, and leave out ';'", "%q is not the path of a cookie", k.Path)
		}
		fmt.Fprintf(&b, "; Path=%s", k.Path)
	}
	if t := c.duration(path+".ttl", k.TTL, 0, 400*24*time.Hour); t > 0 { // browsers cut it there (RFC 6265bis)
		if t%time.Second != 0 {
			c.fail(path+".ttl", "round it", "%v is not in whole seconds", t)
		}
		fmt.Fprintf(&b, "; Max-Age=%d", t/time.Second)
	}
	b.WriteString("; HttpOnly")
	seen := map[string]string{"path": "write path", "max-age": "write ttl", "expires": "write ttl", "httponly": "it is always there"}
	for i, a := range k.Attributes {
		path := fmt.Sprintf("%s.attributes[%d]", path, i)
		name := strings.ToLower(a.Name)
		switch hint, twice := seen[name]; {
		case !httpguts.ValidHeaderFieldName(a.Name):
			c.fail(path+".name", "", "%q is not the name of an attribute", a.Name)
		case twice:
			c.fail(path+".name", hint, "%q cannot be set here", a.Name)
		}
		seen[name] = "remove one"
		if !cookieText(a.Value) {
			c.fail(path+".value", "leave out ';' and control characters", "%q is not the value of an attribute", a.Value)
		}
		b.WriteString("; " + a.Name)
		if a.Value != "" {
			b.WriteString("=" + a.Value)
		}
	}
	out.Set = [2]string{k.Name + "=", b.String()}
	return out
}

func cookieText(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' || r == ';' })
}

// region checks the name of a region.
func (c *compiler) region(path, name string) {
	if err := mesh.CheckLabel("region", name); err != nil {
		c.fail(path, "write a region alone, without zone and *", "%q is not a region", name)
	}
}

// distribute compiles shares of localities.
func (c *compiler) distribute(path string, ds []istio.Distribute, out *lb.Locality) {
	for i, d := range ds {
		path := fmt.Sprintf("%s[%d]", path, i)
		c.pattern(path+".from", d.From)
		for _, o := range out.Distribute {
			if overlap(o.From, d.From) {
				c.fail(path+".from", "make them differ", "%q and %q have localities in common", o.From, d.From)
			}
		}
		to, sum := []lb.Share{}, uint64(0)
		for _, at := range slices.Sorted(maps.Keys(d.To)) {
			c.pattern(path+".to", at)
			for _, o := range to {
				if overlap(o.To, at) {
					c.fail(path+".to", "make them differ", "%q and %q have localities in common", o.To, at)
				}
			}
			if w := d.To[at]; w == 0 {
				c.fail(path+".to."+at, "leave the locality out, which is the same", "has no weight")
			}
			to = append(to, lb.Share{To: at, Weight: d.To[at]})
			sum += uint64(d.To[at])
		}
		if sum != 100 {
			c.fail(path+".to", "", "the weights come to %d, and must come to 100", sum)
		}
		out.Distribute = append(out.Distribute, lb.Distribute{From: d.From, To: to})
	}
}

// pattern checks a locality of a distribute.
func (c *compiler) pattern(path, s string) {
	segs := strings.Split(s, "/")
	for i, seg := range segs {
		if last := i == len(segs)-1; len(segs) > 3 || mesh.CheckLabel("part", seg) != nil && !(seg == "*" && last) {
			c.fail(path, "write region, region/zone or region/zone/subzone; the last part may be *", "%q is not a locality", s)
			return
		}
	}
}

// overlap reports whether two patterns have a locality in common.
func overlap(a, b string) bool {
	x, y := strings.Split(a, "/"), strings.Split(b, "/")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] && x[i] != "*" && y[i] != "*" {
			return false
		}
	}
	return true
}

// priority checks a label of a failoverPriority.
func (c *compiler) priority(path, s string, before []string) {
	key, value, named := strings.Cut(s, "=")
	l := mesh.Labels{key: ""}
	if named {
		l[key] = value
	}
	if err := l.Check(); err != nil {
		c.fail(path, "write key, or key=value", "%v", err)
	}
	if slices.ContainsFunc(before, func(o string) bool { k, _, _ := strings.Cut(o, "="); return k == key }) {
		c.fail(path, "remove one", "the label %q is there twice", key)
	}
}
