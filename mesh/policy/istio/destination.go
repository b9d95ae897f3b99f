package istio

import (
	"time"
)

// DestinationRule says how a service is called.
type DestinationRule struct {
	Host             string         `yaml:"host"`
	TrafficPolicy    *TrafficPolicy `yaml:"trafficPolicy"`
	Subsets          []Subset       `yaml:"subsets"`
	ExportTo         []string       `yaml:"exportTo"`
	WorkloadSelector *Selector      `yaml:"workloadSelector"`
}

// Subset is the instances with some labels.
type Subset struct {
	Name          string            `yaml:"name"`
	Labels        map[string]string `yaml:"labels"`
	TrafficPolicy *TrafficPolicy    `yaml:"trafficPolicy"`
}

// TrafficPolicy is how instances are chosen and reached.
type TrafficPolicy struct {
	LoadBalancer      *LoadBalancer       `yaml:"loadBalancer"`
	ConnectionPool    *ConnectionPool     `yaml:"connectionPool"`
	OutlierDetection  *OutlierDetection   `yaml:"outlierDetection"`
	TLS               *ClientTLS          `yaml:"tls"`
	PortLevelSettings []PortTrafficPolicy `yaml:"portLevelSettings"`
	Tunnel            *Tunnel             `yaml:"tunnel"`
	ProxyProtocol     *ProxyProtocol      `yaml:"proxyProtocol"`
	RetryBudget       *RetryBudget        `yaml:"retryBudget"`
}

// ProxyProtocol has connections begin with who called.
type ProxyProtocol struct {
	Version string `yaml:"version"`
}

// Tunnel says that the host is a forward proxy, and what it is asked to connect to.
type Tunnel struct {
	Protocol   string `yaml:"protocol"`
	TargetHost string `yaml:"targetHost"`
	TargetPort uint32 `yaml:"targetPort"`
}

// PortTrafficPolicy is a TrafficPolicy for one port.
type PortTrafficPolicy struct {
	Port             *Port             `yaml:"port"`
	LoadBalancer     *LoadBalancer     `yaml:"loadBalancer"`
	ConnectionPool   *ConnectionPool   `yaml:"connectionPool"`
	OutlierDetection *OutlierDetection `yaml:"outlierDetection"`
	TLS              *ClientTLS        `yaml:"tls"`
}

// LoadBalancer is how an instance is chosen.
type LoadBalancer struct {
	Simple             string          `yaml:"simple"`
	ConsistentHash     *ConsistentHash `yaml:"consistentHash"`
	LocalityLbSetting  *LocalityLb     `yaml:"localityLbSetting"`
	ZoneAwareLbSetting *ZoneAware      `yaml:"zoneAwareLbSetting"`
	WarmupDuration     *time.Duration  `yaml:"warmupDurationSecs"`
	Warmup             *Warmup         `yaml:"warmup"`
}

// ConsistentHash lets something of a call decide where it goes.
type ConsistentHash struct {
	HTTPHeaderName         string      `yaml:"httpHeaderName"`
	HTTPCookie             *HTTPCookie `yaml:"httpCookie"`
	UseSourceIP            bool        `yaml:"useSourceIp"`
	HTTPQueryParameterName string      `yaml:"httpQueryParameterName"`
	RingHash               *RingHash   `yaml:"ringHash"`
	Maglev                 *Maglev     `yaml:"maglev"`
	MinimumRingSize        *uint64     `yaml:"minimumRingSize"`
}

// HTTPCookie is a cookie that decides.
type HTTPCookie struct {
	Name       string            `yaml:"name"`
	Path       string            `yaml:"path"`
	TTL        *time.Duration    `yaml:"ttl"`
	Attributes []CookieAttribute `yaml:"attributes"`
}

// CookieAttribute is a further attribute of a cookie that is set.
type CookieAttribute struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

// RingHash is consistent hashing by points on a circle.
type RingHash struct {
	MinimumRingSize *uint64 `yaml:"minimumRingSize"`
}

// Maglev is consistent hashing by a table.
type Maglev struct {
	TableSize *uint64 `yaml:"tableSize"`
}

// ZoneAware divides calls between the zones of a region.
type ZoneAware struct {
	Enabled          *bool      `yaml:"enabled"`
	Failover         []Failover `yaml:"failover"`
	FailoverPriority []string   `yaml:"failoverPriority"`
	MinClusterSize   *uint32    `yaml:"minClusterSize"`
}

// LocalityLb prefers instances by where they are.
type LocalityLb struct {
	Distribute       []Distribute `yaml:"distribute"`
	Failover         []Failover   `yaml:"failover"`
	FailoverPriority []string     `yaml:"failoverPriority"`
	Enabled          *bool        `yaml:"enabled"`
}

// Distribute says where the calls of a locality go.
type Distribute struct {
	From string            `yaml:"from"`
	To   map[string]uint32 `yaml:"to"`
}

// Failover says which region takes the calls of another.
type Failover struct {
	From string `yaml:"from"`
	To   string `yaml:"to"`
}

// Warmup gives a new instance calls little by little.
type Warmup struct {
	Duration       *time.Duration `yaml:"duration"`
	MinimumPercent *float64       `yaml:"minimumPercent"`
	Aggression     *float64       `yaml:"aggression"`
}

// OutlierDetection says when an instance that fails sits out.
type OutlierDetection struct {
	ConsecutiveErrors              *uint32        `yaml:"consecutiveErrors"`
	SplitExternalLocalOriginErrors bool           `yaml:"splitExternalLocalOriginErrors"`
	ConsecutiveLocalOriginFailures *uint32        `yaml:"consecutiveLocalOriginFailures"`
	ConsecutiveGatewayErrors       *uint32        `yaml:"consecutiveGatewayErrors"`
	Consecutive5xxErrors           *uint32        `yaml:"consecutive5xxErrors"`
	Interval                       *time.Duration `yaml:"interval"`
	BaseEjectionTime               *time.Duration `yaml:"baseEjectionTime"`
	MaxEjectionPercent             *uint32        `yaml:"maxEjectionPercent"`
	MinHealthPercent               *uint32        `yaml:"minHealthPercent"`
	OutlierDetectionHTTPErrorCodes []int          `yaml:"outlierDetectionHttpErrorCodes"`
}

// ConnectionPool bounds connections and calls.
type ConnectionPool struct {
	TCP  *PoolTCP  `yaml:"tcp"`
	HTTP *PoolHTTP `yaml:"http"`
}

// PoolTCP bounds connections at layer 4.
type PoolTCP struct {
	MaxConnections        *int           `yaml:"maxConnections"`
	ConnectTimeout        *time.Duration `yaml:"connectTimeout"`
	TCPKeepalive          *TCPKeepalive  `yaml:"tcpKeepalive"`
	MaxConnectionDuration *time.Duration `yaml:"maxConnectionDuration"`
	IdleTimeout           *time.Duration `yaml:"idleTimeout"`
}

// TCPKeepalive has the kernel ask whether the other side is there.
type TCPKeepalive struct {
	Probes   *int           `yaml:"probes"`
	Time     *time.Duration `yaml:"time"`
	Interval *time.Duration `yaml:"interval"`
}

// PoolHTTP bounds requests and the connections that carry them.
type PoolHTTP struct {
	HTTP1MaxPendingRequests  *int            `yaml:"http1MaxPendingRequests"`
	HTTP2MaxRequests         *int            `yaml:"http2MaxRequests"`
	MaxRequestsPerConnection *int            `yaml:"maxRequestsPerConnection"`
	MaxRetries               *int            `yaml:"maxRetries"`
	IdleTimeout              *time.Duration  `yaml:"idleTimeout"`
	H2UpgradePolicy          string          `yaml:"h2UpgradePolicy"`
	UseClientProtocol        bool            `yaml:"useClientProtocol"`
	MaxConcurrentStreams     *int            `yaml:"maxConcurrentStreams"`
	HTTP2KeepAlive           *HTTP2KeepAlive `yaml:"http2KeepAlive"`
}

// HTTP2KeepAlive asks connections of HTTP/2 whether the other side is there.
type HTTP2KeepAlive struct {
	Interval *time.Duration `yaml:"interval"`
	Timeout  *time.Duration `yaml:"timeout"`
}

// RetryBudget bounds retries by the calls that there are.
type RetryBudget struct {
	Percent             *float64       `yaml:"percent"`
	MinRetryConcurrency *uint32        `yaml:"minRetryConcurrency"`
	BudgetInterval      *time.Duration `yaml:"budgetInterval"`
}

// ClientTLS is how connections are encrypted.
type ClientTLS struct {
	Mode               string   `yaml:"mode"`
	ClientCertificate  string   `yaml:"clientCertificate"`
	PrivateKey         string   `yaml:"privateKey"`
	CACertificates     string   `yaml:"caCertificates"`
	CredentialName     string   `yaml:"credentialName"`
	SubjectAltNames    []string `yaml:"subjectAltNames"`
	SNI                string   `yaml:"sni"`
	InsecureSkipVerify bool     `yaml:"insecureSkipVerify"`
	CACRL              string   `yaml:"caCrl"`
}
