package proxy

import (
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh/policy"
)

func TestPass(t *testing.T) {
	now := time.Unix(1_900_000_000, 0)
	at := func(d time.Duration) uint32 { return uint32(now.Add(d).Unix()) }
	p := pass{7, at(-time.Hour)}
	if got, ok := parsePass(p.append(nil)); !ok || got != p || len(p.append(nil)) != passText {
		t.Errorf("%v %v", got, ok)
	}
	for _, c := range []struct {
		p    pass
		s    policy.Session
		want bool
	}{
		{p, policy.Session{}, true},
		{p, policy.Session{Absolute: time.Hour + time.Second}, true},
		{p, policy.Session{Absolute: time.Hour}, false},
		{pass{7, at(time.Hour)}, policy.Session{}, false}, // nobody's clock is so far ahead
		{pass{7, at(30 * time.Second)}, policy.Session{Absolute: time.Hour}, true},
	} {
		if got := c.p.alive(&c.s, now); got != c.want {
			t.Errorf("%+v by %+v: %v", c.p, c.s, got)
		}
	}
}
