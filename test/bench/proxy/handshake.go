//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshagent/meshagent/proxy/http2"
)

// handshakes makes new connections of mutual TLS, as many as workers can, one after the other each. A connection counts when the
// server has said its first word of HTTP/2: it has checked the client's certificate then.
type handshakes struct {
	addr         netip.AddrPort
	tls          *tls.Config
	workers      int
	warm, window time.Duration
	sample       func()
}

func (h handshakes) run(ctx context.Context) (outcome, error) {
	lctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var n atomic.Int64
	var workers sync.WaitGroup
	for range h.workers {
		workers.Go(func() {
			for lctx.Err() == nil {
				if err := h.once(lctx); err != nil {
					cancel(fmt.Errorf("handshake: %w", err))
					return
				}
				n.Add(1)
			}
		})
	}
	var at [2]int64
	for i, d := range []time.Duration{h.warm, h.window} {
		select {
		case <-lctx.Done():
		case <-time.After(d):
		}
		h.sample()
		at[i] = n.Load()
	}
	err := context.Cause(lctx)
	cancel(nil)
	workers.Wait()
	return outcome{requests: at[1] - at[0]}, err
}

func (h handshakes) once(ctx context.Context) error {
	if ctx.Err() != nil {
		return nil
	}
	raw, err := net.DialTimeout("tcp", h.addr.String(), 5*time.Second)
	if err != nil {
		return err
	}
	defer raw.Close()
	raw.(*net.TCPConn).SetLinger(0) // leaves no port in TIME_WAIT
	raw.SetDeadline(time.Now().Add(5 * time.Second))
	c := tls.Client(raw, h.tls)
	if err := c.Handshake(); err != nil {
		return err
	}
	if s := c.ConnectionState(); s.DidResume || s.CipherSuite != tls.TLS_AES_128_GCM_SHA256 || s.NegotiatedProtocol != "h2" {
		return fmt.Errorf("%s with ALPN %q, resumed: %v", tls.CipherSuiteName(s.CipherSuite), s.NegotiatedProtocol, s.DidResume)
	}
	var x http2.Scratch
	if _, err := c.Write(http2.NewClient(http2.Options{}, &x).Out); err != nil {
		return err
	}
	var head [9]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return err
	}
	if head[3] != 4 {
		return errors.New("the server's first frame is not SETTINGS")
	}
	return nil
}
