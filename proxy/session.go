package proxy

import (
	"encoding/base64"
	"encoding/binary"
	"strconv"
	"time"

	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/http1"
)

// pass is what a client has of its session: which instance it is at, by a hash that says nothing else, and since when. Who makes one up
// gets to an instance that the rule calls anyway.
type pass struct {
	of    uint64 // hash of the instance's name
	began uint32 // seconds since 1970
}

const passBytes = 12

// passText is how long a pass is in a cookie or header.
var passText = base64.RawURLEncoding.EncodedLen(passBytes)

func (p pass) append(dst []byte) []byte {
	var b [passBytes]byte
	binary.BigEndian.PutUint64(b[:], p.of)
	binary.BigEndian.PutUint32(b[8:], p.began)
	return base64.RawURLEncoding.AppendEncode(dst, b[:])
}

func parsePass(v []byte) (p pass, ok bool) {
	var b [passBytes]byte
	if len(v) != passText {
		return p, false
	}
	if n, err := base64.RawURLEncoding.Decode(b[:], v); n != passBytes || err != nil {
		return p, false
	}
	return pass{binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint32(b[8:])}, true
}

// alive reports whether a session goes on at a time. One that began later than now is none.
func (p pass) alive(s *policy.Session, now time.Time) bool {
	past := now.Sub(time.Unix(int64(p.began), 0))
	return past > -time.Minute && (s.Absolute == 0 || past < s.Absolute)
}

// resume finds where the client's session is: the destination, and 1 and the index of the instance. nil where it has none that goes on, or the
// instance has gone. It is there whatever the weights of destinations are.
func (c *call) resume(s *policy.Session, now time.Time) (at *split, stays int) {
	c.pass = pass{}
	var v []byte
	if s.Header != "" {
		v = c.x.Request.Get(s.Header)
	} else {
		for line := range c.x.Request.Values("cookie") {
			if v = cookieValue(line, s.Cookie); v != nil {
				break
			}
		}
	}
	p, ok := parsePass(v)
	if !ok || !p.alive(s, now) {
		return nil, 0
	}
	for i := range c.rule.splits {
		d := c.scoped(&c.rule.splits[i])
		if d.fault != nil {
			continue
		}
		for j, t := range d.dest.targets {
			if t.session == p.of && d.dest.picker.Well(j, now.UnixNano()) {
				c.pass = p
				return d, j + 1
			}
		}
	}
	return nil, 0
}

// handPass tells the client its session, if that has changed: it is new, or at another instance.
func (c *call) handPass(a *http1.Edit, s *policy.Session, t *target, now time.Time) {
	if c.pass.of == t.session {
		return
	}
	x, p := c.x, pass{t.session, uint32(now.Unix())}
	at := len(x.Scratch)
	if s.Header != "" {
		x.Scratch = p.append(x.Scratch)
		a.Set = append(a.Set, http1.Pair{Name: s.Header, Value: x.Scratch[at:len(x.Scratch):len(x.Scratch)]})
		return
	}
	x.Scratch = append(append(x.Scratch, s.Cookie...), '=')
	x.Scratch = append(p.append(x.Scratch), "; Path=/; HttpOnly"...)
	if s.Permanent {
		x.Scratch = strconv.AppendInt(append(x.Scratch, "; Max-Age="...), int64(s.Absolute/time.Second), 10)
	}
	if c.edge != nil && secure(c.edge.port.kind) {
		x.Scratch = append(x.Scratch, "; Secure"...)
	}
	a.Add = append(a.Add, http1.Pair{Name: "Set-Cookie", Value: x.Scratch[at:len(x.Scratch):len(x.Scratch)]})
}
