package dnsserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// maxQuery bounds a question. One name has 255 bytes; the rest is EDNS0 with its padding.
const maxQuery = 2048

type datagram struct {
	buf [maxQuery]byte
	oob [64]byte // the address that the datagram came to, where the socket listens on all of them
}

var datagrams = sync.Pool{New: func() any { return new(datagram) }}

// serveUDP answers datagrams until ctx ends, and returns when all answers are out, which may take until the end of answers.
func (s *Server) serveUDP(ctx, answers context.Context, c *net.UDPConn) error {
	slots := make(chan struct{}, s.limits.udpInFlight)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		d := datagrams.Get().(*datagram)
		n, on, _, from, err := c.ReadMsgUDPAddrPort(d.buf[:], d.oob[:])
		if err != nil {
			datagrams.Put(d)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("dns: udp socket: %w", err)
			}
			s.logOnce("udp", netip.Addr{}, "dns datagram cannot be read", "error", err) // ICMP errors of earlier answers land here
			continue
		}
		select {
		case slots <- struct{}{}:
		default: // the client asks again
			datagrams.Put(d)
			s.met.dropped("busy")
			continue
		}
		wg.Go(func() {
			defer func() { <-slots; datagrams.Put(d) }()
			if out := s.handle(answers, d.buf[:n], from.Addr().Unmap(), true); out != nil {
				c.WriteMsgUDPAddrPort(out, replyFrom(d.oob[:on]), from) // who cannot be reached asks again
			}
		})
	}
}

// serveTCP accepts connections until the listener is closed, and returns when all are done.
func (s *Server) serveTCP(ctx, answers context.Context, ln *net.TCPListener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	open := &counts{per: map[netip.Addr]int{}}
	for {
		c, err := ln.AcceptTCP()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("dns: tcp listener: %w", err)
			}
			s.logOnce("accept", netip.Addr{}, "dns connection cannot be accepted", "error", err)
			pause(ctx, 50*time.Millisecond) // out of descriptors: do not spin
			continue
		}
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if !open.add(from, s.limits.tcpConns, s.limits.tcpPerSource) {
			s.met.dropped("connections")
			s.logOnce("connections", from, "dns connection refused: too many are open")
			c.Close()
			continue
		}
		s.met.conns.Add(1)
		wg.Go(func() {
			defer func() { open.remove(from); s.met.conns.Add(-1) }()
			s.serveConn(ctx, answers, c, from)
		})
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// counts counts open connections by source.
type counts struct {
	mu  sync.Mutex // guards all below
	all int
	per map[netip.Addr]int
}

func (c *counts) add(a netip.Addr, all, per int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all >= all || c.per[a] >= per {
		return false
	}
	c.all++
	c.per[a]++
	return true
}

func (c *counts) remove(a netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.per[a]--; c.per[a] == 0 {
		delete(c.per, a)
	}
}

// serveConn answers the questions of one connection as they get ready, in any order (RFC 7766 section 6.2.1.1). It closes
// the connection when nothing whole arrives within the idle time while no answer is owed, when an answer cannot be sent, or when ctx has ended
// and no answer is owed.
func (s *Server) serveConn(ctx, answers context.Context, c *net.TCPConn, from netip.Addr) {
	stop := context.AfterFunc(ctx, func() { c.CloseRead() })
	defer stop()
	defer c.Close()
	var (
		wg    sync.WaitGroup
		owed  atomic.Int32
		write sync.Mutex
		slots = make(chan struct{}, s.limits.tcpInFlight)
	)
	defer wg.Wait()
	for {
		pkt, err := s.readTCP(c, &owed)
		if err != nil {
			return
		}
		slots <- struct{}{} // frees within the limits of VIPs and upstreams
		owed.Add(1)
		wg.Go(func() {
			defer func() { owed.Add(-1); <-slots }()
			out := s.handle(answers, pkt, from, false)
			if out == nil {
				c.Close() // not DNS: the stream has no next question
				return
			}
			msg := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(out)), uint16(len(out)))
			write.Lock()
			defer write.Unlock()
			c.SetWriteDeadline(time.Now().Add(s.limits.tcpIdle))
			if _, err := c.Write(append(msg, out...)); err != nil {
				c.Close()
			}
		})
	}
}

// readTCP reads one question. The idle time is for the whole of it, so that a trickle does not hold a connection.
func (s *Server) readTCP(c net.Conn, owed *atomic.Int32) ([]byte, error) {
	var head [2]byte
	for {
		c.SetReadDeadline(time.Now().Add(s.limits.tcpIdle))
		n, err := io.ReadFull(c, head[:])
		if err == nil {
			break
		}
		if n > 0 || owed.Load() == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, err
		}
	}
	n := binary.BigEndian.Uint16(head[:])
	if n < headerLen || n > maxQuery {
		return nil, fmt.Errorf("a question of %d bytes", n)
	}
	pkt := make([]byte, n)
	_, err := io.ReadFull(c, pkt)
	return pkt, err
}
