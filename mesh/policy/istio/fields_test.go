package istio

import (
	"reflect"
	"slices"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
)

// TestEveryFieldOfIstioIsKnown walks Istio's own descriptors beside our types: a field that Istio has and we do not know, or the
// reverse, fails here. A new version of Istio's API thus shows what there is to decide.
func TestEveryFieldOfIstioIsKnown(t *testing.T) {
	seen := 0
	for _, c := range []struct {
		proto protoreflect.MessageDescriptor
		ours  reflect.Type
	}{
		{(&networking.VirtualService{}).ProtoReflect().Descriptor(), reflect.TypeFor[VirtualService]()},
		{(&networking.Gateway{}).ProtoReflect().Descriptor(), reflect.TypeFor[Gateway]()},
		{(&networking.DestinationRule{}).ProtoReflect().Descriptor(), reflect.TypeFor[DestinationRule]()},
		{(&networking.ServiceEntry{}).ProtoReflect().Descriptor(), reflect.TypeFor[ServiceEntry]()},
		{(&networking.WorkloadEntry{}).ProtoReflect().Descriptor(), reflect.TypeFor[WorkloadEntry]()},
		{(&networking.Sidecar{}).ProtoReflect().Descriptor(), reflect.TypeFor[Sidecar]()},
		{(&security.PeerAuthentication{}).ProtoReflect().Descriptor(), reflect.TypeFor[PeerAuthentication]()},
		{(&security.RequestAuthentication{}).ProtoReflect().Descriptor(), reflect.TypeFor[RequestAuthentication]()},
		{(&security.AuthorizationPolicy{}).ProtoReflect().Descriptor(), reflect.TypeFor[AuthorizationPolicy]()},
	} {
		seen += compare(t, string(c.proto.Name()), c.proto, c.ours)
	}
	if seen < 100 {
		t.Errorf("only %d fields were compared: the walk is broken", seen)
	}
}

func compare(t *testing.T, path string, d protoreflect.MessageDescriptor, ours reflect.Type) (seen int) {
	for ours.Kind() == reflect.Pointer || ours.Kind() == reflect.Slice || ours.Kind() == reflect.Map {
		ours = ours.Elem()
	}
	if ours.Kind() != reflect.Struct || ours.NumField() == 0 || ours == reflect.TypeFor[StringMatch]() || d.ParentFile().Package() == "google.protobuf" {
		return 0
	}
	var known []string
	for field := range ours.Fields() {
		known = append(known, field.Tag.Get("yaml"))
	}
	var theirs []string
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		name := f.JSONName()
		theirs = append(theirs, name)
		seen++
		k := slices.Index(known, name)
		if k < 0 {
			t.Errorf("%s.%s is a field of Istio that our types do not name", path, name)
			continue
		}
		m := f.Message()
		if f.IsMap() {
			m = f.MapValue().Message()
		}
		if m != nil {
			seen += compare(t, path+"."+name, m, ours.Field(k).Type)
		}
	}
	for _, k := range known {
		if !slices.Contains(theirs, k) {
			t.Errorf("%s.%s is no field of Istio", path, k)
		}
	}
	return seen
}
