package proxy

import (
	"net/http"
	"strings"

	"github.com/meshagent/meshagent/proxy/engine"
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
	errDenied      = &fault{403, 7, "RBAC", "access denied"}
	errToken       = &fault{401, 16, "RBAC", "invalid token"}
	errBody        = &fault{413, 8, "RBAC", "the body is more than who decides looks at"}
	errNoCaller    = &fault{403, 7, "RBAC", "caller unknown"}
	errNotReady    = &fault{503, 14, "NC", "no policy has been read yet"}
	errInvalid     = &fault{503, 14, "NC", "policy cannot be understood"}
	errNoSubset    = &fault{503, 14, "NC", "no such subset"}
	errNoRoute     = &fault{404, 12, "NR", "no route"}
	errHidden      = &fault{404, 12, "NR", "no such service for this caller"}
	errForeign     = &fault{421, 12, "NR", "not the host that was called"}
	errNoTLS       = &fault{400, 3, "DPE", "no TLS"}
	errMisdirected = &fault{421, 2, "NR", "this connection is for another host"}
	errNowhere     = &fault{500, 14, "NC", "the rule leads nowhere"}
	errNone        = &fault{503, 14, "UH", "no healthy instance"}
	errNoCert      = &fault{503, 14, "UF", "no certificate for the caller"}
	errConnect     = &fault{503, 14, "UF", "connection failed"}
	errReset       = &fault{503, 14, "UC", "connection lost"}
	errRefused     = &fault{503, 14, "UR", "refused by the instance's host"}
	errProtocol    = &fault{502, 14, "UPE", "not an answer of the protocol"}
	errLimited     = &fault{429, 8, "RL", "called too often"}
	errUncounted   = &fault{503, 14, "RLSE", "the service that counts calls does not answer"}
	errOverflow    = &fault{503, 14, "UO", "too many calls at one time"}
	errHeld        = &fault{503, 14, "UO", "too much waits for callers of the service"}
	errTimeout     = &fault{504, 4, "UT", "timed out"}
	errAmbiguous   = &fault{400, 13, "DPE", "ambiguous request"}
	errTooLarge    = &fault{431, 8, "DPE", "too many header fields"}
	errMethod      = &fault{405, 12, "DPE", "CONNECT is not served"}
	errUpgrade     = &fault{501, 12, "DPE", "the service has no upgrades"}
	errSlow        = &fault{408, 4, "SI", "the request comes too slowly"}
	errLoop        = &fault{508, 13, "LOOP", "the instance's address is one of the mesh's own"}
	errAborted     = &fault{503, 14, "FI", "fault injected"}
	errRevoked     = &fault{503, 14, "UC", "the instance or its host was revoked"}
	errEnding      = &fault{503, 14, "UC", "the agent ends"}
	errClient      = &fault{499, 1, "DC", "caller went away"}
)

var ownAnswers = []*fault{errToken, errDenied, errBody, errNoCaller, errNotReady, errInvalid, errNoSubset, errNoRoute, errHidden, errForeign, errMisdirected, errNoTLS, errNowhere, errNone, errNoCert, errConnect,
	errReset, errRefused, errLimited, errUncounted, errOverflow, errHeld, errProtocol, errTimeout, errAmbiguous, errTooLarge, errMethod, errUpgrade, errSlow, errLoop, errAborted,
	errRevoked, errEnding, errClient}

// Flags that an answer of the service may bear, too.
const (
	flagDelayed   = "DI"  // the request was held back as a rule's fault says
	flagExhausted = "URX" // all retries were used up
	flagOverflow  = "UO"  // the retry budget was used up
	flagOver      = "DT"  // a connection lasted as long as it may
)

// engineFault is the fault that the engine means by a flag. err is why there was no connection, status what the engine would answer.
func engineFault(why engine.Flag, status int, err error) *fault {
	switch why {
	case engine.UpstreamUnreachable:
		if f, ok := err.(*fault); ok { // of a dial of ours
			return f
		}
		return errConnect
	case engine.UpstreamClosed:
		return errReset
	case engine.UpstreamRefused:
		return errRefused
	case engine.UpstreamFull:
		return errOverflow
	case engine.UpstreamTimeout:
		return errTimeout
	case engine.UpstreamMalformed:
		return errProtocol
	case engine.ClientGone:
		return errClient
	case engine.ClientSlow:
		return errSlow
	}
	switch status {
	case http.StatusMethodNotAllowed:
		return errMethod
	case http.StatusRequestHeaderFieldsTooLarge:
		return errTooLarge
	}
	return errAmbiguous
}

// faultOf returns the fault that the field mesh-error of an agent's answer says; nil for none.
func faultOf(meshError []byte) *fault {
	flag, reason, ok := strings.Cut(text(meshError), " ")
	if !ok {
		return nil
	}
	for _, f := range ownAnswers {
		if flag == f.flag && reason == f.reason {
			return f
		}
	}
	return nil
}

// flags is a set of flags.
type flags uint32

// flagNames are the flags by their bits, in the order in which they are written.
var flagNames = []string{"DI", "RBAC", "NC", "NR", "UH", "UF", "UC", "UR", "UPE", "UO", "UT", "DPE", "SI", "LOOP", "FI", "DC", "URX", "DT", "RL", "RLSE"}

// add adds a flag; "" is none.
func (s *flags) add(flag string) {
	for i, n := range flagNames {
		if n == flag {
			*s |= 1 << i
		}
	}
}

// append appends the flags by comma, or "-" for none.
func (s flags) append(dst []byte) []byte {
	if s == 0 {
		return append(dst, '-')
	}
	first := true
	for i, n := range flagNames {
		if s>>i&1 == 0 {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		dst, first = append(dst, n...), false
	}
	return dst
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

// isGRPC reports whether who sends this Content-Type reads gRPC status codes. gRPC-Web reads those of HTTP.
func isGRPC(contentType []byte) bool {
	const grpc = "application/grpc"
	return len(contentType) >= len(grpc) && string(contentType[:len(grpc)]) == grpc &&
		(len(contentType) == len(grpc) || contentType[len(grpc)] == '+' || contentType[len(grpc)] == ';')
}
