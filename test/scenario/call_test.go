//go:build process && linux

package scenario

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// most is how long a call may take that nothing else limits.
const most = 20 * time.Second

// caller makes one call after the other, and keeps its connection where the protocol has that. The text is what a script looks
// at: of HTTP the head, a blank line and the body.
type caller interface {
	call(context.Context) (text string, err error)
	close()
}

// newCaller reads the command line of a call: curl, grpcurl or nc.
func (w *world) newCaller(args []string) (caller, error) {
	switch {
	case len(args) == 0:
	case args[0] == "curl":
		return w.newCurl(args[1:])
	case args[0] == "grpcurl":
		return w.newGRPC(args[1:])
	case args[0] == "nc":
		return w.newLine(args[1:])
	}
	return nil, fmt.Errorf("%q is no call: write curl, grpcurl or nc", args)
}

// dial connects as the caller whom the script has named with as: a name is looked up in the DNS of the caller's host.
func (w *world) dial(ctx context.Context, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	from := w.callers[w.as]
	if _, err := netip.ParseAddr(host); err != nil {
		if from == nil {
			return nil, fmt.Errorf("nobody calls: name a caller with as before a call by name")
		}
		found, err := from.Resolver().LookupNetIP(ctx, "ip4", host)
		if err != nil {
			return nil, err
		}
		host = found[0].String()
	}
	var d net.Dialer
	if from != nil {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from.Addr())}
	}
	return d.DialContext(ctx, "tcp4", net.JoinHostPort(host, port))
}

// flags takes the options from a command line: those of valued have a value, which may be there more than once.
func flags(args []string, valued, plain string) (map[string][]string, []string, error) {
	got := map[string][]string{}
	var rest []string
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case !strings.HasPrefix(a, "-"):
			rest = append(rest, a)
		case slices.Contains(strings.Fields(plain), a):
			got[a] = append(got[a], "")
		case slices.Contains(strings.Fields(valued), a) && i+1 < len(args):
			i++
			got[a] = append(got[a], args[i])
		default:
			return nil, nil, fmt.Errorf("%s is no option: possible are %s %s", a, valued, plain)
		}
	}
	return got, rest, nil
}

func last(values []string, def string) string {
	if len(values) == 0 {
		return def
	}
	return values[len(values)-1]
}

// curl is a part of curl.
type curl struct {
	method, url, body string
	header            http.Header
	head              bool // show the head, too
	client            *http.Client
	most              time.Duration
}

func (w *world) newCurl(args []string) (caller, error) {
	f, rest, err := flags(args, "-X -H -d -m --resolve --cacert --cert --key -b", "-i -s -k --http2 --http2-prior-knowledge")
	if err != nil {
		return nil, err
	}
	if len(rest) != 1 {
		return nil, fmt.Errorf("curl wants one URL, not %q", rest)
	}
	c := &curl{url: rest[0], head: f["-i"] != nil, header: http.Header{}, body: last(f["-d"], ""), method: "GET", most: most}
	if c.body != "" {
		c.method = "POST"
	}
	c.method = last(f["-X"], c.method)
	for _, h := range f["-H"] {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return nil, fmt.Errorf("%q is no header", h)
		}
		c.header.Add(name, strings.TrimSpace(value))
	}
	for _, b := range f["-b"] {
		c.header.Add("Cookie", b)
	}
	if m := f["-m"]; m != nil {
		sec, err := strconv.ParseFloat(m[0], 64)
		if err != nil {
			return nil, err
		}
		c.most = time.Duration(sec * float64(time.Second))
	}
	t := &http.Transport{DisableCompression: true, Protocols: new(http.Protocols), MaxIdleConnsPerHost: 1}
	t.Protocols.SetHTTP1(f["--http2-prior-knowledge"] == nil)
	t.Protocols.SetHTTP2(f["--http2"] != nil)
	t.Protocols.SetUnencryptedHTTP2(f["--http2-prior-knowledge"] != nil)
	t.DialContext = func(ctx context.Context, _, addr string) (net.Conn, error) {
		for _, r := range f["--resolve"] {
			if to, ok := strings.CutPrefix(r, addr+":"); ok {
				_, port, _ := net.SplitHostPort(addr)
				if _, _, err := net.SplitHostPort(to); err != nil {
					to = net.JoinHostPort(to, port)
				}
				return w.dial(ctx, to)
			}
		}
		return w.dial(ctx, addr)
	}
	if t.TLSClientConfig, err = w.clientTLS(f); err != nil {
		return nil, err
	}
	c.client = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c, nil
}

// clientTLS is what the options say of TLS; files are those of the script.
func (w *world) clientTLS(f map[string][]string) (*tls.Config, error) {
	cfg := &tls.Config{InsecureSkipVerify: f["-k"] != nil, RootCAs: x509.NewCertPool()}
	for _, file := range f["--cacert"] {
		pem, err := os.ReadFile(w.file(file))
		if err != nil {
			return nil, err
		}
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate", file)
		}
	}
	if file := last(f["--cert"], ""); file != "" {
		pair, err := tls.LoadX509KeyPair(w.file(file), w.file(last(f["--key"], file)))
		if err != nil {
			return nil, err
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

func (c *curl) close() { c.client.CloseIdleConnections() }

func (c *curl) call(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.most)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, c.method, c.url, strings.NewReader(c.body))
	if err != nil {
		return "", err
	}
	r.Header = c.header.Clone()
	r.Header["User-Agent"] = nil
	if h := r.Header.Get("Host"); h != "" {
		r.Host = h
		r.Header.Del("Host")
	}
	resp, err := c.client.Do(r)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", err
	}
	var lines []string
	for name, values := range resp.Header {
		name = strings.ToLower(name)
		if slices.Contains([]string{"date", "content-length", "content-type", "x-content-type-options"}, name) {
			continue
		}
		for _, v := range values {
			lines = append(lines, name+": "+v)
		}
	}
	slices.Sort(lines)
	return resp.Proto + " " + resp.Status + "\n" + strings.Join(append(lines, ""), "\n") + "\n" + string(body), nil
}

// grpcCaller is a part of grpcurl, for messages of text.
type grpcCaller struct {
	conn         *grpc.ClientConn
	method, data string
	md           metadata.MD
}

func (w *world) newGRPC(args []string) (caller, error) {
	f, rest, err := flags(args, "-H -d -authority", "-plaintext")
	if err != nil {
		return nil, err
	}
	if len(rest) != 2 {
		return nil, fmt.Errorf("grpcurl wants an address and a method, not %q", rest)
	}
	conn, err := grpc.NewClient("passthrough:///"+rest[0], grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry(),
		grpc.WithAuthority(last(f["-authority"], rest[0])), grpc.WithContextDialer(w.dial))
	if err != nil {
		return nil, err
	}
	c := &grpcCaller{conn, "/" + rest[1], last(f["-d"], ""), metadata.MD{}}
	for _, h := range f["-H"] {
		name, value, _ := strings.Cut(h, ":")
		c.md.Append(name, strings.TrimSpace(value))
	}
	return c, nil
}

func (c *grpcCaller) close() { c.conn.Close() }

func (c *grpcCaller) call(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(ctx, c.md), most)
	defer cancel()
	out, err := raw(ctx, c.conn, c.method, c.data)
	if s, ok := status.FromError(err); err != nil && ok {
		return fmt.Sprintf("ERROR:\n  Code: %s\n  Message: %s\n", s.Code(), s.Message()), errors.New("the call failed")
	}
	return out, err
}

// lineCaller sends a line of text and reads one, over a connection of its own, which may be one of TLS.
type lineCaller struct {
	w        *world
	addr, in string
	tls      *tls.Config
}

func (w *world) newLine(args []string) (caller, error) {
	f, rest, err := flags(args, "--ssl-servername --cacert --cert --key", "-k")
	if err != nil {
		return nil, err
	}
	if len(rest) != 3 {
		return nil, fmt.Errorf("nc wants a host, a port and a line, not %q", rest)
	}
	c := &lineCaller{w: w, addr: net.JoinHostPort(rest[0], rest[1]), in: rest[2]}
	if name := last(f["--ssl-servername"], ""); name != "" {
		if c.tls, err = w.clientTLS(f); err != nil {
			return nil, err
		}
		c.tls.ServerName = name
	}
	return c, nil
}

func (c *lineCaller) close() {}

func (c *lineCaller) call(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	conn, err := c.w.dial(ctx, c.addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	end, _ := ctx.Deadline()
	conn.SetDeadline(end)
	if c.tls != nil {
		secure := tls.Client(conn, c.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			return "", err
		}
		conn = secure
	}
	if _, err := io.WriteString(conn, c.in+"\n"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if errors.Is(err, io.EOF) {
		err = errors.New("the connection was closed")
	}
	return line, err
}
