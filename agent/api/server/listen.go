package server

import (
	"fmt"
	"net"
	"sync"

	"github.com/meshagent/meshagent/internal/unixsocket"
)

// ListenUnix opens the API's unix socket with mode 0660, as unixsocket.Listen does.
func ListenUnix(path string) (net.Listener, error) {
	ln, err := unixsocket.Listen(path, 0o660)
	if err != nil {
		return nil, fmt.Errorf("api socket: %w", err)
	}
	return ln, nil
}

// limited is a listener that closes connections over a limit at once.
type limited struct {
	net.Listener
	free chan struct{} // a token for each connection that may still come
}

func limit(ln net.Listener, n int) net.Listener {
	l := &limited{ln, make(chan struct{}, n)}
	for range n {
		l.free <- struct{}{}
	}
	return l
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case <-l.free:
			return &limitedConn{Conn: c, release: sync.OnceFunc(func() { l.free <- struct{}{} })}, nil
		default:
			c.Close()
		}
	}
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// CloseWrite lets net/http end an answer before a body that nobody reads, such as one over the limit.
func (c *limitedConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}
