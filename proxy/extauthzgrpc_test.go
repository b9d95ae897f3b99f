package proxy

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
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
		"allowed, failed":    {encode(ok, failed), "{0 0  false true false [] [] []}"},
		"allowed, a status":  {encode(ok, &authv3.CheckResponse{Status: &rpcstatus.Status{Code: 7}}), "{7 0  false false false [{a 1 false} {b 2 true}] [x-gone] []}"},
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
	start := time.Unix(1_700_000_000, 1)
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

// TestUnaryCall: what comes back of a call is a message alone when all of gRPC's framing and status say so.
func TestUnaryCall(t *testing.T) {
	frame := func(flag byte, n int, m string) string {
		return string(binary.BigEndian.AppendUint32([]byte{flag}, uint32(n))) + m
	}
	type answer struct {
		code            int
		header, trailer string // grpc-status
		body            string
	}
	var next answer
	speaks := new(http.Protocols)
	speaks.SetUnencryptedHTTP2(true)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b, err := io.ReadAll(r.Body); err != nil || string(b) != frame(0, 3, "ask") || r.Header.Get("Grpc-Timeout") != "250m" || r.URL.Path != "/a.B/C" {
			t.Errorf("asked %s %q, %v, %v", r.URL.Path, b, r.Header, err)
		}
		if next.header != "" {
			w.Header().Set("Grpc-Status", next.header)
		}
		w.WriteHeader(next.code)
		io.WriteString(w, next.body)
		if next.trailer != "" {
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", next.trailer)
		}
	}))
	srv.Config.Protocols = speaks
	srv.Start()
	defer srv.Close()
	p := &Proxy{asksGRPC: &http.Transport{Protocols: speaks, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", srv.Listener.Addr().String())
	}}}
	defer p.asksGRPC.CloseIdleConnections()
	for name, e := range map[string]struct {
		answer
		want, err string
	}{
		"a message":                  {answer{200, "", "0", frame(0, 5, "hello")}, "hello", ""},
		"an empty one":               {answer{200, "", "0", frame(0, 0, "")}, "", ""},
		"its status in the header":   {answer{200, "0", "", frame(0, 5, "hello")}, "hello", ""},
		"trailers alone":             {answer{200, "7", "", ""}, "", `it answers with status 200, grpc-status "7"`},
		"a message, and it fails":    {answer{200, "", "13", frame(0, 5, "hello")}, "", `it answers with status 200, grpc-status "13"`},
		"without a status":           {answer{200, "", "", frame(0, 5, "hello")}, "", `it answers with status 200, grpc-status ""`},
		"another status of HTTP":     {answer{404, "", "0", frame(0, 5, "hello")}, "", `it answers with status 404, grpc-status "0"`},
		"compressed":                 {answer{200, "", "0", frame(1, 5, "hello")}, "", errAnswer.Error()},
		"shorter than it says":       {answer{200, "", "0", frame(0, 6, "hello")}, "", errAnswer.Error()},
		"two messages":               {answer{200, "", "0", frame(0, 5, "hello") + frame(0, 5, "hello")}, "", errAnswer.Error()},
		"the beginning of a message": {answer{200, "", "0", "\x00\x00\x00\x00"}, "", errAnswer.Error()},
		"nothing":                    {answer{200, "", "0", ""}, "", errAnswer.Error()},
		"longer than may be":         {answer{200, "", "0", frame(0, maxCheckAnswer, strings.Repeat("x", maxCheckAnswer))}, "", `it answers with status 200, grpc-status ""`}, // its end is not read
	} {
		next = e.answer
		got, err := p.callGRPC(t.Context(), mesh.MustServiceName("judge"), 80, "/a.B/C", 250*time.Millisecond, []byte("ask"))
		if why := fmt.Sprint(err); string(got) != e.want || (err != nil) != (e.err != "") || err != nil && why != e.err {
			t.Errorf("%s: %q, %s, want %q, %s", name, got, why, e.want, e.err)
		}
	}
}

// TestDeniedStatus: who denies may say with which status of an error, or of a way elsewhere.
func TestDeniedStatus(t *testing.T) {
	for status, want := range map[uint64]int{0: 403, 299: 0, 300: 300, 599: 599, 600: 0, 1 << 40: 0} {
		v := &verdict{}
		result, err := v.answer(&policy.Provider{}, &checkAnswer{code: 7, status: status})
		got := 0
		if v.denied != nil {
			got = v.denied.code
		}
		if got != want || (result == "denied") != (want > 0) || (err == nil) != (want > 0) {
			t.Errorf("%d: %q with %d, %v", status, result, got, err)
		}
	}
}
