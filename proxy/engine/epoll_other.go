//go:build !linux

package engine

import (
	"context"
	"net"
)

// poller is only on Linux.
type poller struct{}

func (*poller) wake() {}

func (*loop) runPoller() {}

func (*Engine) openPollers() error { return nil }

func (l *loop) socket(c *conn, nc net.Conn, _ int, _ bool) socket { return newNetSocket(l, c, nc) }

func closeFD(int) {}

func (e *Engine) serve(ctx context.Context, ln net.Listener, tag any) error {
	return e.serveNet(ctx, ln, tag)
}

// pipe is only on Linux.
type pipe struct{}

func (*conn) splice(*conn) (int, error) { return 0, nil }

func (*conn) drainPipe() bool { return true }

func (*conn) dropPipe() {}

// listener is only on Linux.
type listener struct{}

func (*loop) listen(*listener) {}

func (*loop) serve(bool) {}
