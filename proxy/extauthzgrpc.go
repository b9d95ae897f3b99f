package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/http1"
)

// What is said to a service that speaks Envoy's ext_authz, and what it says. Messages are written and read by hand, field by field, since the
// generated types with all that they refer to make the program 11 MB larger. Source: envoy/service/auth/v3/external_auth.proto and
// attribute_context.proto, whose numbers these are; tests hold them to the generated types.
const (
	checkMethod = "/envoy.service.auth.v3.Authorization/Check"

	maxCheckAnswer = 1 << 20 // bytes
)

// message is one that is being written.
type message []byte

func (m *message) text(field protowire.Number, s string) {
	if s != "" {
		*m = protowire.AppendString(protowire.AppendTag(*m, field, protowire.BytesType), s)
	}
}

func (m *message) number(field protowire.Number, n uint64) {
	if n != 0 {
		*m = protowire.AppendVarint(protowire.AppendTag(*m, field, protowire.VarintType), n)
	}
}

func (m *message) inner(field protowire.Number, f func(*message)) {
	var in message
	f(&in)
	*m = protowire.AppendBytes(protowire.AppendTag(*m, field, protowire.BytesType), in)
}

func (m *message) pair(field protowire.Number, key, value string) {
	m.inner(field, func(m *message) { m.text(1, key); m.text(2, value) })
}

// checkMessage is a CheckRequest about a call to an instance or gateway of a principal. All headers of a request are in it.
func (c *call) checkMessage(q *policy.Request, principal string, b part) []byte {
	x := &c.x.Request
	var m message
	m.inner(1, func(m *message) { // attributes
		m.inner(1, func(m *message) { // source
			m.inner(1, func(m *message) { // address
				m.inner(1, func(m *message) { // socket_address
					m.text(2, q.Source.First().String())
				})
			})
			if !q.Source.Identity.IsZero() {
				m.text(4, q.Source.Identity.String())
			}
		})
		m.inner(2, func(m *message) { // destination
			m.inner(1, func(m *message) {
				m.inner(1, func(m *message) { m.number(3, uint64(q.Port)) })
			})
			m.text(4, principal)
		})
		if q.Method == "" { // a connection
			if q.SNI != "" {
				m.inner(12, func(m *message) { m.text(1, q.SNI) }) // tls_session
			}
			return
		}
		m.inner(4, func(m *message) { // request
			m.inner(1, func(m *message) { // time
				m.number(1, uint64(c.x.Result.Start.Unix()))
				m.number(2, uint64(c.x.Result.Start.Nanosecond()))
			})
			m.inner(2, func(m *message) { // http
				path := string(x.Path)
				if c.wire != nil {
					path = string(c.wire)
				}
				m.text(1, string(c.id))
				m.text(2, string(x.Method))
				for _, h := range joined(x) {
					if !b.told || h[0] != partialBody {
						m.pair(3, h[0], h[1])
					}
				}
				if b.told {
					m.pair(3, partialBody, strconv.FormatBool(b.cut))
				}
				m.text(4, path)
				m.text(5, string(c.host()))
				m.text(6, q.Scheme)
				m.number(9, uint64(len(b.bytes)))
				m.text(10, "HTTP/1.1") // what the service speaks with the client is nobody's matter
				if b.raw {
					m.text(12, string(b.bytes))
				} else {
					m.text(11, strings.ToValidUTF8(string(b.bytes), "!")) // as Envoy has it
				}
			})
		})
	})
	return m
}

// joined are the headers of a request that may be told, in lower case, those of one name as one, as Envoy has them.
func joined(x *http1.Request) (out [][2]string) {
	at := map[string]int{}
	for i := range x.Len() {
		f := x.Field(i)
		low := strings.ToLower(string(f.Name))
		if !passable(low) {
			continue
		}
		if n, ok := at[low]; ok {
			sep := ","
			if low == "cookie" { // whose values have commas in them
				sep = "; "
			}
			out[n][1] += sep + string(f.Value)
			continue
		}
		at[low] = len(out)
		out = append(out, [2]string{low, string(f.Value)})
	}
	return out
}

// checkAnswer is a CheckResponse.
type checkAnswer struct {
	code    uint64 // of gRPC; 0 lets the call pass
	status  uint64 // of the answer to the client; 0 is not said
	body    string
	denied  bool
	failed  bool // it says that it failed
	queries bool // it wants the query changed
	headers []option
	remove  []string
	client  []option // headers of the service's answer
}

// option is a header that is set, or added.
type option struct {
	name, value string
	add         bool
}

var errAnswer = errors.New("what it answers is no message of the protocol")

// eachField calls f for the fields of a message: with n for a number, b for what has a length.
func eachField(m []byte, f func(field protowire.Number, n uint64, b []byte) error) error {
	for len(m) > 0 {
		num, typ, k := protowire.ConsumeTag(m)
		if k < 0 {
			return errAnswer
		}
		m = m[k:]
		var n uint64
		var b []byte
		switch typ {
		case protowire.VarintType:
			n, k = protowire.ConsumeVarint(m)
		case protowire.BytesType:
			b, k = protowire.ConsumeBytes(m)
			b = slices.Clip(b)
		default:
			k = protowire.ConsumeFieldValue(num, typ, m)
		}
		if k < 0 {
			return errAnswer
		}
		m = m[k:]
		if typ != protowire.VarintType && typ != protowire.BytesType {
			continue
		}
		if err := f(num, n, b); err != nil {
			return err
		}
	}
	return nil
}

// readNumber reads the number that is the first field of a message, if it is there.
func readNumber(m []byte, to *uint64) error {
	return eachField(m, func(field protowire.Number, n uint64, _ []byte) error {
		if field == 1 {
			*to = n
		}
		return nil
	})
}

func (o *option) read(m []byte) error {
	return eachField(m, func(field protowire.Number, _ uint64, b []byte) error {
		switch field {
		case 1:
			return o.header(b)
		case 2: // append
			var yes uint64
			err := readNumber(b, &yes)
			o.add = yes != 0
			return err
		}
		return nil
	})
}

// header reads a HeaderValue.
func (o *option) header(m []byte) error {
	return eachField(m, func(field protowire.Number, _ uint64, b []byte) error {
		switch field {
		case 1:
			o.name = strings.ToLower(string(b))
		case 2, 3:
			o.value = string(b)
		}
		return nil
	})
}

func readOption(to *[]option, b []byte) error {
	var o option
	if err := o.read(b); err != nil {
		return err
	}
	if !httpguts.ValidHeaderFieldName(o.name) || !httpguts.ValidHeaderFieldValue(o.value) {
		return fmt.Errorf("it names the header %.40q, which cannot be, or with a value that cannot be", o.name)
	}
	*to = append(*to, o)
	return nil
}

func (a *checkAnswer) read(m []byte) error {
	var last protowire.Number // of the three answers only the last counts
	return eachField(m, func(field protowire.Number, _ uint64, b []byte) error {
		if (field == 2 || field == 3 || field == 5) && field != last {
			*a, last = checkAnswer{code: a.code}, field
		}
		switch field {
		case 1: // status
			return readNumber(b, &a.code)
		case 2: // denied_response
			a.denied = true
			return eachField(b, func(field protowire.Number, _ uint64, b []byte) error {
				switch field {
				case 1:
					return readNumber(b, &a.status)
				case 2:
					return readOption(&a.headers, b)
				case 3:
					a.body = string(b)
				}
				return nil
			})
		case 3: // ok_response
			return eachField(b, func(field protowire.Number, _ uint64, b []byte) error {
				switch field {
				case 2:
					return readOption(&a.headers, b)
				case 5:
					a.remove = append(a.remove, strings.ToLower(string(b)))
				case 6:
					return readOption(&a.client, b)
				case 7, 8:
					a.queries = true
				}
				return nil
			})
		case 5: // error_response
			a.failed = true
		}
		return nil
	})
}

// askGRPC has a service decide by Envoy's ext_authz.
func (p *Proxy) askGRPC(ctx context.Context, v *verdict, e *policy.Provider, check []byte) (result string, err error) {
	got, err := p.callGRPC(ctx, e.Service, e.Port, checkMethod, e.Timeout, check)
	if err != nil {
		return "", err
	}
	var a checkAnswer
	if err := a.read(got); err != nil {
		return "", err
	}
	return v.answer(e, &a)
}

// callGRPC makes a unary call of a service of the mesh, and returns the message that it answers. within is said to it; ctx is what ends the call.
func (p *Proxy) callGRPC(ctx context.Context, svc mesh.ServiceName, port uint16, method string, within time.Duration, m []byte) ([]byte, error) {
	body := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m)))
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://%s:%d%s", svc.FQDN(), port, method), bytes.NewReader(append(body, m...)))
	if err != nil {
		return nil, err
	}
	r.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {"meshagent"}, "Grpc-Timeout": {fmt.Sprintf("%dm", within.Milliseconds())}}
	resp, err := p.asksGRPC.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(io.LimitReader(resp.Body, maxCheckAnswer+1))
	if err != nil {
		return nil, err
	}
	status := resp.Trailer.Get("Grpc-Status")
	if status == "" {
		status = resp.Header.Get("Grpc-Status")
	}
	switch {
	case resp.StatusCode != http.StatusOK || status != "0":
		return nil, fmt.Errorf("it answers with status %d, grpc-status %.10q", resp.StatusCode, status)
	case len(got) < 5 || got[0] != 0 || uint64(binary.BigEndian.Uint32(got[1:])) != uint64(len(got)-5):
		return nil, errAnswer
	}
	return got[5:], nil
}

// answer makes an answer the verdict.
func (v *verdict) answer(e *policy.Provider, a *checkAnswer) (result string, err error) {
	switch {
	case a.failed:
		return "", errors.New("it says that it failed")
	case a.code == 0 && a.denied:
		return "", errors.New("it allows and denies")
	case a.code == 0 && a.queries:
		return "", errors.New("it wants the query changed, which is not done here")
	case len(a.body) > maxRefusal:
		return "", fmt.Errorf("its answer is longer than %d bytes", maxRefusal)
	case a.code != 0:
		status := int(min(a.status, 999))
		if a.status == 0 {
			status = http.StatusForbidden
		}
		if status < 300 || status > 599 {
			return "", fmt.Errorf("it denies with status %d", status)
		}
		v.deny(e, status)
		v.body, v.fields = []byte(a.body), pairsOf(a.headers, nil)
		return "denied", nil
	}
	for _, name := range a.remove {
		if passable(name) {
			v.request = append(v.request, http1.Pair{Name: name})
		}
	}
	v.request = append(v.request, pairsOf(a.headers, func(o option) bool { return !o.add })...)
	v.adds = append(v.adds, pairsOf(a.headers, func(o option) bool { return o.add })...)
	v.fields = append(v.fields, pairsOf(a.client, nil)...)
	v.reroute = v.reroute || e.Reroutes
	return "allowed", nil
}

// pairsOf are those options that may be passed on and are wanted; nil wants all.
func pairsOf(os []option, wanted func(option) bool) (out []http1.Pair) {
	for _, o := range os {
		if passable(o.name) && (wanted == nil || wanted(o)) {
			out = append(out, http1.Pair{Name: o.name, Value: []byte(o.value)})
		}
	}
	return out
}
