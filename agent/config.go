package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/meshagent/meshagent/agent/operators"
	"github.com/meshagent/meshagent/internal/fetch"
	"github.com/meshagent/meshagent/internal/strictyaml"
	"github.com/meshagent/meshagent/mesh"
)

// Config is /etc/meshagent/agent.yaml. Every field has a default; an unknown key is an error that names it.
type Config struct {
	Name        string      `yaml:"name"`        // of this host, a DNS label; the host name's first label
	Address     netip.Addr  `yaml:"address"`     // where other hosts reach this one; that of the default route
	Locality    string      `yaml:"locality"`    // region/zone/subzone
	Labels      mesh.Labels `yaml:"labels"`      // of this host
	DataDir     string      `yaml:"dataDir"`     // /var/lib/meshagent
	ServicesDir string      `yaml:"servicesDir"` // /etc/meshagent/services.d
	Ports       Ports       `yaml:"ports"`
	API         API         `yaml:"api"`
	DNS         DNS         `yaml:"dns"`
	Proxy       Proxy       `yaml:"proxy"`
	Gateway     Gateway     `yaml:"gateway"`
	Tokens      Tokens      `yaml:"tokens"`
	ACME        ACME        `yaml:"acme"`
	WorkloadAPI WorkloadAPI `yaml:"workloadAPI"`
	Log         Log         `yaml:"log"`
	Raft        Raft        `yaml:"raft"`
	CA          CA          `yaml:"ca"`
}

// Ports are those that other hosts reach.
type Ports struct {
	Mesh   uint16 `yaml:"mesh"`   // 15008, TCP
	Gossip uint16 `yaml:"gossip"` // 7946, TCP and UDP
}

// API says where the HTTP API is served.
type API struct {
	Socket  string         `yaml:"socket"`  // /run/meshagent/api.sock
	Address netip.AddrPort `yaml:"address"` // 127.0.0.1:8500
	// Users says what users of this host, and with @ members of groups, may do at the socket: viewer, operator or admin. Root may do
	// everything; whom it does not name, but the socket's mode lets in, only looks.
	Users          map[string]string `yaml:"users"`
	ReadsNeedToken bool              `yaml:"readsNeedToken"` // at the address also what only reads
	AuditLog       string            `yaml:"auditLog"`       // a file or "off"; audit.log in dataDir

	Listen    netip.AddrPort          `yaml:"listen"`    // where operators of other hosts are served, by TLS alone; nowhere by default
	Hosts     []string                `yaml:"hosts"`     // names and addresses by which they call, beside the address that they connect to
	TLS       APITLS                  `yaml:"tls"`       // of listen
	Operators []operators.Certificate `yaml:"operators"` // who may do what by a certificate; nobody by default
	OIDC      *operators.OIDC         `yaml:"oidc"`      // who may do what by a login; nobody by default. Servers verify tokens
}

// APITLS is the certificates of the API for operators of other hosts. Files are read again when they change.
type APITLS struct {
	Certificate string `yaml:"certificate"` // file of the certificate and what it stands on (PEM); "mesh", on a server: one of the mesh's authority
	Key         string `yaml:"key"`         // file of its key
	ClientCA    string `yaml:"clientCA"`    // file of the authorities whose certificates operators has (PEM)
	ClientCRL   string `yaml:"clientCRL"`   // file of the lists of certificates that each of them has revoked (PEM); not asked for by default
}

// DNS says how names are answered.
type DNS struct {
	Address netip.AddrPort   `yaml:"address"` // 127.0.0.1:8600
	Forward []netip.AddrPort `yaml:"forward"` // who answers names outside *.mesh; nobody by default
	TTL     time.Duration    `yaml:"ttl"`     // 5s
	// Resolvers find the addresses of hosts that ServiceEntries declare: those of forward, else the system's.
	Resolvers []netip.AddrPort `yaml:"resolvers"`
	// AllowReserved are addresses of this host or its link (loopback, link-local) that such hosts may have; none by default.
	AllowReserved []netip.Prefix `yaml:"allowReserved"`
}

// Proxy says how traffic of local callers is taken.
type Proxy struct {
	VIPRange  netip.Prefix `yaml:"vipRange"`  // 127.64.0.0/10
	HTTPPort  *uint16      `yaml:"httpPort"`  // 80; 0 opens none
	AccessLog string       `yaml:"accessLog"` // a file, "stdout" or "off"; access.log in dataDir
	// UnknownCallers is what becomes of local callers that no service claims: "node" lets them call as this host, so that
	// policy that names services refuses them; "refuse" turns them away.
	UnknownCallers string `yaml:"unknownCallers"`
}

// Gateway says how gateways of this host take in traffic from outside of the mesh.
type Gateway struct {
	Addresses    []netip.Addr `yaml:"addresses"`    // where they listen; all of this host but loopback; if address is loopback, that one
	Certificates string       `yaml:"certificates"` // directory of the files that Gateways name; /etc/meshagent/certificates

	TrustedProxies    []netip.Prefix `yaml:"trustedProxies"`    // networks of proxies that stand before gateways; none by default
	ProxyProtocol     bool           `yaml:"proxyProtocol"`     // their connections begin with a PROXY header, of version 1 or 2
	NumTrustedProxies int            `yaml:"numTrustedProxies"` // of them in a row, which add to X-Forwarded-For; 0: it is not believed
}

const maxTrustedProxies = 16

// Tokens says how the keys of those who sign tokens of users are fetched.
type Tokens struct {
	Allow []string `yaml:"allow"` // hosts and networks (10.0.0.0/8) that may be private; the hosts may be asked without TLS; none by default
	Roots string   `yaml:"roots"` // file of certificates (PEM) that vouch for their servers, beside the system's
}

// ACME says how servers order certificates.
type ACME struct {
	Allow []string `yaml:"allow"` // hosts and networks (10.0.0.0/8) of authorities that may be private; none by default
}

// WorkloadAPI says whether applications of this host get keys and certificates of their own (SPIFFE).
type WorkloadAPI struct {
	Socket string `yaml:"socket"` // where they ask, for everybody who can reach the path; none by default: keys stay in the agent
}

// Log says what the agent writes to standard error.
type Log struct {
	Level  slog.Level `yaml:"level"`  // debug, info, warn, error
	Format string     `yaml:"format"` // text or json
}

// Raft tunes the store of servers.
type Raft struct {
	Heartbeat time.Duration `yaml:"heartbeat"` // 2s; a leader that is silent for 1 to 2 of them is replaced
}

// DefaultFile is where the configuration is looked for.
const DefaultFile = "/etc/meshagent/agent.yaml"

// LoadConfig reads a configuration file. A missing DefaultFile means the defaults; any other missing file is an error.
func LoadConfig(file string) (*Config, error) {
	var c Config
	data, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist) && file == DefaultFile:
	case err != nil:
		return nil, fmt.Errorf("configuration: %w", err)
	default:
		if err := strictyaml.Decode(file, data, &c); err != nil {
			return nil, err
		}
	}
	if err := c.Check(file); err != nil {
		return nil, err
	}
	return &c, nil
}

// Check fills in the defaults and reports every field that is not valid. It does not touch the host but for its name.
func (c *Config) Check(file string) error {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	if c.Name == "" {
		h, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("%s: name: this host has none (%w): set one", file, err)
		}
		c.Name, _, _ = strings.Cut(strings.ToLower(h), ".")
	}
	def(&c.DataDir, "/var/lib/meshagent")
	def(&c.ServicesDir, "/etc/meshagent/services.d")
	def(&c.API.Socket, "/run/meshagent/api.sock")
	def(&c.Proxy.AccessLog, filepath.Join(c.DataDir, "access.log"))
	def(&c.API.AuditLog, filepath.Join(c.DataDir, "audit.log"))
	def(&c.Proxy.UnknownCallers, "node")
	def(&c.Gateway.Certificates, "/etc/meshagent/certificates")
	def(&c.Log.Format, "text")
	def(&c.CA.Seal, sealFile)
	if c.Ports.Mesh == 0 {
		c.Ports.Mesh = 15008
	}
	if c.Ports.Gossip == 0 {
		c.Ports.Gossip = 7946
	}
	if !c.API.Address.IsValid() {
		c.API.Address = netip.MustParseAddrPort("127.0.0.1:8500")
	}
	if !c.DNS.Address.IsValid() {
		c.DNS.Address = netip.MustParseAddrPort("127.0.0.1:8600")
	}
	if c.DNS.TTL == 0 {
		c.DNS.TTL = 5 * time.Second
	}
	if !c.Proxy.VIPRange.IsValid() {
		c.Proxy.VIPRange = netip.MustParsePrefix("127.64.0.0/10")
	}
	if c.Proxy.HTTPPort == nil {
		c.Proxy.HTTPPort = new(uint16(80))
	}
	if o := c.API.OIDC; o != nil && len(o.Scopes) == 0 {
		o.Scopes = operators.DefaultScopes
	}
	if c.Raft.Heartbeat == 0 {
		c.Raft.Heartbeat = 2 * time.Second
	}
	return c.check(file)
}

func (c *Config) check(file string) error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s: %s", file, field, fmt.Sprintf(format, args...)))
	}
	if err := mesh.CheckLabel("name", c.Name); err != nil {
		bad("name", "%v", err)
	}
	if c.Address.IsValid() && (c.Address.IsUnspecified() || c.Address.IsMulticast()) {
		bad("address", "%v is not one that other hosts can reach: give an address of this host", c.Address)
	}
	if _, err := mesh.ParseLocality(c.Locality); err != nil {
		bad("locality", "%v", err)
	}
	if err := c.Labels.Check(); err != nil {
		bad("labels", "%v", err)
	}
	for _, d := range []struct{ field, path string }{{"dataDir", c.DataDir}, {"servicesDir", c.ServicesDir}, {"api.socket", c.API.Socket},
		{"gateway.certificates", c.Gateway.Certificates}} {
		if !filepath.IsAbs(d.path) {
			bad(d.field, "%q is not an absolute path", d.path)
		}
	}
	if len(c.API.Socket) > maxSocketPath {
		bad("api.socket", "%q is longer than the %d bytes that a socket's path may have", c.API.Socket, maxSocketPath)
	}
	c.WorkloadAPI.check(bad, c.API.Socket)
	if !c.API.Address.Addr().IsLoopback() {
		bad("api.address", "%v is not a loopback address: set api.listen to serve operators of other hosts", c.API.Address)
	}
	c.API.checkUsers(bad)
	c.API.checkRemote(bad)
	if o := c.API.OIDC; o != nil {
		o.Check(fetch.New("tokens.allow", c.Tokens.Allow).Names, func(field, format string, args ...any) { bad("api.oidc."+field, format, args...) })
	}
	if l := c.API.AuditLog; l != "off" && !filepath.IsAbs(l) {
		bad("api.auditLog", "%q is neither an absolute path nor off", l)
	}
	if c.DNS.TTL < 0 || c.DNS.TTL > time.Hour {
		bad("dns.ttl", "%v: from 0s to 1h is possible", c.DNS.TTL)
	}
	for _, r := range c.DNS.Resolvers {
		if !r.IsValid() || r.Port() == 0 || r == c.DNS.Address {
			bad("dns.resolvers", "%v is not the address and port of another resolver: write it as 192.0.2.53:53", r)
		}
	}
	if r := c.Proxy.VIPRange; !r.Addr().Is4() || !r.Addr().IsLoopback() || r.Bits() > 24 {
		bad("proxy.vipRange", "%v: a part of 127.0.0.0/8 of at least 256 addresses is needed", r)
	}
	if u := c.Proxy.UnknownCallers; u != "node" && u != "refuse" {
		bad("proxy.unknownCallers", "%q is neither node nor refuse", u)
	}
	if l := c.Proxy.AccessLog; l != "off" && l != "stdout" && !filepath.IsAbs(l) {
		bad("proxy.accessLog", "%q is neither an absolute path nor stdout nor off", l)
	}
	for i, a := range c.Gateway.Addresses {
		if a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			bad(fmt.Sprintf("gateway.addresses[%d]", i), "%v is no address of a host: leave addresses out for all of them", a)
		}
	}
	for i, p := range c.Gateway.TrustedProxies {
		if p != p.Masked() {
			bad(fmt.Sprintf("gateway.trustedProxies[%d]", i), "%v has bits beyond its length: write %v", p, p.Masked())
		}
	}
	if n := c.Gateway.NumTrustedProxies; n < 0 || n > maxTrustedProxies {
		bad("gateway.numTrustedProxies", "%d is not from 0 to %d", n, maxTrustedProxies)
	}
	if g := &c.Gateway; len(g.TrustedProxies) == 0 && (g.ProxyProtocol || g.NumTrustedProxies > 0) {
		bad("gateway.trustedProxies", "is missing: without it everybody could say who he is; write the networks of the proxies, such as 10.0.0.0/8")
	}
	for i, s := range c.Tokens.Allow {
		if err := fetch.CheckAllow(s); err != nil {
			bad(fmt.Sprintf("tokens.allow[%d]", i), "%v", err)
		}
	}
	for i, s := range c.ACME.Allow {
		if err := fetch.CheckAllow(s); err != nil {
			bad(fmt.Sprintf("acme.allow[%d]", i), "%v", err)
		}
	}
	if r := c.Tokens.Roots; r != "" && !filepath.IsAbs(r) {
		bad("tokens.roots", "%q is not an absolute path", r)
	}
	if f := c.Log.Format; f != "text" && f != "json" {
		bad("log.format", "%q is neither text nor json", f)
	}
	c.CA.Vault.check(bad)
	switch id := c.CA.AgeIdentity; c.CA.Seal {
	case sealFile, sealCreds:
		if id != "" {
			bad("ca.ageIdentity", "goes with seal: age only")
		}
	case sealAge:
		if !filepath.IsAbs(id) {
			bad("ca.ageIdentity", "%q is not an absolute path: write that of the file which age-keygen made", id)
		}
	default:
		bad("ca.seal", "%q is neither file nor systemd-creds nor age", c.CA.Seal)
	}
	if h := c.Raft.Heartbeat; h < 50*time.Millisecond || h > time.Minute {
		bad("raft.heartbeat", "%v: from 50ms to 1m is possible", h)
	}
	return errors.Join(errs...)
}

// maxSocketPath is what every system takes, in bytes.
const maxSocketPath = 104

func (w WorkloadAPI) check(bad func(field, format string, args ...any), api string) {
	const field = "workloadAPI.socket"
	switch s := w.Socket; {
	case s == "":
	case !filepath.IsAbs(s):
		bad(field, "%q is not an absolute path", s)
	case len(s) > maxSocketPath:
		bad(field, "%q is longer than the %d bytes that a socket's path may have", s, maxSocketPath)
	case filepath.Clean(s) == filepath.Clean(api):
		bad(field, "%q is api.socket too: give another path", s)
	case runtime.GOOS != "linux":
		bad(field, "which process is at a socket is known on Linux only: leave it out")
	}
}

// address returns the configured address, or the one that the default route uses. Nothing is sent.
func (c *Config) address() (netip.Addr, error) {
	if c.Address.IsValid() {
		return c.Address, nil
	}
	conn, err := net.Dial("udp", "192.0.2.1:9")
	if err != nil {
		return netip.Addr{}, fmt.Errorf("address: this host has no default route (%w): set address in the configuration", err)
	}
	defer conn.Close()
	a, ok := netip.AddrFromSlice(conn.LocalAddr().(*net.UDPAddr).IP)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address: %v is none: set address in the configuration", conn.LocalAddr())
	}
	return a.Unmap(), nil
}
