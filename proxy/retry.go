package proxy

import (
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
	"github.com/meshagent/meshagent/proxy/lb"
	"github.com/meshagent/meshagent/proxy/route"
)

// attempts sends one request to instance after instance, as the retry policy allows. It is a RoundTripper for one request.
type attempts struct {
	call     *call
	t        *table
	split    *policy.Split
	retry    *policy.Retry
	q        *policy.Request // as it is sent
	deadline time.Time       // zero: none
	own      bool            // the deadline is the caller's, and says nothing of the instance
	last     context.Context // of the last try
}

// RoundTrip tries until there is an answer that is not to be tried again, attempts or budget are used up, or the context ends.
func (a *attempts) RoundTrip(r *http.Request) (*http.Response, error) {
	c := a.call
	c.body = newReplay(r.Body, c.r)
	d, err := c.p.destination(a.t, a.split, true)
	if err != nil {
		return nil, err
	}
	d.budget.call(time.Now())
	var tried []*lb.Endpoint
	give := func() {}
	for {
		in, e := d.pick(tried)
		tried = append(tried, e)
		c.in, c.dst = in, in.Identity(a.t.snap.TrustDomain)
		c.attempts++
		res, err := a.try(r, in, e, d.connect)
		give()
		if r.Context().Err() != nil || !a.wanted(r, res, err) || !c.body.again() {
			return res, err
		}
		if c.attempts > a.retry.Attempts {
			if a.retry.Attempts > 0 {
				c.flag(flagExhausted)
			}
			return res, err
		}
		if !d.budget.take(time.Now()) {
			c.flag(flagOverflow)
			return res, err
		}
		give = d.budget.give
		c.p.metrics.retries.With(a.split.Service.String()).Inc()
		if res != nil {
			res.Body.Close()
		}
		if err := a.pause(r.Context()); err != nil {
			give()
			return nil, err
		}
	}
}

// verdict is why there is no answer of an application: err, or the fault with which the agent of the instance's node answered. A
// status would not say what happened.
func verdict(res *http.Response, err error) error {
	if err == nil {
		if f := faultOf(res); f != nil {
			return f
		}
	}
	return err
}

// outcome is what the answer says of the instance. An error status below 502 is the application's own business.
func (a *attempts) outcome(ctx context.Context, res *http.Response, err error) lb.Outcome {
	if ctx.Err() != nil && (context.Cause(ctx) != errTimeout || a.own) {
		return lb.Unknown
	}
	switch err := verdict(res, err); err {
	case nil:
		if res.StatusCode >= http.StatusBadGateway && res.StatusCode <= http.StatusGatewayTimeout {
			return lb.Failed
		}
		return lb.OK
	case errConnect, errNone:
		return lb.Unreachable
	case errReset, errTimeout, errProtocol, errNotReady:
		return lb.Failed
	}
	return lb.Unknown
}

// try sends the request to one instance. The time of one try ends with the head of the answer, the load that it is with the
// answer's end. Its error is a fault.
func (a *attempts) try(r *http.Request, in *mesh.Instance, e *lb.Endpoint, connect time.Duration) (*http.Response, error) {
	c := a.call
	ctx, cancel := context.WithCancelCause(r.Context())
	a.last = ctx
	if a.retry.PerTry > 0 {
		defer time.AfterFunc(a.retry.PerTry, func() { cancel(errTimeout) }).Stop()
	}
	out := r.Clone(context.WithValue(ctx, connectKey{}, connect))
	c.body.attach(out)
	if !a.deadline.IsZero() && out.Header.Get(route.GRPCTimeout) != "" {
		out.Header.Set(route.GRPCTimeout, route.FormatGRPCTimeout(time.Until(a.deadline)))
	}
	var res *http.Response
	var err error
	release := func() {}
	if in.Node == a.t.snap.Self {
		if release, err = c.p.permit(c, in, a.q, func() { cancel(errDenied) }); err == nil {
			out.Header.Set("X-Forwarded-Client-Cert", certHeader(c.src, c.dst))
			res, err = c.p.toApp(out, in)
		}
	} else {
		res, err = c.p.toNode(out, a.t.snap, c.src, in)
	}
	if err != nil {
		err = c.fault(ctx, err)
	}
	o := a.outcome(r.Context(), res, err)
	done := func() {
		cancel(nil)
		release()
		c.p.ended(a.split.Service, in, e, o)
	}
	if err != nil {
		done()
		return nil, err
	}
	return c.watch(ctx, res, done), nil
}

// watch returns the answer, so that how it ends is noted; done is called then, once.
func (c *call) watch(ctx context.Context, res *http.Response, done func()) *http.Response {
	if conn, ok := res.Body.(io.ReadWriteCloser); ok && res.StatusCode == http.StatusSwitchingProtocols {
		res.Body = switchedUntil(ctx, conn, done)
		return res
	}
	c.grpc = res.Header.Get("Grpc-Status") // there already when the answer is trailers-only
	res.Body = &answer{res.Body, c, ctx, res, sync.OnceFunc(done)}
	return res
}

// answer is the body of an answer.
type answer struct {
	io.ReadCloser
	call *call
	ctx  context.Context // of the try
	res  *http.Response
	done func()
}

func (b *answer) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == io.EOF:
		route.StripReserved(b.res.Trailer)
		if s := b.res.Trailer.Get("Grpc-Status"); s != "" {
			b.call.grpc = s
		}
	case err != nil:
		b.call.flag(b.call.fault(b.ctx, err).flag)
	}
	return n, err
}

func (b *answer) Close() error { defer b.done(); return b.ReadCloser.Close() }

// pause waits between tries: a random part of base, doubled with each (Envoy's, base 25 ms).
func (a *attempts) pause(ctx context.Context) error {
	base := a.retry.Backoff
	if base <= 0 {
		base = 25 * time.Millisecond
	}
	t := time.NewTimer(rand.N(base<<min(a.call.attempts-1, 5)) + 1)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return asFault(ctx, ctx.Err())
	}
}

// wanted reports whether the policy wants another try after this outcome.
func (a *attempts) wanted(r *http.Request, res *http.Response, err error) bool {
	on := a.retry.On
	switch err := verdict(res, err); err {
	case nil:
		return wantedStatus(a.retry, res)
	case errConnect, errNone, errNotReady: // nothing was sent to an application
		return on&(policy.OnConnectFailure|policy.On5xx|policy.OnGatewayError|policy.OnReset|policy.OnResetBeforeRequest) != 0
	case errRefused: // nothing was looked at
		return on&(policy.OnRefusedStream|policy.On5xx|policy.OnGatewayError|policy.OnReset) != 0
	case errTimeout:
		return on&(policy.On5xx|policy.OnGatewayError|policy.OnReset) != 0
	case errReset, errProtocol:
		// To ask again is safe where the method is (RFC 9110, section 9.2.1), if anything is to be retried at all.
		return on&(policy.On5xx|policy.OnGatewayError|policy.OnReset) != 0 || on != 0 && safe(r.Method)
	}
	return false
}

func wantedStatus(p *policy.Retry, res *http.Response) bool {
	on, s := p.On, res.StatusCode
	switch {
	case on&policy.On5xx != 0 && s >= 500,
		on&policy.OnGatewayError != 0 && s >= 502 && s <= 504,
		on&policy.OnRetriable4xx != 0 && s == http.StatusConflict,
		on&policy.OnRetriableStatusCodes != 0 && slices.Contains(p.Codes, s):
		return true
	}
	switch res.Header.Get("Grpc-Status") {
	case "1":
		return on&policy.OnGRPCCancelled != 0
	case "4":
		return on&policy.OnGRPCDeadlineExceeded != 0
	case "8":
		return on&policy.OnGRPCResourceExhausted != 0
	case "13":
		return on&policy.OnGRPCInternal != 0
	case "14":
		return on&policy.OnGRPCUnavailable != 0
	}
	return false
}

func safe(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions || method == http.MethodTrace
}
