package gatewayapi

import "github.com/meshagent/meshagent/internal/strictyaml"

// BackendTLSPolicySpec says how services are called by TLS, and who they must prove to be.
type BackendTLSPolicySpec struct {
	TargetRefs []BackendTLSTarget `yaml:"targetRefs"`
	Validation BackendValidation  `yaml:"validation"`
	Options    BackendTLSOptions  `yaml:"options"`
}

// BackendTLSTarget names a service, and with SectionName a port of it.
type BackendTLSTarget struct {
	Group       string `yaml:"group"`
	Kind        string `yaml:"kind"`
	Name        string `yaml:"name"`
	SectionName string `yaml:"sectionName"`
}

// BackendValidation is how a backend's certificate is checked.
type BackendValidation struct {
	CACertificateRefs       []LocalCARef     `yaml:"caCertificateRefs"`
	WellKnownCACertificates string           `yaml:"wellKnownCACertificates"`
	Hostname                string           `yaml:"hostname"`
	SubjectAltNames         []SubjectAltName `yaml:"subjectAltNames"`
}

// LocalCARef names a ConfigMap with the certificates of authorities.
type LocalCARef struct {
	Group string `yaml:"group"`
	Kind  string `yaml:"kind"`
	Name  string `yaml:"name"`
}

// SubjectAltName is a name that a certificate may have: a Hostname or a URI.
type SubjectAltName struct {
	Type     string `yaml:"type"`
	Hostname string `yaml:"hostname"`
	URI      string `yaml:"uri"`
}

// BackendTLSOptions is refused.
type BackendTLSOptions struct{}

// UnmarshalNode refuses the field.
func (*BackendTLSOptions) UnmarshalNode(*strictyaml.Node) error {
	return refuse("none is known here, remove it")
}
