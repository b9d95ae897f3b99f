package policy

import (
	"crypto/x509"
	"maps"
	"slices"

	"github.com/meshagent/meshagent/mesh"
)

// configMapKind is the kind of a ConfigMap: what others refer to and is no secret.
const configMapKind = "ConfigMap"

// configMapSpec is what a ConfigMap has beside its head.
type configMapSpec struct {
	Data      map[string]string `yaml:"data"`
	Immutable bool              `yaml:"immutable"`
}

// caKey is the one key that is read: certificates of authorities, in PEM.
const caKey = "ca.crt"

func compileConfigMap(key mesh.PolicyKey, s *configMapSpec) []fieldError {
	c := &compiler{key: key}
	ca, ok := s.Data[caKey]
	switch {
	case !ok:
		c.fail("data", "write "+caKey+" with certificates in PEM", "is missing or lacks "+caKey)
	case !x509.NewCertPool().AppendCertsFromPEM([]byte(ca)):
		c.fail("data."+caKey, "write certificates in PEM", "holds no certificate")
	}
	for _, k := range slices.Sorted(maps.Keys(s.Data)) {
		if k != caKey {
			c.fail("data."+k, "BackendTLSPolicies and Gateways read "+caKey, "is read by nobody")
		}
	}
	return c.errs
}

// caRef is a reference to a ConfigMap.
func (c *compiler) caRef(path, group, kind, name string) {
	if !core(group) || kind != configMapKind {
		c.fail(path+".kind", `write group: "" and kind: ConfigMap; a certificate of an authority is no secret`, "%q of group %q is not supported", kind, group)
	}
	if name == "" {
		c.fail(path+".name", "write the name of a ConfigMap", "is missing or empty")
	}
}

// authorities are the certificates of some ConfigMaps of a namespace; "" if one of them is not there, so that nobody is trusted.
func (m *Model) authorities(key mesh.PolicyKey, namespace string, names []string) (pem string) {
	for _, name := range names {
		ca, ok := m.configMaps[mesh.PolicyKey{Kind: configMapKind, Namespace: namespace, Name: name}]
		if !ok {
			m.problem(key, codeNotFound, "names the ConfigMap "+name+", which is not there: nobody is trusted")
			return ""
		}
		pem += ca + "\n"
	}
	return pem
}
