package policy

import (
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/meshagent/meshagent/mesh/policy/gatewayapi"
)

// Session keeps a client at the instance that served it first. One of Cookie and Header is set: where the client says its session.
type Session struct {
	Cookie    string
	Header    string        // in lower case
	Absolute  time.Duration // from its beginning; 0 is no end
	Permanent bool          // the cookie outlives the browser, until Absolute
}

// maxSessionName is how long a session's name may be: the Gateway API's.
const maxSessionName = 128

// session compiles the sessionPersistence of a rule (GEP-1619).
func (c *compiler) session(path string, in *gatewayapi.SessionPersistence, rule int) *Session {
	if in == nil {
		return nil
	}
	path += ".sessionPersistence"
	s, name := &Session{}, in.SessionName
	if name == "" {
		h := fnv.New32a()
		fmt.Fprint(h, c.key, rule)
		name = fmt.Sprintf("session-%08x", h.Sum32())
	}
	if len(name) > maxSessionName {
		c.fail(path+".sessionName", fmt.Sprintf("write %d characters at most", maxSessionName), "is too long")
	}
	switch in.Type {
	case "", "Cookie":
		if s.Cookie = name; !httpguts.ValidHeaderFieldName(name) { // which is the same: a token
			c.fail(path+".sessionName", "", "%q is not the name of a cookie", name)
		}
	case "Header":
		c.headerName(path+".sessionName", name, "a session's")
		s.Header = strings.ToLower(name)
	default:
		c.fail(path+".type", "write Cookie or Header", "%q is not where a session can be", in.Type)
	}
	if t := in.AbsoluteTimeout; t != nil {
		if s.Absolute = time.Duration(*t); s.Absolute < time.Second {
			c.fail(path+".absoluteTimeout", "write 1s or more", "%v is too short", s.Absolute)
		}
	}
	if k := in.CookieConfig; k != nil {
		switch {
		case in.Type == "Header":
			c.fail(path+".cookieConfig", "remove it", "is for type Cookie alone")
		case k.LifetimeType == "Permanent":
			if s.Permanent = true; in.AbsoluteTimeout == nil {
				c.fail(path+".absoluteTimeout", "write how long the cookie lives", "is missing beside lifetimeType Permanent")
			}
		case k.LifetimeType != "" && k.LifetimeType != "Session":
			c.fail(path+".cookieConfig.lifetimeType", "write Session or Permanent", "%q is no lifetime", k.LifetimeType)
		}
	}
	return s
}
