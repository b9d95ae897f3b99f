package api

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/meshagent/meshagent/mesh"
)

// DefaultAddr is where an agent of a host answers.
const DefaultAddr = "unix:///run/meshagent/api.sock"

// Client calls an agent's API. Safe for concurrent use.
type Client struct {
	addr, base, token string
	http              *http.Client
}

// NewClient returns a client for unix:///PATH, http://HOST:PORT, or https://HOST:PORT by the system's authorities; token may be empty. A
// plain http address must be of this machine: a token never crosses a network in the clear.
func NewClient(addr, token string) (*Client, error) { return NewClientTLS(addr, token, TLS{}) }

const addresses = "write unix:///PATH, http://127.0.0.1:8500 or https://HOST:PORT"

// NewClientTLS is NewClient that says how https is spoken.
func NewClientTLS(addr, token string, how TLS) (*Client, error) {
	u, err := url.Parse(addr)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w: %s", addr, err, addresses)
	}
	c := &Client{addr: addr, token: token}
	t := &http.Transport{DisableCompression: true, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10, TLSHandshakeTimeout: 10 * time.Second}
	c.http = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("the API does not redirect") }}
	bare := u.Host != "" && strings.Trim(u.Path, "/") == "" && u.User == nil && u.RawQuery == "" && u.Fragment == ""
	t.DialContext = (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	switch {
	case u.Scheme == "unix" && u.Path != "" && u.Host == "":
		c.base = "http://localhost"
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", u.Path)
		}
	case u.Scheme == "http" && bare:
		if ip := net.ParseIP(u.Hostname()); u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return nil, fmt.Errorf("address %q: %s is not of this machine: write https, as api.listen of its agent has it", addr, u.Hostname())
		}
		c.base = "http://" + u.Host
	case u.Scheme == "https" && bare && u.Hostname() != "":
		c.base = "https://" + u.Host
		if t.TLSClientConfig, err = how.config(u.Hostname()); err != nil {
			return nil, fmt.Errorf("address %q: %w", addr, err)
		}
	default:
		return nil, fmt.Errorf("address %q: %s", addr, addresses)
	}
	return c, nil
}

// maxAnswer bounds an answer in bytes.
const maxAnswer = 256 << 20

// do sends one request and decodes its answer into out, unless that is nil. in is sent as JSON, or as it is when it is []byte.
func (c *Client) do(ctx context.Context, method, path string, q url.Values, in, out any) error {
	resp, err := c.send(ctx, method, path, q, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("agent at %s: answer to %s %s: %w", c.addr, method, path, err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, method, path string, q url.Values, in any) (*http.Response, error) {
	var body io.Reader
	ctype := "application/json"
	switch v := in.(type) {
	case nil:
	case []byte:
		body, ctype = bytes.NewReader(v), "application/yaml"
	case io.Reader:
		body, ctype = v, "application/octet-stream"
	default:
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	u := c.base + Prefix + path
	if len(q) > 0 {
		u += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", ctype)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	notReady := path == "/ready" && resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Content-Type") != ProblemType
	if resp.StatusCode/100 == 2 || notReady {
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	var e Error
	if err != nil || json.Unmarshal(b, &e) != nil || e.Code == "" {
		return nil, fmt.Errorf("agent at %s answered %s without saying why: is something else listening there?", c.addr, resp.Status)
	}
	return nil, &e
}

// unreachable says what to do when no agent answers.
func (c *Client) unreachable(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case strings.HasPrefix(c.base, "https:"):
		if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
			return fmt.Errorf("agent at %s: its certificate is of an authority that is not known here: name that by --ca", c.addr)
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("nobody answers at %s: is its agent running, and api.listen set?", c.addr)
		}
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no agent answers at %s: is it running (systemctl status meshagent)? another address is given by --addr or MESHAGENT_ADDR", c.addr)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s may not be opened by this user: run as root or as a member of the socket's group", c.addr)
	}
	return fmt.Errorf("agent at %s: %w", c.addr, err)
}

// Ready asks whether the agent is ready.
func (c *Client) Ready(ctx context.Context) (r Ready, err error) {
	return r, c.do(ctx, http.MethodGet, "/ready", nil, nil, &r)
}

// Status asks how the agent stands.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.do(ctx, http.MethodGet, "/status", nil, nil, &s)
}

// Members lists the nodes.
func (c *Client) Members(ctx context.Context) (m Members, err error) {
	return m, c.do(ctx, http.MethodGet, "/members", nil, nil, &m)
}

// Services lists the services of the mesh. after 0 answers at once; else it waits for a newer Snapshot. It returns the version.
func (c *Client) Services(ctx context.Context, after uint64) (s Services, version uint64, err error) {
	q := url.Values{}
	if after > 0 {
		q.Set("after", strconv.FormatUint(after, 10))
	}
	resp, err := c.send(ctx, http.MethodGet, "/services", q, nil)
	if err != nil {
		return s, 0, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&s); err != nil {
		return s, 0, fmt.Errorf("agent at %s: answer to GET /services: %w", c.addr, err)
	}
	version, err = strconv.ParseUint(resp.Header.Get(VersionHeader), 10, 64)
	return s, version, err
}

// Service returns one service with its instances.
func (c *Client) Service(ctx context.Context, name mesh.ServiceName) (s Service, err error) {
	ns := name.Namespace()
	if name.IsExternal() {
		ns = External
	}
	return s, c.do(ctx, http.MethodGet, "/services/"+ns+"/"+name.Name(), nil, nil, &s)
}

// Local lists the services of this host.
func (c *Client) Local(ctx context.Context) (l Locals, err error) {
	return l, c.do(ctx, http.MethodGet, "/local/services", nil, nil, &l)
}

// Register defines a service of this host: one document, YAML or JSON.
func (c *Client) Register(ctx context.Context, definition []byte) (l Local, err error) {
	return l, c.do(ctx, http.MethodPut, "/local/services", nil, definition, &l)
}

func localPath(namespace, id string) string {
	return "/local/services/" + url.PathEscape(namespace) + "/" + url.PathEscape(id)
}

// Deregister removes a service of this host that was registered over the API.
func (c *Client) Deregister(ctx context.Context, namespace, id string) error {
	return c.do(ctx, http.MethodDelete, localPath(namespace, id), nil, nil, nil)
}

// SetMaintenance turns maintenance of a service of this host on or off.
func (c *Client) SetMaintenance(ctx context.Context, namespace, id string, m Maintenance) error {
	return c.do(ctx, http.MethodPut, localPath(namespace, id)+"/maintenance", nil, m, nil)
}

// UpdateTTL gives the application's word for a ttl check.
func (c *Client) UpdateTTL(ctx context.Context, namespace, id, check string, t TTL) error {
	return c.do(ctx, http.MethodPut, localPath(namespace, id)+"/checks/"+url.PathEscape(check), nil, t, nil)
}

// Policies lists policy; empty kind and namespace mean all of them. kind is a name as people type it (virtualservice, vs).
func (c *Client) Policies(ctx context.Context, kind, namespace string, cons Consistency) (p Policies, err error) {
	return p, c.do(ctx, http.MethodGet, "/policies", policyQuery(kind, namespace, cons, ""), nil, &p)
}

func policyQuery(kind, namespace string, cons Consistency, status string) url.Values {
	q := url.Values{}
	for k, v := range map[string]string{"kind": kind, "namespace": namespace, "consistency": string(cons), "status": status} {
		if v != "" {
			q.Set(k, v)
		}
	}
	return q
}

// Statuses is Policies with the status of each.
func (c *Client) Statuses(ctx context.Context, kind, namespace string, cons Consistency) (p Policies, err error) {
	return p, c.do(ctx, http.MethodGet, "/policies", policyQuery(kind, namespace, cons, "true"), nil, &p)
}

// Apply changes policy.
func (c *Client) Apply(ctx context.Context, a Apply) (out Applied, err error) {
	return out, c.do(ctx, http.MethodPost, "/policies", nil, a, &out)
}

// Live asks on how many nodes policy of a store index is live, and waits for all of them for as long as wait, MaxWait at most.
func (c *Client) Live(ctx context.Context, index uint64, wait time.Duration) (l Live, err error) {
	q := url.Values{"index": {strconv.FormatUint(index, 10)}}
	if wait > 0 {
		q.Set("wait", wait.String())
	}
	return l, c.do(ctx, http.MethodGet, "/live", q, nil, &l)
}

// Keyring returns the keyring of gossip, by names. With a version above 0, nodes are counted that have it or a later one, and it
// waits until all have, wait at most.
func (c *Client) Keyring(ctx context.Context, version uint64, wait time.Duration) (k Keyring, err error) {
	q := url.Values{}
	if version > 0 {
		q.Set("version", strconv.FormatUint(version, 10))
	}
	if wait > 0 {
		q.Set("wait", wait.String())
	}
	return k, c.do(ctx, http.MethodGet, "/keyring", q, nil, &k)
}

// RotateKeyring begins to replace the key of gossip.
func (c *Client) RotateKeyring(ctx context.Context) (k Keyring, err error) {
	return k, c.do(ctx, http.MethodPost, "/keyring/rotate", nil, nil, &k)
}

// CA returns how the certificate authority stands.
func (c *Client) CA(ctx context.Context) (a CA, err error) {
	return a, c.do(ctx, http.MethodGet, "/ca", nil, nil, &a)
}

// RotateCA begins to replace the root certificate.
func (c *Client) RotateCA(ctx context.Context) (a CA, err error) {
	return a, c.do(ctx, http.MethodPost, "/ca/rotate", nil, nil, &a)
}

// Federate makes the roots of another trust domain known, or removes them.
func (c *Client) Federate(ctx context.Context, in Federate) (f Federation, err error) {
	return f, c.do(ctx, http.MethodPost, "/ca/federation", nil, in, &f)
}

// ReplaceCA has certificates come from another authority.
func (c *Client) ReplaceCA(ctx context.Context, in Authority) (a CA, err error) {
	return a, c.do(ctx, http.MethodPost, "/ca/authority", nil, in, &a)
}

// Revoke makes every host refuse a host or a service, or takes that back.
func (c *Client) Revoke(ctx context.Context, in Revoke) (r Revocation, err error) {
	return r, c.do(ctx, http.MethodPost, "/ca/revoke", nil, in, &r)
}

// Bundle writes the root certificates that the agent accepts.
func (c *Client) Bundle(ctx context.Context, f BundleFormat, w io.Writer) error {
	resp, err := c.send(ctx, http.MethodGet, "/ca/bundle", url.Values{"format": {string(f)}}, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, io.LimitReader(resp.Body, MaxBody)); err != nil {
		return fmt.Errorf("agent at %s: trust bundle: %w", c.addr, err)
	}
	return nil
}

// Capture says which addresses are led to the agent where `meshagent capture` runs.
func (c *Client) Capture(ctx context.Context) (a Capture, err error) {
	return a, c.do(ctx, http.MethodGet, "/capture", nil, nil, &a)
}

// CreateToken makes a join token.
func (c *Client) CreateToken(ctx context.Context, s TokenSpec) (t NewToken, err error) {
	return t, c.do(ctx, http.MethodPost, "/tokens", nil, s, &t)
}

// Tokens lists the join tokens.
func (c *Client) Tokens(ctx context.Context) (t Tokens, err error) {
	return t, c.do(ctx, http.MethodGet, "/tokens", nil, nil, &t)
}

// DeleteToken withdraws a join token.
func (c *Client) DeleteToken(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/tokens/"+url.PathEscape(id), nil, nil, nil)
}

// CreateAPIToken makes a token for the API.
func (c *Client) CreateAPIToken(ctx context.Context, s APITokenSpec) (t NewAPIToken, err error) {
	return t, c.do(ctx, http.MethodPost, "/apitokens", nil, s, &t)
}

// APITokens lists the tokens for the API.
func (c *Client) APITokens(ctx context.Context) (t APITokens, err error) {
	return t, c.do(ctx, http.MethodGet, "/apitokens", nil, nil, &t)
}

// DeleteAPIToken withdraws a token for the API.
func (c *Client) DeleteAPIToken(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/apitokens/"+url.PathEscape(id), nil, nil, nil)
}

// Whoami says who the caller is, and what he may do.
func (c *Client) Whoami(ctx context.Context) (w Whoami, err error) {
	return w, c.do(ctx, http.MethodGet, "/whoami", nil, nil, &w)
}

// Login asks where operators log in.
func (c *Client) Login(ctx context.Context) (l Login, err error) {
	return l, c.do(ctx, http.MethodGet, "/login", nil, nil, &l)
}

// DNS asks the agent's DNS as a caller of this host.
func (c *Client) DNS(ctx context.Context, name, qtype string) (a Answer, err error) {
	return a, c.do(ctx, http.MethodGet, "/dns", url.Values{"name": {name}, "type": {qtype}}, nil, &a)
}

// Leave makes the host leave the mesh; the agent ends.
func (c *Client) Leave(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, "/leave", nil, nil, nil)
}

// Backup writes a snapshot of the store, of a server only.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	resp, err := c.send(ctx, http.MethodGet, "/store/snapshot", nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(w, io.LimitReader(resp.Body, MaxRestore+1))
	if err == nil && n > MaxRestore {
		err = fmt.Errorf("more than %d bytes: that could not be restored", MaxRestore)
	}
	if err != nil {
		return fmt.Errorf("agent at %s: snapshot: %w", c.addr, err)
	}
	return nil
}

// Restore replaces all of the store by a snapshot, on a server only.
func (c *Client) Restore(ctx context.Context, r io.Reader) error {
	return c.do(ctx, http.MethodPut, "/store/snapshot", nil, r, nil)
}
