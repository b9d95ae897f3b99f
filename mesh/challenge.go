package mesh

// Challenge is a question of a certificate authority, which gateways answer so that it sees that a host's name is theirs. All of it is public.
// Source: RFC 8555 (HTTP-01), RFC 8737 (TLS-ALPN-01).
type Challenge struct {
	Host   string `json:"host"`            // that is asked for, in lower case
	Token  string `json:"token,omitempty"` // of HTTP-01: the end of the path; "" is TLS-ALPN-01
	Answer string `json:"answer"`          // the key authorization
}
