package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// attempts sends one request to instance after instance, as the retry policy allows. It is a RoundTripper for one request.
type attempts struct {
	call  *call
	snap  *mesh.Snapshot
	m     *policy.Model
	split *policy.Split
	retry *policy.Retry
	q     *policy.Request
}

// RoundTrip tries until there is an answer that is not to be retried, attempts are used up, or the context ends.
func (a *attempts) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := newReplay(r)
	if err != nil {
		return nil, err
	}
	tried := map[*mesh.Instance]bool{}
	p := a.call.p
	for n := 0; ; n++ {
		in, end, err := p.choose(a.snap, a.m, a.split, tried)
		if err != nil {
			return nil, err
		}
		tried[in] = true
		a.call.in, a.call.dst = in, in.Identity(a.snap.TrustDomain)
		a.call.attempts++
		res, err := a.try(r, in, body)
		end(err == nil && res.StatusCode < 500 || r.Context().Err() != nil, errors.Is(err, errConnect))
		if n >= a.retry.Attempts || r.Context().Err() != nil || !a.again(r, res, err, body) {
			if err != nil && n > 0 && n >= a.retry.Attempts && r.Context().Err() == nil {
				f := *asFault(r.Context(), err)
				f.flag += ",URX"
				err = &f
			}
			return res, err
		}
		if res != nil {
			res.Body.Close()
		}
		if err := a.pause(r.Context(), n); err != nil {
			return nil, err
		}
	}
}

// try sends the request to one instance, for at most the time of one try.
func (a *attempts) try(r *http.Request, in *mesh.Instance, body *replay) (*http.Response, error) {
	ctx, cancel := r.Context(), context.CancelFunc(func() {})
	if a.retry.PerTry > 0 {
		ctx, cancel = context.WithTimeout(ctx, a.retry.PerTry)
	}
	out := r.Clone(ctx)
	out.Body = body.reader()
	res, err := a.call.p.send(out, a.snap, a.call, in, a.q, a.connectTimeout())
	if err != nil {
		cancel()
		if ctx.Err() != nil && r.Context().Err() == nil {
			err = errTimeout
		}
		return nil, err
	}
	res.Body = &bodyCancel{res.Body, cancel}
	return res, nil
}

// bodyCancel frees the context of a try when its answer has been read.
type bodyCancel struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *bodyCancel) Close() error { defer b.cancel(); return b.ReadCloser.Close() }

// Write lets a switched protocol (101) write to the application.
func (b *bodyCancel) Write(p []byte) (int, error) {
	if w, ok := b.ReadCloser.(io.Writer); ok {
		return w.Write(p)
	}
	return 0, errors.ErrUnsupported
}

func (a *attempts) connectTimeout() time.Duration {
	dest := a.m.Service(a.split.Service).Destination
	t := dest.Traffic.ConnectTimeout
	if s := dest.Subsets[a.split.Subset]; s != nil {
		t = s.Traffic.ConnectTimeout
	}
	if t <= 0 {
		t = dialTimeout
	}
	return t
}

// pause waits between tries: a random part of base doubled with each (Envoy's, base 25 ms).
func (a *attempts) pause(ctx context.Context, n int) error {
	base := a.retry.Backoff
	if base <= 0 {
		base = 25 * time.Millisecond
	}
	t := time.NewTimer(rand.N(base<<min(n, 5)) + 1)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// again reports whether the outcome of a try is one to try again, and the request can be sent again.
func (a *attempts) again(r *http.Request, res *http.Response, err error, body *replay) bool {
	on := a.retry.On
	if err != nil {
		switch {
		case errors.Is(err, errConnect): // nothing was sent
			return on&(policy.OnConnectFailure|policy.On5xx|policy.OnGatewayError|policy.OnReset|policy.OnResetBeforeRequest) != 0 && body.fresh()
		case errors.Is(err, errDenied), errors.Is(err, errNone), errors.Is(err, errNoSubset), errors.Is(err, errUpgrade):
			return false
		case errors.Is(err, errTimeout):
			return on&(policy.On5xx|policy.OnGatewayError|policy.OnReset) != 0 && body.whole
		}
		if refusedStream(err) && on&(policy.OnRefusedStream|policy.On5xx|policy.OnReset) != 0 {
			return body.fresh()
		}
		// The connection was lost before an answer. Reading again is safe by definition (RFC 9110, section 9.2.1).
		return body.whole && (on&(policy.OnReset|policy.On5xx|policy.OnGatewayError) != 0 || on != 0 && safeMethod(r.Method))
	}
	if !body.whole {
		return false
	}
	c := res.StatusCode
	switch {
	case on&policy.On5xx != 0 && c >= 500,
		on&policy.OnGatewayError != 0 && c >= 502 && c <= 504,
		on&policy.OnRetriable4xx != 0 && c == http.StatusConflict,
		on&policy.OnRetriableStatusCodes != 0 && slices.Contains(a.retry.Codes, c):
		return true
	}
	switch res.Header.Get("Grpc-Status") { // there already when the answer is trailers-only
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

func safeMethod(m string) bool {
	return m == http.MethodGet || m == http.MethodHead || m == http.MethodOptions || m == http.MethodTrace
}

// replay is a request's body that can be sent again: whole when all of it is held, else only as long as nobody has read it.
type replay struct {
	whole bool
	data  []byte
	body  io.ReadCloser
	read  bool
}

// newReplay reads a body of known length up to maxReplay.
func newReplay(r *http.Request) (*replay, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return &replay{whole: true}, nil
	}
	if r.ContentLength < 0 || r.ContentLength > maxReplay {
		return &replay{body: r.Body}, nil
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, errClient
	}
	return &replay{whole: true, data: b, body: r.Body}, nil
}

func (b *replay) fresh() bool { return b.whole || !b.read }

func (b *replay) reader() io.ReadCloser {
	switch {
	case b.body == nil:
		return http.NoBody
	case b.whole:
		return io.NopCloser(bytes.NewReader(b.data))
	}
	return &onceBody{b}
}

// onceBody notes that the body was read; closing it leaves the body itself open for another try.
type onceBody struct{ b *replay }

func (o *onceBody) Read(p []byte) (int, error) { o.b.read = true; return o.b.body.Read(p) }
func (o *onceBody) Close() error               { return nil }
