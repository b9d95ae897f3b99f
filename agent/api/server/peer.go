package server

import (
	"context"
	"net"
)

// peer is who opened a connection to the unix socket, by the kernel's word at that moment.
type peer struct{ uid, gid uint32 }

type peerKey struct{}

// withPeer keeps who opened a connection of the unix socket in the context of its requests, where the system tells.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	if l, ok := c.(*limitedConn); ok {
		c = l.Conn
	}
	if u, ok := c.(*net.UnixConn); ok {
		if p, ok := peerOf(u); ok {
			return context.WithValue(ctx, peerKey{}, p)
		}
	}
	return ctx
}
