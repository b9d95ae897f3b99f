package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/engine"
)

// FuzzCheckAnswer reads what a service may answer beside the generated types: what those cannot read is no answer, and of what they read nothing
// that denies is missed.
func FuzzCheckAnswer(f *testing.F) {
	for _, r := range []*authv3.CheckResponse{
		{}, {Status: &rpcstatus.Status{Code: 7, Message: "no"}},
		{Status: &rpcstatus.Status{Code: 16}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: 401}, Body: "x"}}},
		{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{HeadersToRemove: []string{"a"}, Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "b", Value: "c"}}}}}},
		{HttpResponse: &authv3.CheckResponse_ErrorResponse{}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var a checkAnswer
		err := a.read(b)
		var r authv3.CheckResponse
		if theirs := proto.Unmarshal(b, &r); theirs != nil || err != nil {
			return // names and values may be refused that the types take, and texts taken that are no UTF-8
		}
		if got, want := uint32(a.code), uint32(r.GetStatus().GetCode()); got != want {
			t.Errorf("code %d, want %d", got, want)
		}
		if d := r.GetDeniedResponse(); d != nil && (!a.denied || uint32(a.status) != uint32(d.GetStatus().GetCode()) || a.body != d.GetBody()) {
			t.Errorf("%+v, want %v", a, d)
		}
		if ok := r.GetOkResponse(); ok != nil && (len(a.remove) < len(ok.GetHeadersToRemove()) || len(a.headers) < len(ok.GetHeaders()) || len(a.client) < len(ok.GetResponseHeadersToAdd()) ||
			len(ok.GetQueryParametersToRemove())+len(ok.GetQueryParametersToSet()) > 0 && !a.queries) {
			t.Errorf("%+v, want %v", a, ok)
		}
		if r.GetErrorResponse() != nil && !a.failed {
			t.Error("it failed")
		}
	})
}

// TestCheckAnswers: what generated types make of an answer is what we read; of several answers in one message the last counts, and what is no message is none.
func TestCheckAnswers(t *testing.T) {
	encode := func(rs ...*authv3.CheckResponse) (out []byte) {
		for _, r := range rs {
			b, err := proto.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, b...)
		}
		return out
	}
	ok := &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{HeadersToRemove: []string{"X-Gone"}, Headers: []*corev3.HeaderValueOption{
		{Header: &corev3.HeaderValue{Key: "A", Value: "1"}}, {Header: &corev3.HeaderValue{Key: "b", RawValue: []byte("2")}, Append: wrapperspb.Bool(true)}}}}}
	denied := &authv3.CheckResponse{Status: &rpcstatus.Status{Code: 7}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: 401}, Body: "x"}}}
	failed := &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_ErrorResponse{}}
	fixed := protowire.AppendFixed32(protowire.AppendTag(nil, 1, protowire.Fixed32Type), 7) // a field of another type is one that nobody knows
	const allows = "{0 0  false false false [{a 1 false} {b 2 true}] [x-gone] []}"
	for name, e := range map[string]struct {
		m    []byte
		want string // "" is an error
	}{
		"nothing":            {nil, "{0 0  false false false [] [] []}"},
		"allowed":            {encode(ok), allows},
		"denied":             {encode(denied), "{7 401 x true false false [] [] []}"},
		"failed":             {encode(failed), "{0 0  false true false [] [] []}"},
		"denied, allowed":    {encode(denied, ok), "{7 0  false false false [{a 1 false} {b 2 true}] [x-gone] []}"},
		"allowed, denied":    {encode(ok, denied), "{7 401 x true false false [] [] []}"},
		"failed, allowed":    {encode(failed, ok), allows},
		"allowed in parts":   {encode(ok, ok), "{0 0  false false false [{a 1 false} {b 2 true} {a 1 false} {b 2 true}] [x-gone x-gone] []}"},
		"an unknown field":   {slices.Concat(fixed, encode(ok)), allows},
		"half a tag":         {[]byte{0x80}, ""},
		"a tag alone":        {[]byte{0x0a}, ""},
		"longer than it is":  {[]byte{0x0a, 2, 8}, ""},
		"a number cut":       {[]byte{0x08, 0x80}, ""},
		"a number cut below": {[]byte{0x0a, 2, 8, 0x80}, ""},
		"a name that cannot be": {encode(&authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "a b", Value: "1"}}}}}}), ""},
	} {
		var a checkAnswer
		err := a.read(e.m)
		if got := fmt.Sprint(a); (err != nil) != (e.want == "") || err == nil && got != e.want {
			t.Errorf("%s: %s, %v, want %s", name, got, err, e.want)
		}
	}
}

// TestCheckMessages: what is asked, as generated types read it.
func TestCheckMessages(t *testing.T) {
	td, err := mesh.ParseTrustDomain("test.mesh")
	if err != nil {
		t.Fatal(err)
	}
	id, err := mesh.WorkloadIdentity(td, "default", "front")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Unix(1_700_000_000, 123)
	ask := func(q policy.Request, b part) *authv3.AttributeContext {
		t.Helper()
		x := new(engine.Call)
		x.Result.Start = start
		x.Request.Method, x.Request.Path, x.Request.Host = []byte("GET"), []byte("/a"), []byte("web")
		q.Source.IP, q.Source.Identity, q.Port = netip.MustParseAddr("192.0.2.7"), id, 8443
		c := &call{x: x}
		c.id = []byte("request")
		var r authv3.CheckRequest
		if err := proto.Unmarshal(c.checkMessage(&q, "spiffe://test.mesh/ns/default/sa/web", b), &r); err != nil {
			t.Fatal(err)
		}
		a := r.GetAttributes()
		if s := a.GetSource(); s.GetPrincipal() != id.String() || s.GetAddress().GetSocketAddress().GetAddress() != "192.0.2.7" {
			t.Errorf("the source is %v", s)
		}
		if d := a.GetDestination(); d.GetPrincipal() != "spiffe://test.mesh/ns/default/sa/web" || d.GetAddress().GetSocketAddress().GetPortValue() != 8443 {
			t.Errorf("the destination is %v", d)
		}
		return a
	}
	if a := ask(policy.Request{SNI: "a.example.com"}, part{}); a.GetTlsSession().GetSni() != "a.example.com" || a.Request != nil {
		t.Errorf("of a connection with TLS: %v", a)
	}
	if a := ask(policy.Request{}, part{}); a.TlsSession != nil || a.Request != nil {
		t.Errorf("of a connection: %v", a)
	}
	r := ask(policy.Request{Method: "GET", Scheme: "https"}, part{told: true, bytes: []byte("a\xff"), cut: true}).GetRequest()
	if h := r.GetHttp(); !r.GetTime().AsTime().Equal(start) || h.GetId() != "request" || h.GetMethod() != "GET" || h.GetPath() != "/a" || h.GetHost() != "web" || h.GetScheme() != "https" ||
		h.GetSize() != 2 || h.GetBody() != "a!" || len(h.GetRawBody()) != 0 || h.GetHeaders()["x-envoy-auth-partial-body"] != "true" || h.GetProtocol() != "HTTP/1.1" {
		t.Errorf("of a request: %v", r)
	}
	if h := ask(policy.Request{Method: "GET"}, part{told: true, bytes: []byte("a\xff"), raw: true}).GetRequest().GetHttp(); h.GetBody() != "" || string(h.GetRawBody()) != "a\xff" ||
		h.GetHeaders()["x-envoy-auth-partial-body"] != "false" {
		t.Errorf("of a request whose body is told as it is: %v", h)
	}
}
