package policy

import (
	"fmt"
	"strings"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/proxy/lb"
)

// Words says what the policy wants of calls, where that is not the default: a line each, with what it is about before a colon.
func (t *TrafficPolicy) Words() (out []string) {
	line := func(what string, words ...string) {
		if s := strings.Join(words, ", "); s != "" {
			out = append(out, what+": "+s)
		}
	}
	if h := t.Hash; h != nil {
		switch {
		case h.Header != "":
			line("decides", "header "+h.Header)
		case h.Query != "":
			line("decides", "query parameter "+h.Query)
		case h.SourceIP:
			line("decides", "the caller's address")
		case h.Cookie.Set[0] != "":
			line("decides", "cookie "+h.Cookie.Name+", which is set where it is missing")
		default:
			line("decides", "cookie "+h.Cookie.Name)
		}
	}
	if t.Warmup.Window > 0 {
		line("warm-up", fmt.Sprintf("%v, from %v %% of the weight", t.Warmup.Window, t.Warmup.MinPercent))
	}
	line("limits", t.Pool.words()...)
	if b := t.Budget; b != nil {
		of := "of the calls in flight"
		if b.Interval > 0 {
			of = fmt.Sprintf("of the calls of the last %v", b.Interval)
		}
		line("retries", fmt.Sprintf("%v %% %s, %d always", b.Percent, of, b.Min))
	}
	if h := t.Hedge; h != nil {
		line("hedged", h.String())
	}
	if o := t.Outlier; o != nil {
		line("outliers", o.words()...)
	}
	if t.TLS.On {
		how := "TLS"
		if t.TLS.CertFile != "" {
			how = "mutual TLS"
		}
		line("encrypted", how, t.TLS.SNI)
	}
	if t.Proxied > 0 {
		line("begins", fmt.Sprintf("connections with a PROXY header, version %d", t.Proxied))
	}
	if t.Tunnel != "" {
		line("through", "it is a forward proxy, which connects to "+t.Tunnel)
	}
	return out
}

func (p *Pool) words() (out []string) {
	number := func(n int, what string) {
		if n > 0 {
			out = append(out, fmt.Sprintf(what, n))
		}
	}
	times := func(d time.Duration, what string) {
		if d > 0 {
			out = append(out, fmt.Sprintf(what, d))
		}
	}
	number(p.Conns, "%d connections in use")
	number(p.Pending, "%d calls that wait for one")
	number(p.Requests, "%d requests")
	number(p.Retries, "%d retries")
	number(p.Calls, "%d requests of a connection")
	number(p.Streams, "%d streams of a connection")
	times(p.Life, "a connection lasts %v")
	times(p.Idle, "unused for %v")
	times(p.TCPIdle, "silent for %v")
	if p.Ping > 0 {
		out = append(out, fmt.Sprintf("asked after %v without a byte, ended after %v more", p.Ping, p.Pong))
	}
	return out
}

func (o *Outlier) words() (out []string) {
	count := func(n uint32, what string) {
		if n > 0 {
			out = append(out, fmt.Sprintf("%d %s in a row", n, what))
		}
	}
	count(o.Consecutive5xxErrors, "errors")
	count(o.ConsecutiveGatewayErrors, "gateway errors")
	if o.SplitExternalLocalOriginErrors {
		count(o.ConsecutiveLocalOriginFailures, "failures to get an answer")
	}
	return append(out, fmt.Sprintf("for %v and more", o.BaseEjectionTime), fmt.Sprintf("%d %% of the instances at most", o.MaxEjectionPercent))
}

// near says what part the locality of an instance has for a caller; ok is false when it gets no calls for it.
func (v *View) near(t *TrafficPolicy, i *mesh.Instance) (near string, ok bool) {
	l := t.Near()
	if l == nil || v.At == nil {
		return "", true
	}
	from := *l
	from.From, from.Labels = v.From, v.Labels
	var c lb.Candidate
	c.Locality, c.Labels = v.At(i)
	level, share, ok := from.Place(&c)
	switch {
	case !ok:
		return "", false
	case l.Zones != nil && v.From == c.Locality:
		return "own zone", true
	case l.Zones != nil && v.From.Region == c.Locality.Region:
		return "another zone of the region", true
	case share > 0:
		return fmt.Sprintf("%d %%", share), true
	}
	return fmt.Sprintf("level %d", level+1), true
}
