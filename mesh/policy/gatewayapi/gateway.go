package gatewayapi

import "github.com/meshagent/meshagent/internal/strictyaml"

// GatewayClassSpec names who serves the gateways of a class.
type GatewayClassSpec struct {
	ControllerName string        `yaml:"controllerName"`
	ParametersRef  ParametersRef `yaml:"parametersRef"`
	Description    string        `yaml:"description"`
}

// GatewaySpec says what a gateway takes in from outside.
type GatewaySpec struct {
	GatewayClassName string           `yaml:"gatewayClassName"`
	Listeners        []Listener       `yaml:"listeners"`
	Addresses        []GatewayAddress `yaml:"addresses"`
	Infrastructure   Infrastructure   `yaml:"infrastructure"`
	AllowedListeners AllowedListeners `yaml:"allowedListeners"`
	TLS              *GatewayTLS      `yaml:"tls"`
	DefaultScope     DefaultScope     `yaml:"defaultScope"`
}

// GatewayTLS is what holds for all listeners that speak TLS.
type GatewayTLS struct {
	Backend  GatewayBackendTLS `yaml:"backend"`
	Frontend *FrontendTLS      `yaml:"frontend"`
}

// FrontendTLS is how clients prove who they are.
type FrontendTLS struct {
	Default FrontendClients `yaml:"default"`
	PerPort []TLSOfAPort    `yaml:"perPort"`
}

// TLSOfAPort takes the place of the default at a port.
type TLSOfAPort struct {
	Port uint16          `yaml:"port"`
	TLS  FrontendClients `yaml:"tls"`
}

// FrontendClients is how clients are known; without Validation they show no certificate.
type FrontendClients struct {
	Validation *ClientValidation `yaml:"validation"`
}

// ClientValidation is how a client's certificate is checked. Mode is AllowValidOnly, the default.
type ClientValidation struct {
	CACertificateRefs []ClientCARef `yaml:"caCertificateRefs"`
	Mode              string        `yaml:"mode"`
}

// ClientCARef names a ConfigMap with the certificates of authorities.
type ClientCARef struct {
	Group     string `yaml:"group"`
	Kind      string `yaml:"kind"`
	Name      string `yaml:"name"`
	Namespace string `yaml:"namespace"`
}

// Listener is a port, or one of several that share it and differ by their host.
type Listener struct {
	Name          string         `yaml:"name"`
	Hostname      *string        `yaml:"hostname"`
	Port          uint16         `yaml:"port"`
	Protocol      string         `yaml:"protocol"`
	TLS           *ListenerTLS   `yaml:"tls"`
	AllowedRoutes *AllowedRoutes `yaml:"allowedRoutes"`
}

// ListenerTLS is how a Listener speaks TLS.
type ListenerTLS struct {
	Mode            string           `yaml:"mode"`
	CertificateRefs []CertificateRef `yaml:"certificateRefs"`
	Options         TLSOptions       `yaml:"options"`
}

// CertificateRef names a Secret.
type CertificateRef struct {
	Group     string `yaml:"group"`
	Kind      string `yaml:"kind"`
	Namespace string `yaml:"namespace"`
	Name      string `yaml:"name"`
}

// AllowedRoutes says which routes may have a Listener as their parent.
type AllowedRoutes struct {
	Namespaces *RouteNamespaces `yaml:"namespaces"`
	Kinds      []RouteKind      `yaml:"kinds"`
}

// RouteNamespaces are the namespaces of routes: Same, the default, All, None, or those of the Selector.
type RouteNamespaces struct {
	From     string         `yaml:"from"`
	Selector *RouteSelector `yaml:"selector"`
}

// RouteSelector selects namespaces by their labels. All that is in it must hold.
type RouteSelector struct {
	MatchLabels      map[string]string  `yaml:"matchLabels"`
	MatchExpressions []LabelRequirement `yaml:"matchExpressions"`
}

// LabelRequirement is what must hold of a label: In, NotIn, Exists or DoesNotExist.
type LabelRequirement struct {
	Key      string   `yaml:"key"`
	Operator string   `yaml:"operator"`
	Values   []string `yaml:"values"`
}

// RouteKind is a kind of route.
type RouteKind struct {
	Group *string `yaml:"group"`
	Kind  string  `yaml:"kind"`
}

// GatewayAddress is a Hostname, the name of a service of protocol gateway, or an IPAddress at which it listens.
type GatewayAddress struct {
	Type  string `yaml:"type"`
	Value string `yaml:"value"`
}

// The fields that are refused.
type (
	ParametersRef     struct{}
	Infrastructure    struct{}
	AllowedListeners  struct{}
	GatewayBackendTLS struct{}
	DefaultScope      struct{}
	TLSOptions        struct{}
)

// UnmarshalNode refuses the field.
func (*ParametersRef) UnmarshalNode(*strictyaml.Node) error {
	return refuse("what gateways are set by is in agent.yaml of their hosts, remove it")
}

// UnmarshalNode refuses the field.
func (*Infrastructure) UnmarshalNode(*strictyaml.Node) error {
	return refuse("hosts run gateways that their operators declare, remove it")
}

// UnmarshalNode refuses the field.
func (*AllowedListeners) UnmarshalNode(*strictyaml.Node) error {
	return refuse("there are no ListenerSets, remove it")
}

// UnmarshalNode refuses the field.
func (*GatewayBackendTLS) UnmarshalNode(*strictyaml.Node) error {
	return refuse("write a DestinationRule with mode MUTUAL, clientCertificate and privateKey for the services that want a certificate")
}

// UnmarshalNode refuses the field.
func (*DefaultScope) UnmarshalNode(*strictyaml.Node) error {
	return refuse("name the Gateway in parentRefs of routes")
}

// UnmarshalNode refuses the field.
func (*TLSOptions) UnmarshalNode(*strictyaml.Node) error {
	return refuse("none is known here, remove it")
}
