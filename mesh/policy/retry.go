package policy

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshagent/meshagent/mesh/policy/istio"
)

var retryNames = map[string]RetryOn{"5xx": On5xx, "gateway-error": OnGatewayError, "connect-failure": OnConnectFailure,
	"refused-stream": OnRefusedStream, "reset": OnReset, "reset-before-request": OnResetBeforeRequest, "retriable-4xx": OnRetriable4xx,
	"retriable-status-codes": OnRetriableStatusCodes, "cancelled": OnGRPCCancelled, "deadline-exceeded": OnGRPCDeadlineExceeded,
	"internal": OnGRPCInternal, "resource-exhausted": OnGRPCResourceExhausted, "unavailable": OnGRPCUnavailable, "envoy-ratelimited": OnRateLimited}

// retryRefused are conditions of Envoy that could never hold here, and why.
var retryRefused = map[string]string{
	"http3-post-connect-failure": "nothing in the mesh speaks HTTP/3",
	"retriable-headers":          "a VirtualService has no field that names the headers",
}

func (c *compiler) retries(path string, r *istio.Retries, a *Action) {
	if r == nil {
		return
	}
	if r.Attempts < 0 || r.Attempts > 100 {
		c.fail(path+".attempts", "", "%d is not from 0 to 100", r.Attempts)
	}
	a.Retry.Attempts, a.Retry.PerTry, a.Retry.Backoff = r.Attempts, r.PerTryTimeout, r.Backoff
	a.Retry.SameAgain = r.RetryIgnorePreviousHosts != nil && !*r.RetryIgnorePreviousHosts
	a.Retry.Elsewhere = r.RetryRemoteLocalities != nil && *r.RetryRemoteLocalities
	if r.RetryOn == "" {
		return
	}
	a.Retry.On, a.Retry.Codes = 0, nil
	for name := range strings.SplitSeq(r.RetryOn, ",") {
		name = strings.TrimSpace(name)
		if on, ok := retryNames[name]; ok {
			a.Retry.On |= on
			continue
		}
		if why := retryRefused[name]; why != "" {
			c.fail(path+".retryOn", "remove it", "%q can never hold: %s", name, why)
			continue
		}
		code, err := strconv.Atoi(name)
		if err != nil || code < 100 || code > 599 {
			c.fail(path+".retryOn", "it is a list of "+strings.Join(slices.Sorted(maps.Keys(retryNames)), ", ")+" and status codes", "%q is not a condition", name)
			continue
		}
		a.Retry.On |= OnRetriableStatusCodes
		a.Retry.Codes = append(a.Retry.Codes, code)
	}
	a.Retry.Trailers = a.Retry.On&ofGRPC != 0
}

// ofGRPC are the conditions that look at a status of gRPC.
const ofGRPC = OnGRPCCancelled | OnGRPCDeadlineExceeded | OnGRPCInternal | OnGRPCResourceExhausted | OnGRPCUnavailable

// share reads a percentage of requests, in millionths. Istio takes one that is absent for none; an integer is its older form.
func (c *compiler) share(path string, p *istio.Percent, old *int) uint32 {
	switch {
	case p != nil && old != nil:
		c.fail(path+".percent", "remove it, percentage says it", "is there beside percentage")
	case p == nil && old == nil:
		c.fail(path+".percentage", "write percentage: {value: 100} for all requests", "is missing: Istio injects nothing then")
		return 0
	case p == nil:
		if *old < 0 || *old > 100 {
			c.fail(path+".percent", "", "%d is not from 0 to 100", *old)
			return 0
		}
		return uint32(*old) * 10_000
	}
	return c.perMillion(path+".percentage.value", p.Value)
}

func (c *compiler) perMillion(path string, percent float64) uint32 {
	if !(percent >= 0 && percent <= 100) {
		c.fail(path, "", "%v is not from 0 to 100", percent)
		return 0
	}
	return uint32(math.Round(percent * 10_000))
}

func (c *compiler) fault(path string, f *istio.Fault) *Fault {
	if f == nil {
		return nil
	}
	out := &Fault{AbortGRPC: -1}
	if d := f.Delay; d != nil {
		out.DelayPerMillion, out.Delay = c.share(path+".delay", d.Percentage, d.Percent), d.FixedDelay
		if d.FixedDelay < time.Millisecond || d.FixedDelay > time.Hour {
			c.fail(path+".delay.fixedDelay", "", "%v is not from 1ms to 1h", d.FixedDelay)
		}
	}
	if a := f.Abort; a != nil {
		out.AbortPerMillion, out.AbortStatus = c.share(path+".abort", a.Percentage, nil), a.HTTPStatus
		switch {
		case (a.HTTPStatus != 0) == (a.GRPCStatus != ""):
			c.fail(path+".abort", "", "needs httpStatus or grpcStatus")
		case a.GRPCStatus != "":
			if out.AbortGRPC = slices.Index(grpcCodes, strings.ToUpper(a.GRPCStatus)); out.AbortGRPC < 0 {
				c.fail(path+".abort.grpcStatus", "write a name such as UNAVAILABLE", "%q is no status of gRPC", a.GRPCStatus)
			}
		case a.HTTPStatus < 200 || a.HTTPStatus > 599:
			c.fail(path+".abort.httpStatus", "", "%d is not from 200 to 599", a.HTTPStatus)
		}
	}
	return out
}
