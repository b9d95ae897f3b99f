package registry

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

const full = `
name: my-service
namespace: shop
id: my-service-1
account: seller
address: 127.0.1.2
port: 9080
servicePort: 8080
protocol: http
labels: {version: v1, app.example.org/tier: front}
weight: 0
callers: {users: ["0", www-data], units: [frontend.service, "worker@1.service"]}
checks:
- {name: alive, type: http, http: {path: "/health?full=1", method: HEAD, host: web.example.org, headers: {X-A: b}, port: 9081}, interval: 1s, timeout: 500ms, successes: 2, failures: 3}
- {type: tcp, tcp: {port: 9082}}
- {type: grpc, grpc: {service: shop.v1.Orders, port: 9083}, interval: 2s}
- {type: ttl, ttl: {ttl: 30s}}
`

func TestParse(t *testing.T) {
	ds, err := Parse("f", []byte(full+"---\nname: web\nport: 80\nprotocol: tcp\nchecks: [{type: http}, {type: tcp, tcp: {}}, {type: grpc}]\n"))
	if err != nil || len(ds) != 2 {
		t.Fatalf("%d definitions, %v", len(ds), err)
	}
	local := netip.MustParseAddr("127.0.0.1")
	want := []Definition{{
		Name: "my-service", Namespace: "shop", ID: "my-service-1", Account: "seller", Address: netip.MustParseAddr("127.0.1.2"), Port: 9080, ServicePort: 8080,
		Protocol: Protocol{mesh.HTTP}, Labels: mesh.Labels{"version": "v1", "app.example.org/tier": "front"}, Weight: 0,
		Callers: Callers{Users: []string{"0", "www-data"}, Units: []string{"frontend.service", "worker@1.service"}},
		Checks: []Check{
			{Name: "alive", Type: "http", HTTP: &HTTPCheck{"/health?full=1", "HEAD", "web.example.org", map[string]string{"X-A": "b"}, 9081}, Interval: time.Second,
				Timeout: 500 * time.Millisecond, Successes: 2, Failures: 3},
			{Name: "tcp", Type: "tcp", TCP: &TCPCheck{9082}, Interval: 10 * time.Second, Timeout: 5 * time.Second, Successes: 1, Failures: 1},
			{Name: "grpc", Type: "grpc", GRPC: &GRPCCheck{"shop.v1.Orders", 9083}, Interval: 2 * time.Second, Timeout: 2 * time.Second, Successes: 1, Failures: 1},
			{Name: "ttl", Type: "ttl", TTL: &TTLCheck{30 * time.Second}},
		},
	}, {
		Name: "web", Namespace: "default", ID: "web", Account: "web", Address: local, Port: 80, ServicePort: 80, Protocol: Protocol{mesh.TCP}, Weight: 1,
		Checks: []Check{
			{Name: "http", Type: "http", HTTP: &HTTPCheck{Path: "/", Method: "GET", Port: 80}, Interval: 10 * time.Second, Timeout: 5 * time.Second, Successes: 1, Failures: 1},
			{Name: "tcp", Type: "tcp", TCP: &TCPCheck{80}, Interval: 10 * time.Second, Timeout: 5 * time.Second, Successes: 1, Failures: 1},
			{Name: "grpc", Type: "grpc", GRPC: &GRPCCheck{Port: 80}, Interval: 10 * time.Second, Timeout: 5 * time.Second, Successes: 1, Failures: 1},
		},
	}}
	for i := range want {
		if !reflect.DeepEqual(ds[i], want[i]) {
			t.Errorf("got  %+v\nwant %+v", ds[i], want[i])
		}
	}
	if ds, err := Parse("f", []byte("# nothing\n---\n")); err != nil || len(ds) != 0 {
		t.Errorf("an empty file: %v, %v", ds, err)
	}
	ds, err = Parse("f", []byte(`{"name": "j", "port": 1, "protocol": "grpc", "address": "::ffff:127.0.0.9"}`))
	if err != nil || ds[0].Name != "j" || ds[0].Address != netip.MustParseAddr("127.0.0.9") || ds[0].Service() != mesh.MustServiceName("j") {
		t.Errorf("JSON: %+v, %v", ds, err)
	}
}

// TestInstance: every field of a definition reaches the catalog.
func TestInstance(t *testing.T) {
	ds, err := Parse("f", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	r := Registered{Definition: ds[0]}
	node := mesh.NodeIDFromBytes([16]byte{1})
	want := mesh.Instance{ID: "my-service-1", Node: node, Service: mesh.MustServiceName("shop/my-service"), Account: "seller", Addr: netip.MustParseAddr("127.0.1.2"),
		Port: 9080, ServicePort: 8080, Protocol: mesh.HTTP, Labels: r.Labels, Weight: 0, Health: mesh.Critical}
	if in := r.Instance(node); !in.Equal(&want) || in.Check() != nil {
		t.Errorf("got  %+v, %v\nwant %+v", in, in.Check(), want)
	}
	r.Maintenance = true
	if in := r.Instance(node); in.Health != mesh.Maintenance {
		t.Errorf("in maintenance: %v", in.Health)
	}
	r.Maintenance, r.Checks = false, nil
	if in := r.Instance(node); in.Health != mesh.Passing {
		t.Errorf("without checks: %v", in.Health)
	}
}

// TestBadFields: every field that is not valid gets a whole sentence. A row is what replaces the field in a valid definition.
func TestBadFields(t *testing.T) {
	long := strings.Repeat("x", 1100)
	for _, c := range []struct{ key, in, want string }{
		{"name", "", `1: name: is needed; name the service`},
		{"name", "name: Web", `1: name: invalid name: service name "Web": character 'W' is not allowed here: use a-z, 0-9 and inner hyphens`},
		{"name", "name: ''", `1: name: invalid name: service name is empty`},
		{"name", "name:", `1: name: has no value; give it a value or remove it`},
		{"name", "name: 12", `1: name: is a number, not a string; quote it: "12"`},
		{"name", "naem: web", `1: naem: unknown field; did you mean "name"?`},
		{"", "namespace: a.b", `4: namespace: invalid name: namespace "a.b": character '.' is not allowed here: use a-z, 0-9 and inner hyphens`},
		{"", "namespace: ''", `4: namespace: invalid name: namespace is empty`},
		{"", "id: -a", `4: id: invalid name: instance id "-a": character '-' is not allowed here: use a-z, 0-9 and inner hyphens`},
		{"", "id: ''", `4: id: invalid name: instance id is empty`},
		{"", "account: a/b", `4: account: invalid name: service account "a/b": character '/' is not allowed here: use a-z, 0-9 and inner hyphens`},
		{"", "acount: a", `4: acount: unknown field; did you mean "account"?`},
		{"", "address: localhost", `4: address: ParseAddr("localhost"): unable to parse IP`},
		{"", "address: 0.0.0.0", `4: address: 0.0.0.0 is not one to dial; give the one at which the application is reached on this host, such as 127.0.0.1`},
		{"", "address: 169.254.169.254", `4: address: 169.254.169.254 is not one to dial; give the one at which the application is reached on this host, such as 127.0.0.1`},
		{"", "address: '::ffff:169.254.169.254'", `4: address: 169.254.169.254 is not one to dial; give the one at which the application is reached on this host, such as 127.0.0.1`},
		{"", "address: 255.255.255.255", `4: address: 255.255.255.255 is not one to dial; give the one at which the application is reached on this host, such as 127.0.0.1`},
		{"", "address: 224.0.0.1", `4: address: 224.0.0.1 is not one to dial; give the one at which the application is reached on this host, such as 127.0.0.1`},
		{"", "address: 'fe80::1%lo'", `4: address: fe80::1%lo is not one to dial; give the one at which the application is reached on this host, such as 127.0.0.1`},
		{"port", "", `1: port: is needed; give the one at which the application listens`},
		{"port", "port: 0", `2: port: 0 is no port: from 1 to 65535 is possible`},
		{"port", "port: 65536", `2: port: 65536 is not a whole number from 0 to 65535`},
		{"port", "port: '80'", `2: port: is a string, not a number`},
		{"", "servicePort: 0", `4: servicePort: 0 is no port: from 1 to 65535 is possible`},
		{"", "serviceport: 1", `4: serviceport: unknown field; did you mean "servicePort"?`},
		{"protocol", "", `1: protocol: is needed; it is one of http, http2, grpc, tcp, tls, auto, gateway`},
		{"protocol", "protocol: htpt", `3: protocol: "htpt" is none; did you mean "http"?`},
		{"protocol", "protocol: udp", `3: protocol: "udp" is none; did you mean "tcp"?`},
		{"protocol", "protocol: quic", `3: protocol: "quic" is none; it is one of http, http2, grpc, tcp, tls, auto, gateway`},
		{"protocol", "protocol: HTTP", `3: protocol: "HTTP" is none; did you mean "http"?`},
		{"", "labels: {-a: b}", `4: labels: invalid label: key "-a": use up to 63 of a-z, A-Z, 0-9, '-', '_', '.', with a letter or digit at both ends`},
		{"", "labels: {a: 1}", `4: labels.a: is a number, not a string; quote it: "1"`},
		{"", "labels: [a]", `4: labels: is a list, not a map`},
		{"", "weight: 70000", `4: weight: 70000 is not a whole number from 0 to 65535`},
		{"", "weight: -1", `4: weight: -1 is not a whole number from 0 to 65535`},
		{"", "callers: {users: [0]}", `4: callers.users[0]: is a number, not a string; quote it: "0"`},
		{"", "callers: {users: ['a b']}", `4: callers.users[0]: "a b" is no user; write a name or a number, such as www-data or "33"`},
		{"", "callers: {users: ['4294967296']}", `4: callers.users[0]: "4294967296" is no user; write a name or a number, such as www-data or "33"`},
		{"", "callers: {user: [a]}", `4: callers.user: unknown field; did you mean "users"?`},
		{"", "callers: {units: [frontend]}", `4: callers.units[0]: "frontend" is no unit that has processes; write the whole name, such as frontend.service`},
		{"", "callers: {units: [system.slice]}", `4: callers.units[0]: "system.slice" is no unit that has processes; write the whole name, such as frontend.service`},
		{"", "callers: {units: [a/b.service]}", `4: callers.units[0]: "a/b.service" is no unit that has processes; write the whole name, such as frontend.service`},
		{"", "callers: {units: [" + strings.Repeat("a.service, ", 65) + "]}", `4: callers.units: 65 of them: at most 64 are possible`},
		{"", "checks: {type: tcp}", `4: checks: is a map, not a list`},
		{"", "checks: [" + strings.Repeat("{type: tcp}, ", 17) + "]", `4: checks: 17 checks: at most 16 are possible`},
		{"", "checks: [~]", `4: checks[0]: has no value; give it a value or remove it`},
		{"", "checks: [{}]", `4: checks[0].type: is needed; it is one of http, tcp, grpc, ttl`},
		{"", "checks: [{type: htp}]", `4: checks[0].type: "htp" is none; did you mean "http"?`},
		{"", "checks: [{type: script}]", `4: checks[0].type: "script" is none; it is one of http, tcp, grpc, ttl`},
		{"", "checks: [{type: http, args: [/bin/sh]}]", `4: checks[0].args: unknown field; it is one of name, type, http, tcp, grpc, ttl, interval, timeout, successes, failures`},
		{"", "checks: [{type: tcp, script: x}]", `4: checks[0].script: unknown field; it is one of name, type, http, tcp, grpc, ttl, interval, timeout, successes, failures`},
		{"", "checks: [{type: tcp, name: A}]", `4: checks[0].name: invalid name: check name "A": character 'A' is not allowed here: use a-z, 0-9 and inner hyphens`},
		{"", "checks:\n- type: tcp\n- type: tcp", `6: checks[1].name: "tcp" is the name of checks[0] already; give one of them another name`},
		{"", "checks: [{type: tcp, http: {}}]", `4: checks[0].http: does not belong to a check of type tcp; remove it, or set type to http`},
		{"", "checks: [{type: tcp, interval: 50ms}]", `4: checks[0].interval: 50ms: from 100ms to 1h0m0s is possible`},
		{"", "checks: [{type: tcp, interval: 0s}]", `4: checks[0].interval: 0s: from 100ms to 1h0m0s is possible`},
		{"", "checks: [{type: tcp, interval: 2h}]", `4: checks[0].interval: 2h0m0s: from 100ms to 1h0m0s is possible`},
		{"", "checks: [{type: tcp, interval: 10}]", `4: checks[0].interval: is a number, not a string; quote it: "10"`},
		{"", "checks: [{type: tcp, timeout: 1ms}]", `4: checks[0].timeout: 1ms: from 10ms to 1h0m0s is possible`},
		{"", "checks: [{type: tcp, timeout: 11s}]", `4: checks[0].timeout: 11s is longer than the interval of 10s; make it shorter, or the interval longer`},
		{"", "checks: [{type: tcp, successes: 0}]", `4: checks[0].successes: 0: from 1 to 100 is possible`},
		{"", "checks: [{type: tcp, failures: 101}]", `4: checks[0].failures: 101: from 1 to 100 is possible`},
		{"", "checks: [{type: tcp, failures: -1}]", `4: checks[0].failures: -1: from 1 to 100 is possible`},
		{"", "checks: [{type: tcp, tcp: {port: 0}}]", `4: checks[0].tcp.port: 0 is no port: from 1 to 65535 is possible`},
		{"", "checks: [{type: tcp, tcp: {address: 10.0.0.1}}]", `4: checks[0].tcp.address: unknown field; it is one of port`},
		{"", "checks: [{type: grpc, grpc: {service: a b}}]", `4: checks[0].grpc.service: "a b" is no gRPC service; write it as in the .proto file, such as shop.v1.Orders`},
		{"", "checks: [{type: grpc, grpc: {port: 0}}]", `4: checks[0].grpc.port: 0 is no port: from 1 to 65535 is possible`},
		{"", "checks: [{type: ttl}]", `4: checks[0].ttl.ttl: is needed; say how long a word of the application counts, such as 30s`},
		{"", "checks: [{type: ttl, ttl: {}}]", `4: checks[0].ttl.ttl: is needed; say how long a word of the application counts, such as 30s`},
		{"", "checks: [{type: ttl, ttl: {ttl: 1ms}}]", `4: checks[0].ttl.ttl: 1ms: from 1s to 24h0m0s is possible`},
		{"", "checks: [{type: ttl, ttl: {ttl: 25h}}]", `4: checks[0].ttl.ttl: 25h0m0s: from 1s to 24h0m0s is possible`},
		{"", "checks: [{type: ttl, ttl: {ttl: 5s}, interval: 5s}]", `4: checks[0].interval: does not belong to a check of type ttl; remove it: the application's word counts at once`},
		{"", "checks: [{type: ttl, ttl: {ttl: 5s}, failures: 5}]", `4: checks[0].failures: does not belong to a check of type ttl; remove it: the application's word counts at once`},
		{"", "checks: [{type: http, http: {path: x}}]", `4: checks[0].http.path: "x" is no path to ask for; begin with a slash and escape what a URL does not hold, such as /health?full=1`},
		{"", "checks: [{type: http, http: {path: ''}}]", `4: checks[0].http.path: "" is no path to ask for; begin with a slash and escape what a URL does not hold, such as /health?full=1`},
		{"", "checks: [{type: http, http: {path: 'http://10.0.0.1/'}}]", `4: checks[0].http.path: "http://10.0.0.1/" is no path to ask for; begin with a slash and escape what a URL does not hold, such as /health?full=1`},
		{"", "checks: [{type: http, http: {path: //10.0.0.1/}}]", `4: checks[0].http.path: "//10.0.0.1/" is no path to ask for; begin with a slash and escape what a URL does not hold, such as /health?full=1`},
		{"", `checks: [{type: http, http: {path: "/a b"}}]`, `4: checks[0].http.path: "/a b" is no path to ask for; begin with a slash and escape what a URL does not hold, such as /health?full=1`},
		{"", `checks: [{type: http, http: {path: "/a#b"}}]`, `4: checks[0].http.path: "/a#b" is no path to ask for; begin with a slash and escape what a URL does not hold, such as /health?full=1`},
		{"", `checks: [{type: http, http: {path: "/%zz"}}]`, `4: checks[0].http.path: "/%zz" is no path to ask for; begin with a slash and escape what a URL does not hold, such as /health?full=1`},
		{"", "checks: [{type: http, http: {path: /" + long + "}}]", `4: checks[0].http.path: "/` + long[:79] + `..." is no path to ask for; begin with a slash and escape what a URL does not hold, such as /health?full=1`},
		{"", "checks: [{type: http, http: {method: get}}]", `4: checks[0].http.method: "get" is none; did you mean "GET"?`},
		{"", "checks: [{type: http, http: {method: DELETE}}]", `4: checks[0].http.method: "DELETE" is none; it is one of GET, HEAD, POST, OPTIONS`},
		{"", "checks: [{type: http, http: {host: a/b}}]", `4: checks[0].http.host: "a/b" is no host; write a name, with a port where needed, such as web.example.org`},
		{"", "checks: [{type: http, http: {host: ''}}]", `4: checks[0].http.host: "" is no host; write a name, with a port where needed, such as web.example.org`},
		{"", "checks: [{type: http, http: {port: 0}}]", `4: checks[0].http.port: 0 is no port: from 1 to 65535 is possible`},
		{"", "checks: [{type: http, http: {headers: {'a b': c}}}]", `4: checks[0].http.headers.a b: is no name of a header`},
		{"", "checks: [{type: http, http: {headers: {Host: c}}}]", `4: checks[0].http.headers.Host: is set by the check itself; remove it; the host is set by the key host`},
		{"", "checks: [{type: http, http: {headers: {transfer-encoding: chunked}}}]", `4: checks[0].http.headers.transfer-encoding: is set by the check itself; remove it; the host is set by the key host`},
		{"", `checks: [{type: http, http: {headers: {a: "b\r\nc: d"}}}]`, `4: checks[0].http.headers.a: has a value of more than 1024 bytes or with control characters`},
		{"", "checks: [{type: http, http: {headers: {a: b, A: c}}}]", `4: checks[0].http.headers.A: is there twice; remove one`},
		{"", "checks: [{type: http, http: {redirects: true}}]", `4: checks[0].http.redirects: unknown field; it is one of path, method, host, headers, port`},
	} {
		fields := map[string]string{"name": "name: web", "port": "port: 80", "protocol": "protocol: http"}
		if c.key != "" {
			fields[c.key] = c.in
		}
		in := fields["name"] + "\n" + fields["port"] + "\n" + fields["protocol"] + "\n"
		if c.key == "" {
			in += c.in
		}
		if c.in == "" && c.key == "name" { // absent: the map begins with the next field
			in = strings.TrimPrefix(in, "\n")
		}
		if ds, err := Parse("f", []byte(in)); err == nil || err.Error() != "f:"+c.want || len(ds) > 0 {
			t.Errorf("%s\n got %v\nwant f:%s", c.in, err, c.want)
		}
	}
}

// TestAllErrorsAtOnce: a file with several mistakes names all of them, and gives no definition.
func TestAllErrorsAtOnce(t *testing.T) {
	ds, err := Parse("f", []byte("name: A\nport: 0\n---\nname: b\nport: 1\nprotocol: http\n---\nprot: 1\n"))
	want := `f:1: name: invalid name: service name "A": character 'A' is not allowed here: use a-z, 0-9 and inner hyphens
f:2: port: 0 is no port: from 1 to 65535 is possible
f:1: protocol: is needed; it is one of http, http2, grpc, tcp, tls, auto, gateway
f:8: prot: unknown field; did you mean "port"?`
	if len(ds) > 0 || err == nil || err.Error() != want {
		t.Errorf("%v\ngot  %v\nwant %s", ds, err, want)
	}
}

// FuzzParse: what is accepted keeps every promise that its readers build on.
func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("name: a\nport: 1\nprotocol: tcp\n---\nname: b\nport: 2\nprotocol: http\nchecks: [{type: ttl, ttl: {ttl: 1s}}, {type: http, interval: 100ms}]\n"))
	f.Add([]byte(`{"name": "j", "port": 1, "protocol": "grpc", "address": "::1", "checks": [{"type": "grpc"}]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		ds, err := Parse("f", in)
		if err != nil && len(ds) > 0 {
			t.Fatalf("an error and %d definitions", len(ds))
		}
		for _, d := range ds {
			r := Registered{Definition: d}
			inst := r.Instance(mesh.NodeID{})
			if err := inst.Check(); err != nil {
				t.Errorf("accepted, but %v", err)
			}
			if inst.Account == "" || inst.ServicePort == 0 || !d.Protocol.L7() && d.Protocol.Protocol != mesh.TCP || d.Address.IsLinkLocalUnicast() || d.Address.Is4In6() {
				t.Errorf("accepted: %+v", inst)
			}
			names := map[string]bool{}
			for _, c := range d.Checks {
				ask := c.Interval >= 100*time.Millisecond && c.Timeout > 0 && c.Timeout <= c.Interval && c.Successes > 0 && c.Failures > 0
				ok := map[string]bool{
					"http": c.HTTP != nil && ask && c.HTTP.Path[0] == '/' && c.HTTP.Port > 0 && c.HTTP.Method != "",
					"tcp":  c.TCP != nil && ask && c.TCP.Port > 0,
					"grpc": c.GRPC != nil && ask && c.GRPC.Port > 0,
					"ttl":  c.TTL != nil && c.TTL.TTL >= time.Second,
				}[c.Type]
				one := 0
				for _, p := range []bool{c.HTTP != nil, c.TCP != nil, c.GRPC != nil, c.TTL != nil} {
					if p {
						one++
					}
				}
				if !ok || one != 1 || names[c.Name] || mesh.CheckLabel("name", c.Name) != nil {
					t.Errorf("accepted: %+v", c)
				}
				names[c.Name] = true
			}
		}
	})
}

// documented returns every field of a type as the docs write it.
func documented(t reflect.Type, prefix string) (out []string) {
	for f := range t.Fields() {
		name := f.Tag.Get("yaml")
		if name == "" {
			continue
		}
		ft, path := f.Type, prefix+name
		for ft.Kind() == reflect.Pointer || ft.Kind() == reflect.Slice {
			if ft.Kind() == reflect.Slice && ft.Elem().Kind() == reflect.Struct {
				path += "[]"
			}
			ft = ft.Elem()
		}
		var sub []string
		if ft.Kind() == reflect.Struct {
			sub = documented(ft, path+".")
		}
		if sub == nil {
			sub = []string{path}
		}
		out = append(out, sub...)
	}
	return out
}

// TestDocs: docs/services.md has one row for each field, in order, and the rows' defaults and the examples are true.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile("../../docs/services.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(b), "\n## Fields\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var rows []string
	defaults := map[string]string{}
	for line := range strings.Lines(section) {
		if cells := strings.Split(line, " | "); strings.HasPrefix(line, "| `") && len(cells) == 3 {
			name := strings.Trim(cells[0], "|` ")
			rows = append(rows, name)
			defaults[name] = strings.Trim(cells[1], "` ")
		}
	}
	if want := documented(reflect.TypeFor[Definition](), ""); !reflect.DeepEqual(rows, want) {
		t.Errorf("rows of docs/services.md\n%s\nfields\n%s", strings.Join(rows, " "), strings.Join(want, " "))
	}
	ds, err := Parse("f", []byte("{name: web, port: 80, protocol: http, checks: [{type: http}]}"))
	if err != nil {
		t.Fatal(err)
	}
	d, c := ds[0], ds[0].Checks[0]
	for name, got := range map[string]any{"namespace": d.Namespace, "address": d.Address, "weight": d.Weight, "checks[].interval": c.Interval, "checks[].timeout": c.Timeout,
		"checks[].successes": c.Successes, "checks[].failures": c.Failures, "checks[].http.path": c.HTTP.Path, "checks[].http.method": c.HTTP.Method} {
		if defaults[name] != fmt.Sprint(got) {
			t.Errorf("%s is %v by default; docs/services.md has %q", name, got, defaults[name])
		}
	}
	blocks := strings.Split(string(b), "```yaml\n")[1:]
	if len(blocks) == 0 {
		t.Error("docs/services.md has no example")
	}
	for _, block := range blocks {
		block, _, _ = strings.Cut(block, "```")
		if _, err := Parse("docs/services.md", []byte(block)); err != nil {
			t.Errorf("%v\n%s", err, block)
		}
	}
}
