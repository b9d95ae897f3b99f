package registry

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshagent/meshagent/internal/strictyaml"
	"github.com/meshagent/meshagent/mesh"
)

// Definition is one service of this host as somebody wrote it: a YAML or JSON document, the same in a file, over the API and
// for the CLI. docs/services.md is its reference. A Definition that Parse returned is valid and has its defaults filled in.
type Definition struct {
	Name        string      `yaml:"name"`
	Namespace   string      `yaml:"namespace"`
	ID          string      `yaml:"id"`      // of the instance, unique on its host
	Account     string      `yaml:"account"` // service account
	Address     netip.Addr  `yaml:"address"` // where the application listens
	Port        uint16      `yaml:"port"`
	ServicePort uint16      `yaml:"servicePort"` // that callers use
	Protocol    Protocol    `yaml:"protocol"`
	Labels      mesh.Labels `yaml:"labels"`
	Weight      uint16      `yaml:"weight"`
	Callers     Callers     `yaml:"callers"`
	Checks      []Check     `yaml:"checks"`
}

// Callers says whose connections on this host carry the service's identity.
type Callers struct {
	Users []string `yaml:"users"` // names or numbers; they count only where Units is empty
	Units []string `yaml:"units"` // of systemd, such as frontend.service
}

// Protocol is what a service speaks: one of those that the proxy knows.
type Protocol struct{ mesh.Protocol }

// protocols are the ones that a definition may name.
var protocols = []string{mesh.HTTP.String(), mesh.HTTP2.String(), mesh.GRPC.String(), mesh.TCP.String(), mesh.TLS.String(), mesh.Auto.String(), mesh.Gateway.String()}

// UnmarshalText reads a protocol by name.
func (p *Protocol) UnmarshalText(b []byte) error {
	s := string(b)
	if slices.Contains(protocols, s) {
		return p.Protocol.UnmarshalText(b)
	}
	return fmt.Errorf("%q is none; %s", clip(s), hint(s, protocols))
}

// Check is one health check of an instance. Of HTTP, TCP, GRPC and TTL the one that Type names is set.
type Check struct {
	Name      string        `yaml:"name"` // unique in its definition
	Type      string        `yaml:"type"`
	HTTP      *HTTPCheck    `yaml:"http"`
	TCP       *TCPCheck     `yaml:"tcp"`
	GRPC      *GRPCCheck    `yaml:"grpc"`
	TTL       *TTLCheck     `yaml:"ttl"`
	Interval  time.Duration `yaml:"interval"`
	Timeout   time.Duration `yaml:"timeout"`   // not over Interval
	Successes int           `yaml:"successes"` // in a row that end critical
	Failures  int           `yaml:"failures"`  // in a row that make it critical
}

// The types of checks. There is none that runs a command.
const (
	TypeHTTP = "http"
	TypeTCP  = "tcp"
	TypeGRPC = "grpc"
	TypeTTL  = "ttl"
)

var checkTypes = []string{TypeHTTP, TypeTCP, TypeGRPC, TypeTTL}

// HTTPCheck asks for a path at the instance's address.
type HTTPCheck struct {
	Path    string            `yaml:"path"`
	Method  string            `yaml:"method"`
	Host    string            `yaml:"host"` // header; address and port when empty
	Headers map[string]string `yaml:"headers"`
	Port    uint16            `yaml:"port"`
}

// TCPCheck opens a connection to the instance's address.
type TCPCheck struct {
	Port uint16 `yaml:"port"`
}

// GRPCCheck asks the standard health service at the instance's address.
type GRPCCheck struct {
	Service string `yaml:"service"` // "" asks for the server as a whole
	Port    uint16 `yaml:"port"`
}

// TTLCheck waits for the application's own word.
type TTLCheck struct {
	TTL time.Duration `yaml:"ttl"` // without a word for that long the check is critical
}

// Limits of definitions.
const (
	MaxServices = 1024     // in files, and as many over the API
	MaxSource   = 64 << 10 // bytes of one definition over the API
	MaxChecks   = 16       // of one definition
	maxCallers  = 64       // users, and as many units
	maxHeaders  = 16       // of one check
	maxText     = 1024     // bytes of a path, host, header or gRPC service
)

// Defaults and limits of checks.
const (
	defaultInterval = 10 * time.Second
	minInterval     = 100 * time.Millisecond
	maxInterval     = time.Hour
	defaultTimeout  = 5 * time.Second // or Interval, where that is shorter
	minTimeout      = 10 * time.Millisecond
	minTTL          = time.Second
	maxTTL          = 24 * time.Hour
	maxThreshold    = 100
)

// Service returns the service's name; the zero value for a Definition that Parse did not return and that has none.
func (d *Definition) Service() mesh.ServiceName {
	s, _ := mesh.NewServiceName(d.Namespace, d.Name)
	return s
}

// Parse reads the definitions of a file, one of each document. Its error joins all that is wrong, each with file, line, field
// and what to write.
func Parse(file string, data []byte) ([]Definition, error) {
	ps, err := parse(file, data)
	out := make([]Definition, len(ps))
	for i, p := range ps {
		out[i] = p.def
	}
	return out, err
}

// placed is a definition and where it stands.
type placed struct {
	def  Definition
	file string
	line int
}

func (p *placed) place() string { return fmt.Sprintf("%s:%d", p.file, p.line) }

func parse(file string, data []byte) ([]placed, error) {
	docs, err := strictyaml.Split(file, data)
	if err != nil {
		return nil, err
	}
	var out []placed
	var errs strictyaml.Errors
	for _, doc := range docs {
		d := Definition{Namespace: mesh.DefaultNamespace, Address: netip.AddrFrom4([4]byte{127, 0, 0, 1}), Weight: 1}
		if err := doc.DecodeNoNull(&d); err != nil {
			errs.Add(err)
			continue
		}
		c := checker{file: file}
		c.definition(&d, doc.Root)
		errs.Add(c.errs.Err())
		out = append(out, placed{d, file, doc.Line})
	}
	if err := errs.Err(); err != nil {
		return nil, err
	}
	return out, nil
}

// checker fills in the defaults of a decoded definition and gathers what is not valid. A default is for a key that is absent:
// what was written, an empty string or a zero too, is checked as it is.
type checker struct {
	file string
	errs strictyaml.Errors
}

func (c *checker) bad(n *strictyaml.Node, path, hint, format string, args ...any) {
	c.errs.Add(&strictyaml.Error{File: c.file, Line: n.Line, Path: path, Msg: fmt.Sprintf(format, args...), Hint: hint})
}

// at returns the value of a key, or the map itself where it is absent: the best line to name.
func at(n *strictyaml.Node, key string) *strictyaml.Node {
	if v := n.Get(key); v != nil {
		return v
	}
	return n
}

func (c *checker) label(n *strictyaml.Node, path, key, what, value string) {
	if err := mesh.CheckLabel(what, value); err != nil {
		c.bad(at(n, key), strictyaml.Join(path, key), "", "%v", err)
	}
}

const needed = "is needed"

func (c *checker) definition(d *Definition, n *strictyaml.Node) {
	has := func(key string) bool { return n.Get(key) != nil }
	if !has("name") {
		c.bad(n, "name", "name the service", needed)
	} else {
		c.label(n, "", "name", "service name", d.Name)
	}
	c.label(n, "", "namespace", "namespace", d.Namespace)
	if !has("id") {
		d.ID = d.Name
	} else {
		c.label(n, "", "id", "instance id", d.ID)
	}
	if !has("account") {
		d.Account = d.Name
	} else {
		c.label(n, "", "account", "service account", d.Account)
	}
	d.Address = d.Address.Unmap()
	if a := d.Address; !a.IsGlobalUnicast() && !a.IsLoopback() || a.Zone() != "" {
		c.bad(at(n, "address"), "address", "give the one at which the application is reached on this host, such as 127.0.0.1", "%v is not one to dial", a)
	}
	if d.Protocol.Protocol == mesh.Gateway {
		c.gateway(n)
	} else if !has("port") {
		c.bad(n, "port", "give the one at which the application listens", needed)
	}
	c.port(n, "", "port", &d.Port, 0)
	c.port(n, "", "servicePort", &d.ServicePort, d.Port)
	if !has("protocol") {
		c.bad(n, "protocol", "it is one of "+strings.Join(protocols, ", "), needed)
	}
	if err := d.Labels.Check(); err != nil {
		c.bad(at(n, "labels"), "labels", "", "%v", err)
	}
	c.callers(d, n.Get("callers"))
	if len(d.Checks) > MaxChecks {
		c.bad(at(n, "checks"), "checks", "", "%d checks: at most %d are possible", len(d.Checks), MaxChecks)
		return
	}
	names := map[string]int{}
	for i := range d.Checks {
		cn, path := n.Get("checks").Vals[i], fmt.Sprintf("checks[%d]", i)
		c.check(d, &d.Checks[i], cn, path)
		name := d.Checks[i].Name
		if first, twice := names[name]; twice && name != "" {
			c.bad(at(cn, "name"), path+".name", "give one of them another name", "%q is the name of checks[%d] already", clip(name), first)
		} else {
			names[name] = i
		}
	}
}

// gateway refuses what belongs to an application: a gateway has none, and its ports are those of the Gateway resources.
func (c *checker) gateway(n *strictyaml.Node) {
	for _, key := range []string{"address", "port", "servicePort", "callers"} {
		if v := n.Get(key); v != nil {
			c.bad(v, key, "remove it: Gateway resources say at which ports it listens", "does not belong to a gateway, which is no application")
		}
	}
}

// port checks a port; absent it is def.
func (c *checker) port(n *strictyaml.Node, path, key string, p *uint16, def uint16) {
	if v := n.Get(key); v == nil {
		*p = def
	} else if *p == 0 {
		c.bad(v, strictyaml.Join(path, key), "", "0 is no port: from 1 to 65535 is possible")
	}
}

var (
	unitName = regexp.MustCompile(`^[A-Za-z0-9:_.\\@-]{1,240}\.(service|scope)$`)
	userName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?$`)
)

func (c *checker) callers(d *Definition, n *strictyaml.Node) {
	if n == nil {
		return
	}
	for _, l := range []struct {
		key  string
		vals []string
	}{{"users", d.Callers.Users}, {"units", d.Callers.Units}} {
		if len(l.vals) > maxCallers {
			c.bad(n.Get(l.key), "callers."+l.key, "", "%d of them: at most %d are possible", len(l.vals), maxCallers)
		}
	}
	for i, u := range d.Callers.Users {
		_, err := strconv.ParseUint(u, 10, 32)
		if err != nil && !userName.MatchString(u) {
			c.bad(n.Get("users").Vals[i], fmt.Sprintf("callers.users[%d]", i), `write a name or a number, such as www-data or "33"`,
				"%q is no user", clip(u))
		}
	}
	for i, u := range d.Callers.Units {
		if !unitName.MatchString(u) {
			c.bad(n.Get("units").Vals[i], fmt.Sprintf("callers.units[%d]", i), "write the whole name, such as frontend.service",
				"%q is no unit that has processes", clip(u))
		}
	}
}

func (c *checker) check(d *Definition, k *Check, n *strictyaml.Node, path string) {
	if !slices.Contains(checkTypes, k.Type) {
		if n.Get("type") == nil {
			c.bad(n, path+".type", "it is one of "+strings.Join(checkTypes, ", "), needed)
		} else {
			c.bad(n.Get("type"), path+".type", hint(k.Type, checkTypes), "%q is none", clip(k.Type))
		}
		return
	}
	if n.Get("name") == nil {
		k.Name = k.Type
	} else {
		c.label(n, path, "name", "check name", k.Name)
	}
	for _, t := range checkTypes {
		if t != k.Type && n.Get(t) != nil {
			c.bad(n.Get(t), path+"."+t, fmt.Sprintf("remove it, or set type to %s", t), "does not belong to a check of type %s", k.Type)
		}
	}
	sub, at := n.Get(k.Type), path+"."+k.Type
	if sub == nil {
		sub = &strictyaml.Node{Kind: strictyaml.Map, Line: n.Line}
	}
	switch k.Type {
	case TypeHTTP:
		k.HTTP = cmp.Or(k.HTTP, new(HTTPCheck))
		c.http(k.HTTP, sub, at)
		c.port(sub, at, "port", &k.HTTP.Port, d.Port)
	case TypeTCP:
		k.TCP = cmp.Or(k.TCP, new(TCPCheck))
		c.port(sub, at, "port", &k.TCP.Port, d.Port)
	case TypeGRPC:
		k.GRPC = cmp.Or(k.GRPC, new(GRPCCheck))
		c.port(sub, at, "port", &k.GRPC.Port, d.Port)
		if s := k.GRPC.Service; len(s) > maxText || !visible(s) {
			c.bad(sub.Get("service"), at+".service", "write it as in the .proto file, such as shop.v1.Orders", "%q is no gRPC service", clip(s))
		}
	case TypeTTL:
		c.ttl(k, n, path)
		return
	}
	c.timing(k, n, path)
}

func (c *checker) duration(n *strictyaml.Node, path, key string, d *time.Duration, def, least, most time.Duration) {
	if n.Get(key) == nil {
		*d = def
	} else if *d < least || *d > most {
		c.bad(n.Get(key), path+"."+key, "", "%v: from %v to %v is possible", *d, least, most)
	}
}

// timing checks when a check that asks is asked, and how its results count.
func (c *checker) timing(k *Check, n *strictyaml.Node, path string) {
	c.duration(n, path, "interval", &k.Interval, defaultInterval, minInterval, maxInterval)
	c.duration(n, path, "timeout", &k.Timeout, min(defaultTimeout, k.Interval), minTimeout, maxInterval)
	if k.Timeout > k.Interval {
		c.bad(at(n, "timeout"), path+".timeout", "make it shorter, or the interval longer", "%v is longer than the interval of %v",
			k.Timeout, k.Interval)
	}
	for _, t := range []struct {
		key string
		v   *int
	}{{"successes", &k.Successes}, {"failures", &k.Failures}} {
		if n.Get(t.key) == nil {
			*t.v = 1
		} else if *t.v < 1 || *t.v > maxThreshold {
			c.bad(n.Get(t.key), path+"."+t.key, "", "%d: from 1 to %d is possible", *t.v, maxThreshold)
		}
	}
}

func (c *checker) ttl(k *Check, n *strictyaml.Node, path string) {
	for _, key := range []string{"interval", "timeout", "successes", "failures"} {
		if n.Get(key) != nil {
			c.bad(n.Get(key), path+"."+key, "remove it: the application's word counts at once", "does not belong to a check of type ttl")
		}
	}
	sub := n.Get("ttl")
	if sub.Get("ttl") == nil {
		c.bad(at(n, "ttl"), path+".ttl.ttl", "say how long a word of the application counts, such as 30s", needed)
		return
	}
	c.duration(sub, path+".ttl", "ttl", &k.TTL.TTL, 0, minTTL, maxTTL)
}

var methods = []string{"GET", "HEAD", "POST", "OPTIONS"}

// ownHeaders are those that the request's own framing needs.
var ownHeaders = []string{"host", "connection", "content-length", "expect", "keep-alive", "proxy-connection", "te", "trailer",
	"transfer-encoding", "upgrade"}

func (c *checker) http(h *HTTPCheck, n *strictyaml.Node, path string) {
	if n.Get("path") == nil {
		h.Path = "/"
	}
	if _, err := url.ParseRequestURI(h.Path); err != nil || !strings.HasPrefix(h.Path, "/") || strings.HasPrefix(h.Path, "//") ||
		len(h.Path) > maxText || !visible(h.Path) || strings.Contains(h.Path, "#") {
		c.bad(at(n, "path"), path+".path", "begin with a slash and escape what a URL does not hold, such as /health?full=1",
			"%q is no path to ask for", clip(h.Path))
	}
	if n.Get("method") == nil {
		h.Method = "GET"
	} else if !slices.Contains(methods, h.Method) {
		c.bad(n.Get("method"), path+".method", hint(h.Method, methods), "%q is none", clip(h.Method))
	}
	if n.Get("host") != nil && (h.Host == "" || len(h.Host) > maxText || !visible(h.Host) || strings.ContainsAny(h.Host, "/?#@\\")) {
		c.bad(n.Get("host"), path+".host", "write a name, with a port where needed, such as web.example.org", "%q is no host", clip(h.Host))
	}
	if n.Get("headers") != nil {
		c.headers(h.Headers, n.Get("headers"), path+".headers")
	}
}

func (c *checker) headers(hs map[string]string, n *strictyaml.Node, path string) {
	if len(hs) > maxHeaders {
		c.bad(n, path, "", "%d headers: at most %d are possible", len(hs), maxHeaders)
	}
	seen := map[string]bool{}
	for i, name := range n.Keys {
		v, at, low := n.Vals[i], path+"."+clip(name), strings.ToLower(name)
		switch {
		case !token(name):
			c.bad(v, at, "", "is no name of a header")
		case slices.Contains(ownHeaders, low):
			c.bad(v, at, "remove it; the host is set by the key host", "is set by the check itself")
		case len(hs[name]) > maxText || strings.ContainsFunc(hs[name], func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
			c.bad(v, at, "", "has a value of more than %d bytes or with control characters", maxText)
		case seen[low]:
			c.bad(v, at, "remove one", "is there twice")
		}
		seen[low] = true
	}
}

// visible reports whether s has neither spaces nor control characters nor anything outside ASCII.
func visible(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// token reports whether s is a token of RFC 9110.
func token(s string) bool {
	return s != "" && len(s) <= maxText && !strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
}

// hint names the nearest valid word, or all of them.
func hint(word string, valid []string) string {
	if near := strictyaml.Nearest(word, valid); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "it is one of " + strings.Join(valid, ", ")
}

// clip bounds a text that quotes what somebody wrote.
func clip(s string) string {
	if len(s) <= 80 {
		return s
	}
	return strings.ToValidUTF8(s[:80], "") + "..."
}
