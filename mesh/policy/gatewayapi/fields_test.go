package gatewayapi

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/internal/strictyaml"
)

// TestEveryFieldOfTheGatewayAPIIsKnown holds the types to testdata/fields-v1.6.1.txt: the paths of the properties below spec in
// version v1 of config/crd/experimental/gateway.networking.k8s.io_{httproutes,grpcroutes,tlsroutes,tcproutes,referencegrants,gateways,gatewayclasses,backendtlspolicies}.yaml of that
// release. Below a field that is refused nothing is compared.
func TestEveryFieldOfTheGatewayAPIIsKnown(t *testing.T) {
	b, err := os.ReadFile("testdata/fields-v1.6.1.txt")
	if err != nil {
		t.Fatal(err)
	}
	theirs := strings.Fields(string(b))
	var ours, refused []string
	for name, typ := range map[string]reflect.Type{"HTTPRoute": reflect.TypeFor[HTTPRouteSpec](), "GRPCRoute": reflect.TypeFor[GRPCRouteSpec](),
		"TLSRoute": reflect.TypeFor[TLSRouteSpec](), "TCPRoute": reflect.TypeFor[TCPRouteSpec](), "Gateway": reflect.TypeFor[GatewaySpec](), "GatewayClass": reflect.TypeFor[GatewayClassSpec](), "ReferenceGrant": reflect.TypeFor[ReferenceGrantSpec](), "BackendTLSPolicy": reflect.TypeFor[BackendTLSPolicySpec]()} {
		walk(name, typ, &ours, &refused)
	}
	theirs = slices.DeleteFunc(theirs, func(p string) bool {
		return slices.ContainsFunc(refused, func(r string) bool { return strings.HasPrefix(p, r+".") })
	})
	for _, p := range theirs {
		if !slices.Contains(ours, p) {
			t.Errorf("%s is a field of the Gateway API that our types do not name", p)
		}
	}
	for _, p := range ours {
		if !slices.Contains(theirs, p) {
			t.Errorf("%s is no field of the Gateway API", p)
		}
	}
	if len(ours) < 100 {
		t.Errorf("only %d fields were compared: the walk is broken", len(ours))
	}
}

func walk(path string, typ reflect.Type, ours, refused *[]string) {
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct {
		return
	}
	if typ.NumField() == 0 {
		*refused = append(*refused, path)
	}
	for f := range typ.Fields() {
		p := path + "." + f.Tag.Get("yaml")
		*ours = append(*ours, p)
		walk(p, f.Type, ours, refused)
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{"0s": 0, "500ms": 500 * time.Millisecond, "1h30m": 90 * time.Minute, "10s": 10 * time.Second,
		"1.5s": -1, "-1s": -1, "100000s": -1, "1us": -1, "1d": -1, "1h1m1s1ms1h": -1, "": -1} {
		var v struct {
			D Duration `yaml:"d"`
		}
		err := strictyaml.Decode("f", []byte("d: '"+text+"'\n"), &v)
		if (err == nil) != (want >= 0) || err == nil && time.Duration(v.D) != want {
			t.Errorf("%q: %v, %v", text, time.Duration(v.D), err)
		}
	}
	if err := strictyaml.Decode("f", []byte("d: 5\n"), &struct {
		D Duration `yaml:"d"`
	}{}); err == nil || err.Error() != "f:1: d: is a number, not a string; write it as 500ms, 10s or 1h30m" {
		t.Error(err)
	}
}
