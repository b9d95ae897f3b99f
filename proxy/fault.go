package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// fault is an answer of the proxy's own: why a request gets none from its service.
type fault struct {
	code   int // HTTP status
	grpc   int // gRPC status code
	flag   string
	reason string
}

func (f *fault) Error() string { return f.flag + " " + f.reason }

// The proxy's own answers. docs/proxy.md lists them; a test holds the two together.
var (
	errDenied    = &fault{403, 7, "RBAC", "access denied"}
	errNoCaller  = &fault{403, 7, "RBAC", "caller unknown"}
	errNotReady  = &fault{503, 14, "NC", "no policy has been read yet"}
	errInvalid   = &fault{503, 14, "NC", "policy cannot be understood"}
	errNoSubset  = &fault{503, 14, "NC", "no such subset"}
	errNoRoute   = &fault{404, 12, "NR", "no route"}
	errNone      = &fault{503, 14, "UH", "no healthy instance"}
	errNoCert    = &fault{503, 14, "UF", "no certificate for the caller"}
	errConnect   = &fault{503, 14, "UF", "connection failed"}
	errReset     = &fault{503, 14, "UC", "connection lost"}
	errRefused   = &fault{503, 14, "UR", "refused by the instance's host"}
	errProtocol  = &fault{502, 14, "UPE", "not an answer of the protocol"}
	errOverflow  = &fault{503, 14, "UO", "too many calls at one time"}
	errTimeout   = &fault{504, 4, "UT", "timed out"}
	errAmbiguous = &fault{400, 13, "DPE", "ambiguous request"}
	errTooLarge  = &fault{431, 8, "DPE", "too many header fields"}
	errMethod    = &fault{405, 12, "DPE", "CONNECT is not served"}
	errUpgrade   = &fault{501, 12, "DPE", "the service has no upgrades"}
	errLoop      = &fault{508, 13, "LOOP", "the instance's address is one of the mesh's own"}
	errAborted   = &fault{503, 14, "FI", "fault injected"}
	errEnding    = &fault{503, 14, "UC", "the agent ends"}
	errClient    = &fault{499, 1, "DC", "caller went away"}
)

var ownAnswers = []*fault{errDenied, errNoCaller, errNotReady, errInvalid, errNoSubset, errNoRoute, errNone, errNoCert, errConnect, errReset,
	errRefused, errOverflow, errProtocol, errTimeout, errAmbiguous, errTooLarge, errMethod, errUpgrade, errLoop, errAborted, errEnding, errClient}

// Flags that an answer of the service may bear, too.
const (
	flagDelayed   = "DI"  // the request was held back as a rule's fault says
	flagExhausted = "URX" // all retries were used up
	flagOverflow  = "UO"  // the retry budget was used up
)

// asFault finds the answer for an error of a call.
func asFault(ctx context.Context, err error) *fault {
	if f, ok := errors.AsType[*fault](err); ok {
		return f
	}
	if f, ok := errors.AsType[*fault](context.Cause(ctx)); ok {
		return f // what ended the call: the policy, a time-out
	}
	if ctx.Err() != nil {
		return errClient
	}
	// net/http has no type for an answer that it cannot read.
	_, lost := errors.AsType[net.Error](err)
	if text := err.Error(); strings.Contains(text, "headers exceeded") || strings.Contains(text, "header list larger") ||
		strings.Contains(text, "connection broken") && !lost && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return errProtocol
	}
	return errReset
}

// fault finds the answer for an error of a call whose body may be what failed.
func (c *call) fault(ctx context.Context, err error) *fault {
	if c.body != nil && context.Cause(ctx) == nil {
		if f := c.body.fault(); f != nil {
			return f
		}
	}
	return asFault(ctx, err)
}

// faultOf returns the fault with which an agent answered; nil for an answer of an application, which cannot say one.
func faultOf(res *http.Response) *fault {
	e := res.Header.Get("Mesh-Error")
	for _, f := range ownAnswers {
		if e == f.Error() {
			return f
		}
	}
	return nil
}

// isGRPC reports whether the caller reads gRPC status codes. gRPC-Web reads those of HTTP.
func isGRPC(r *http.Request) bool {
	t, ok := strings.CutPrefix(r.Header.Get("Content-Type"), "application/grpc")
	return ok && (t == "" || t[0] == '+' || t[0] == ';')
}

// fail gives an answer of the proxy's own: with its reason in mesh-error, and for gRPC as a trailers-only status.
func (c *call) fail(f *fault) {
	c.flag(f.flag)
	h := c.w.Header()
	clear(h)
	h.Set("Mesh-Error", f.Error())
	if isGRPC(c.r) || f.code == 0 {
		h.Set("Content-Type", "application/grpc")
		h.Set("Grpc-Status", strconv.Itoa(f.grpc))
		h.Set("Grpc-Message", f.reason)
		c.grpc = h.Get("Grpc-Status")
		c.WriteHeader(http.StatusOK)
		return
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	c.WriteHeader(f.code)
	if c.r.Method != http.MethodHead {
		io.WriteString(c, "mesh: "+f.reason+"\n") // a status that has no body, of an injected fault, drops it
	}
}

// grpcCode maps a status of HTTP to one of gRPC, as gRPC's "HTTP to gRPC Status Code Mapping" has it.
func grpcCode(status int) int {
	switch status {
	case http.StatusBadRequest:
		return 13
	case http.StatusUnauthorized:
		return 16
	case http.StatusForbidden:
		return 7
	case http.StatusNotFound:
		return 12
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return 14
	}
	return 2
}
