package policy

import (
	"net/netip"
	"regexp"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// Model is what all policies of a mesh compile to: the routing and authorization that the data path applies. It is immutable
// and safe for concurrent use. Its methods allocate nothing when they are asked about a request.
type Model struct {
	index         uint64
	td            mesh.TrustDomain
	services      map[mesh.ServiceName]*ServicePolicy
	gateways      []*Gateway
	secrets       map[SecretRef]uint64 // index of the store at which each was last written
	clientSecrets []clientSecret
	providers     map[mesh.PolicyKey]*Provider
	orders        []*CertificateOrder       // of Certificates, the oldest first, each for a Secret of its own
	configMaps    map[mesh.PolicyKey]string // certificates of authorities, in PEM
	limited       map[RouteRef][]*Limit     // the older policy's first
	authz         *authzIndex
	tokens        tokenIndex
	problems      []Problem
	joining       struct { // until Compile ends
		entries   []*serviceEntry
		workloads []*workloadEntry
	}
	entries  []*mesh.Entry // see external.go
	declared map[mesh.ServiceName]*mesh.Entry
	foreign  map[mesh.ServiceName]mesh.ServiceName // as policies read a host of two labels, to what a ServiceEntry declares
	sidecars map[string][]*sidecar                 // by namespace, the oldest first
}

// RootNamespace is Istio's: an AuthorizationPolicy in it governs all namespaces.
const RootNamespace = "istio-system"

// Problem is what is wrong with a stored policy although it was accepted: it cannot be understood, and what it governs is
// denied (only a newer server can have stored it); or another policy governs the same host, and it is without effect there; or it
// refers to what it may not. Reason is a sentence for log, API and operators. Analyze finds more.
type Problem struct {
	Key    mesh.PolicyKey
	Code   string // see docs/analyze.md: Istio's, or the reason of a condition of the Gateway API
	Reason string
}

// ServicePolicy is the traffic policy of one service.
type ServicePolicy struct {
	// Invalid is why the policy denies everything; empty for a valid one.
	Invalid string
	// HTTP is tried in order, the first match wins. nil means that no VirtualService names the service for HTTP: the
	// DefaultRoute applies. Not nil and no match means 404 with flag NR.
	HTTP []*HTTPRoute
	// TCP is as HTTP, for connections, and TLS for those to ports that speak TLS.
	TCP, TLS []*TCPRoute
	// Bound are routes of the Gateway API: the first that binds a call is asked instead of HTTP or TCP.
	Bound []Binding
	// Exported are VirtualServices for callers of one namespace each: they go before HTTP and TCP.
	Exported []Binding
	// Destination is the service's DestinationRule, compiled; never nil.
	Destination *Destination
	// Scoped are those for some callers, which go before it; the first that covers a caller counts. See DestinationFor.
	Scoped []*Destination
	// Limits are the rate limits of its calls, each of which counts: the older policy's first.
	Limits []*Limit
}

// Binding is the routes of the Gateway API for some calls of a service. They are asked as those of a ServicePolicy are.
type Binding struct {
	Callers string // namespace of the callers; "" is all
	Port    uint16 // that is called; 0 is all
	HTTP    []*HTTPRoute

	TCP, TLS []*TCPRoute
}

// HTTPRoute is one rule for HTTP requests; or one match of a rule that rewrites, so that RewritePath knows what was matched.
type HTTPRoute struct {
	Policy  mesh.PolicyKey
	Name    string  // of the rule, for log and metrics; "" when it has none
	Stat    string  // takes the place of Name there; of the match, by its statPrefix
	Index   int     // of the rule in its resource
	Matches []Match // any of them; empty matches everything
	Action  Action
}

// Match is one set of conditions, all of which must hold. Zero fields do not restrict.
type Match struct {
	Scheme, Method, Authority, URI *StringMatch
	IgnoreURICase                  bool
	Headers, WithoutHeaders, Query []KeyMatch
	Port                           uint16
	SourceLabels                   mesh.Labels
	SourceNamespace                string
	SNI                            []string // hosts, *.example.com, or *: any of them. Only of connections
	gateways                       []string // as virtualService has them; empty is all of it. Compiling filters by it, nothing else looks
}

// KeyMatch is a condition on one header (Name in lower case) or query parameter; or on a claim of the user's token, which is a in Claim[0], b within
// it in Claim[1], and so on.
type KeyMatch struct {
	Name  string
	Claim []string    // only of Headers and WithoutHeaders, at gateways
	Value StringMatch // Present: there at all
}

// MatchKind says how a StringMatch compares.
type MatchKind uint8

// The kinds of StringMatch. A Regex is RE2 and matches the whole value.
const (
	Present MatchKind = iota
	Exact
	Prefix
	Suffix // only in authorization
	Regex
	Segments // Text is a prefix of whole segments, without a slash at its end: /a of /a and /a/b, not of /ab; "" of all
)

// StringMatch compares one string.
type StringMatch struct {
	Kind MatchKind
	Text string
	RE   *regexp.Regexp // anchored; only for Regex
}

// Action is what happens to a request that a route matched. At most one of Redirect and Direct is set; else Destinations
// is not empty.
type Action struct {
	Destinations []Split
	Redirect     *Redirect
	Direct       *DirectResponse
	Rewrite      *Rewrite
	Headers      HeaderOps
	Fault        *Fault
	Timeout      time.Duration // of the whole request with its retries; 0 is none
	Retry        Retry
	CORS         *CORS
	Mirrors      []Mirror
	Session      *Session // nil: each request is on its own
}

// Split is one weighted destination of a route.
type Split struct {
	Service mesh.ServiceName // zero: may not be called. Requests are answered with 500, gRPC's with UNAVAILABLE; connections are closed
	Subset  string           // "" is every instance
	Port    uint16           // call port at the service; 0 is the port that was called
	Weight  uint32
	Headers HeaderOps
}

// Redirect answers with a Location. Empty fields keep the request's own value.
type Redirect struct {
	Scheme, Authority, Path string // Path may have a query, which then replaces the request's
	PathPrefix              string // with Path: the prefix that Path replaces; "", as in all of Istio's, replaces the whole path
	KeepPort                bool   // the caller's port stays beside a new Authority
	Port                    uint16
	Derive                  Derive
	Code                    int
}

// Derive says what the port of a redirect is, where none is written.
type Derive uint8

// The ways.
const (
	Kept      Derive = iota
	OfScheme         // the new scheme's own, which is left out
	OfRequest        // the one that was called
)

// DirectResponse answers without a call.
type DirectResponse struct {
	Status int
	Body   []byte
}

// Rewrite changes path and authority before the call. HTTPRoute.RewritePath computes the path: what Path replaces depends on
// the condition that matched.
type Rewrite struct {
	Path      string
	Prefix    string         // the prefix that Path replaces, for kinds whose rewrite names it; "", as in Istio's, is the match's
	Pattern   *regexp.Regexp // what of the path Template replaces, instead of Path; nil is none
	Template  string         // as Regexp.ReplaceAllString has it
	Authority string
}

// HeaderOps change headers of request and response: remove, then set, then add.
type HeaderOps struct {
	RequestSet, RequestAdd, ResponseSet, ResponseAdd []Header
	RequestRemove, ResponseRemove                    []string
}

// Header is a name in canonical lower case and a value.
type Header struct{ Name, Value string }

// Fault injects delays and aborts, each for a share of the requests in millionths.
type Fault struct {
	DelayPerMillion uint32
	Delay           time.Duration
	AbortPerMillion uint32
	AbortStatus     int // HTTP status; 0 when AbortGRPC is meant
	AbortGRPC       int // gRPC status code; -1 when AbortStatus is meant
}

// RetryOn is a set of conditions, as Envoy names them.
type RetryOn uint32

// The conditions.
const (
	On5xx RetryOn = 1 << iota
	OnGatewayError
	OnConnectFailure
	OnRefusedStream
	OnReset
	OnResetBeforeRequest
	OnRetriable4xx
	OnRetriableStatusCodes
	OnGRPCCancelled
	OnGRPCDeadlineExceeded
	OnGRPCInternal
	OnGRPCResourceExhausted
	OnGRPCUnavailable
	OnRateLimited // by a rate limit of the mesh's or of Envoy's
)

// Retry says when and how often a request is sent again. Attempts counts the retries, not the first try.
type Retry struct {
	Attempts int
	PerTry   time.Duration // 0 is none
	On       RetryOn
	Codes    []int         // for OnRetriableStatusCodes
	Backoff  time.Duration // base of the jittered exponential delay; 0 is 25 ms
	// SameAgain has a retry go to any instance, also one that was tried. Elsewhere has it go to another locality than those tried.
	SameAgain, Elsewhere bool
	Trailers             bool // a status of gRPC in trailers counts, too, as long as nothing came before it
}

// DefaultRetry is Istio's: two retries on connect-failure, refused-stream, unavailable, cancelled and
// retriable-status-codes 503.
func DefaultRetry() Retry {
	return Retry{Attempts: 2, On: OnConnectFailure | OnRefusedStream | OnGRPCUnavailable | OnGRPCCancelled | OnRetriableStatusCodes, Codes: []int{503}}
}

// TCPRoute is one rule for connections.
type TCPRoute struct {
	Policy       mesh.PolicyKey
	TLS          bool // it is for those whose ClientHello is read
	Index        int
	Matches      []Match // only Port, SourceLabels, SourceNamespace, SNI
	Destinations []Split
}

// Source says who calls.
type Source struct {
	Identity mesh.Identity
	Labels   mesh.Labels // of the calling instance, where it is known
	IP       netip.Addr  // of the peer
	Remote   netip.Addr  // of who called the mesh first, as an agent says; zero is IP
}

// Request is what rules look at. Strings may be views of a buffer: the Model keeps none of them. For a TCP connection
// Method is empty and Header is nil.
type Request struct {
	Source    Source
	Port      uint16 // call port
	TLS       bool   // it is a connection whose client said so
	SNI       string // what its client named, in lower case; "" for none
	Method    string
	Scheme    string
	Authority string // lower case, without port and trailing dot
	Path      string // canonical, without query
	Query     string // raw, without '?'
	Auth      *Auth  // what Authenticate found; nil without a token
	// Header returns the values of a header by its lower-case name, in order; nil when it is absent.
	Header func(name string) []string
}

// Target is what an authorization policy selects: the called instance.
type Target struct {
	Service mesh.ServiceName
	Labels  mesh.Labels
	Port    uint16
	IP      netip.Addr // of the host that it runs on, as others reach it; of a gateway, where it listens if that is one address
}

// Decision is the verdict of authorization.
type Decision struct {
	Allow  bool
	Policy mesh.PolicyKey // the policy that decided; zero when none did
	Reason string         // for log and API, never for the refused caller
}
