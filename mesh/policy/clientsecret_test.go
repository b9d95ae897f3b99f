package policy

import (
	"fmt"
	"testing"

	"github.com/meshagent/meshagent/mesh"
)

// TestClientSecrets: a Secret that a DestinationRule names is for instances of its namespace, gateways or those that it selects, and for nobody else.
func TestClientSecrets(t *testing.T) {
	m := compileAll(t, destRule("gateways", "{host: a.example.com, trafficPolicy: {tls: {mode: MUTUAL, credentialName: a}}}")+"---\n"+
		destRule("tellers", "{host: b.example.com, workloadSelector: {matchLabels: {role: teller}}, trafficPolicy: {portLevelSettings: [{port: {number: 443}, tls: {mode: SIMPLE, credentialName: b}}]}}")+"---\n"+
		destRule("files", "{host: c.example.com, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /ca.pem}}}"))
	for _, c := range []struct {
		svc, labels string
		protocol    mesh.Protocol
		outside     bool
		want        string
	}{
		{"egress", "", mesh.Gateway, false, "[{default a} {default a-cacert}]"}, {"other/egress", "", mesh.Gateway, false, "[]"},
		{"web", "", mesh.HTTP, false, "[]"}, {"web", "teller", mesh.TCP, false, "[{default b} {default b-cacert}]"}, {"other/web", "teller", mesh.HTTP, false, "[]"},
		{"egress", "teller", mesh.Gateway, false, "[{default a} {default a-cacert} {default b} {default b-cacert}]"}, {"web", "teller", mesh.HTTP, true, "[]"},
	} {
		in := &mesh.Instance{Service: mesh.MustServiceName(c.svc), Protocol: c.protocol, Outside: c.outside}
		if c.labels != "" {
			in.Labels = mesh.Labels{"role": c.labels}
		}
		if got := fmt.Sprint(m.Secrets(in)); got != c.want {
			t.Errorf("%+v: %s, want %s", c, got, c.want)
		}
	}
	host, _ := parseHost("a.example.com", "default")
	tls := m.Service(host).Destination.Traffic.TLS
	if tls.Anonymous || tls.Credential != (SecretRef{"default", "a"}) || !tls.On {
		t.Errorf("%+v", tls)
	}
	if (*Model)(nil).Secrets(&mesh.Instance{}) != nil {
		t.Error("without a model")
	}
}
