package mesh

import (
	"encoding"
	"errors"
	"strings"
	"testing"
)

func TestCheckLabel(t *testing.T) {
	for s, ok := range map[string]bool{
		"web": true, "a": true, "0": true, "a-b": true, "9z": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "a-": false, "A": false, "a.b": false, "a_b": false, "ä": false, "a b": false, "a\x00": false,
		strings.Repeat("a", 64): false,
	} {
		err := CheckLabel("service name", s)
		if (err == nil) != ok {
			t.Errorf("CheckLabel(%q) = %v, want ok %v", s, err, ok)
		}
		if err != nil && (!errors.Is(err, ErrInvalidName) || !strings.Contains(err.Error(), "service name")) {
			t.Errorf("CheckLabel(%q): %v does not name the field or wrap ErrInvalidName", s, err)
		}
	}
}

func TestParseServiceName(t *testing.T) {
	for in, want := range map[string]string{"web": "default/web", "prod/web": "prod/web", "/web": "", "a/b/c": "", "": "", "a/": "", "Web": ""} {
		s, err := ParseServiceName(in)
		if (err == nil) != (want != "") || s.String() != want {
			t.Errorf("ParseServiceName(%q) = %q, %v; want %q", in, s, err, want)
		}
	}
	if f := MustServiceName("prod/web").FQDN(); f != "web.prod.service.mesh" {
		t.Errorf("FQDN %q", f)
	}
}

func TestParseHost(t *testing.T) {
	for _, c := range []struct{ host, from, want string }{
		{"web", "prod", "prod/web"}, {"web", "", "default/web"}, {"web.shop", "prod", "shop/web"}, {"web.shop.svc", "prod", "shop/web"},
		{"web.shop.svc.cluster.local", "prod", "shop/web"}, {"web.shop.service.mesh", "prod", "shop/web"},
		{"web.service.mesh", "prod", "default/web"}, {"WEB.Service.Mesh.", "prod", "default/web"},
		{"web.svc.cluster.local", "prod", ""}, {"example.com.org", "", ""}, {"", "", ""}, {".", "", ""}, {"web..", "", ""},
		{"*.shop", "", ""}, {"service.mesh", "", "mesh/service"}, {"a.b.c.service.mesh", "", ""},
	} {
		s, ok := ParseHost(c.host, c.from)
		if ok != (c.want != "") || ok && s.String() != c.want {
			t.Errorf("ParseHost(%q, %q) = %q, %v; want %q", c.host, c.from, s, ok, c.want)
		}
	}
}

func TestTextRoundTrips(t *testing.T) {
	id, _ := ParseNodeID("abcdefghijklmnopqrstuvwxye")
	td, _ := ParseTrustDomain("demo.mesh")
	wl, _ := WorkloadIdentity(td, "default", "web")
	for _, c := range []struct {
		v    encoding.TextMarshaler
		into encoding.TextUnmarshaler
		bad  string
	}{
		{MustServiceName("a/b"), new(ServiceName), "A"}, {id, new(NodeID), "abc"}, {td, new(TrustDomain), "A"}, {wl, new(Identity), "spiffe://a"},
		{GRPC, new(Protocol), "h3"}, {Critical, new(Health), "ill"}, {Left, new(Status), "gone"},
	} {
		b, err := c.v.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.into.UnmarshalText(b); err != nil {
			t.Errorf("%s: %v", b, err)
		}
		again, _ := c.into.(encoding.TextMarshaler).MarshalText()
		if string(again) != string(b) {
			t.Errorf("%q came back as %q", b, again)
		}
		if err := c.into.UnmarshalText([]byte(c.bad)); err == nil {
			t.Errorf("%T accepts %q", c.into, c.bad)
		}
		if after, _ := c.into.(encoding.TextMarshaler).MarshalText(); string(after) != string(b) {
			t.Errorf("%T changed by a refused text: %q", c.into, after)
		}
	}
}

func TestLabels(t *testing.T) {
	many := Labels{}
	for i := range MaxLabels + 1 {
		many["k"+strings.Repeat("a", i)] = "v"
	}
	for _, c := range []struct {
		l  Labels
		ok bool
	}{
		{nil, true}, {Labels{"version": "v1"}, true}, {Labels{"app.kubernetes.io/name": "web"}, true}, {Labels{"a": ""}, true},
		{Labels{"": "x"}, false}, {Labels{"a": "-x"}, false}, {Labels{"a/": "x"}, false}, {Labels{"A.b/c": "x"}, false},
		{Labels{"a": strings.Repeat("v", 64)}, false}, {Labels{"a b": "x"}, false}, {many, false},
	} {
		if err := c.l.Check(); (err == nil) != c.ok {
			t.Errorf("%v: %v, want ok %v", c.l, err, c.ok)
		}
	}
	l := Labels{"version": "v1", "tier": ""}
	for _, c := range []struct {
		sel Labels
		ok  bool
	}{{nil, true}, {Labels{"version": "v1"}, true}, {Labels{"version": "v2"}, false}, {Labels{"x": ""}, false}, {Labels{"tier": ""}, true}} {
		if l.Match(c.sel) != c.ok {
			t.Errorf("Match(%v) is not %v", c.sel, c.ok)
		}
	}
}

func TestLocality(t *testing.T) {
	for s, ok := range map[string]bool{"": true, "eu": true, "eu/a": true, "eu/a/r1": true, "eu/a/r1/x": false, "eu//r1": false, "EU": false} {
		l, err := ParseLocality(s)
		if (err == nil) != ok || ok && l.String() != s {
			t.Errorf("ParseLocality(%q) = %q, %v", s, l, err)
		}
	}
}
