package istio

// Gateway says what some gateways take in from outside.
type Gateway struct {
	Servers  []Server          `yaml:"servers"`
	Selector map[string]string `yaml:"selector"`
}

// Server is a port of a Gateway, or one of several that share it and differ by their hosts.
type Server struct {
	Port            ServerPort  `yaml:"port"`
	Bind            string      `yaml:"bind"`
	Hosts           []string    `yaml:"hosts"`
	TLS             *ServerTLS  `yaml:"tls"`
	DefaultEndpoint Unsupported `yaml:"defaultEndpoint"`
	Name            string      `yaml:"name"`
}

// ServerPort is a port and what is spoken there.
type ServerPort struct {
	Number     uint16      `yaml:"number"`
	Protocol   string      `yaml:"protocol"`
	Name       string      `yaml:"name"`
	TargetPort Unsupported `yaml:"targetPort"`
}

// ServerTLS is how a Server speaks TLS. Files are below the directory of certificates of the gateway's host.
type ServerTLS struct {
	HTTPSRedirect         bool             `yaml:"httpsRedirect"`
	Mode                  string           `yaml:"mode"`
	ServerCertificate     string           `yaml:"serverCertificate"`
	PrivateKey            string           `yaml:"privateKey"`
	CACertificates        string           `yaml:"caCertificates"`
	CACRL                 string           `yaml:"caCrl"`
	CredentialName        string           `yaml:"credentialName"`
	CredentialNames       []string         `yaml:"credentialNames"`
	CACertCredentialName  string           `yaml:"caCertCredentialName"`
	TLSCertificates       []TLSCertificate `yaml:"tlsCertificates"`
	SubjectAltNames       []string         `yaml:"subjectAltNames"`
	VerifyCertificateSpki []string         `yaml:"verifyCertificateSpki"`
	VerifyCertificateHash []string         `yaml:"verifyCertificateHash"`
	MinProtocolVersion    string           `yaml:"minProtocolVersion"`
	MaxProtocolVersion    string           `yaml:"maxProtocolVersion"`
	CipherSuites          []string         `yaml:"cipherSuites"`
	InsecureSkipVerify    Unsupported      `yaml:"insecureSkipVerify"`
}

// TLSCertificate is one of several certificates of a Server.
type TLSCertificate struct {
	ServerCertificate string `yaml:"serverCertificate"`
	PrivateKey        string `yaml:"privateKey"`
	CACertificates    string `yaml:"caCertificates"`
}
