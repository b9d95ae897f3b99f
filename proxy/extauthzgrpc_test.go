package proxy

import (
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
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
