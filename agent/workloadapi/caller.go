package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/meshagent/meshagent/systemd"
)

// process is the one that opened a connection.
type process struct {
	pid   int
	uid   uint32
	peer  func() (systemd.Peer, error) // as it is now; an error once it has ended
	close func()
}

// peerProcess asks the kernel. Where it does not say, the process is one that is nobody's; why is told when it calls.
func peerProcess(c net.Conn) process {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return unknown(errors.New("who calls is not known: the connection is no unix socket's"))
	}
	p, err := systemd.PeerProcess(u)
	if err != nil {
		return unknown(fmt.Errorf("who calls is not known: %w", err))
	}
	return process{p.PID, p.UID, p.Peer, p.Close}
}

func unknown(err error) process {
	return process{uid: nobody, peer: func() (systemd.Peer, error) { return systemd.Peer{}, err }, close: func() {}}
}

// nobody is no user's number (it is what chown(2) takes for "do not change").
const nobody = ^uint32(0)

// AuthType is for gRPC.
func (process) AuthType() string { return "peer of a unix socket" }

// GetCommonAuthInfo tells gRPC that what is said stays on the host.
func (process) GetCommonAuthInfo() credentials.CommonAuthInfo {
	return credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
}

// callerOf returns who opened the connection of a call.
func callerOf(ctx context.Context) process {
	if p, ok := peer.FromContext(ctx); ok {
		if c, ok := p.AuthInfo.(process); ok {
			return c
		}
	}
	return unknown(errors.New("who calls is not known"))
}

// handshaker asks who has connected, in place of a handshake.
type handshaker struct{ s *Server }

// ServerHandshake takes a connection, if there is room for one more of its user.
func (h handshaker) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p := h.s.process(c)
	if !h.s.conns.take(p.uid) {
		p.close()
		h.s.refusals.With("limit").Inc()
		return nil, nil, fmt.Errorf("too many connections: user %d may have %d, all of the host %d", p.uid, maxOfUser, maxOfAll)
	}
	return &conn{Conn: c, release: sync.OnceFunc(func() { h.s.conns.give(p.uid); p.close() })}, p, nil
}

// ClientHandshake is not for servers.
func (handshaker) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.ErrUnsupported
}

// Info is for gRPC.
func (handshaker) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

// Clone is for gRPC.
func (h handshaker) Clone() credentials.TransportCredentials { return h }

// OverrideServerName is for gRPC, of clients.
func (handshaker) OverrideServerName(string) error { return errors.ErrUnsupported }

// conn gives back what was taken for it.
type conn struct {
	net.Conn
	release func()
}

func (c *conn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// quota bounds how many of something each user has, and all have. Safe for concurrent use.
type quota struct {
	mu  sync.Mutex // guards what follows
	of  map[uint32]int
	all int
}

func newQuota() *quota { return &quota{of: map[uint32]int{}} }

func (q *quota) take(uid uint32) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.of[uid] >= maxOfUser || q.all >= maxOfAll {
		return false
	}
	q.of[uid]++
	q.all++
	return true
}

func (q *quota) give(uid uint32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all--
	if q.of[uid]--; q.of[uid] == 0 {
		delete(q.of, uid)
	}
}
