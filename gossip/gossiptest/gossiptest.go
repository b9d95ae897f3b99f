// Package gossiptest is a network in memory for memberlist: it works in virtual time (testing/synctest), and can be cut, slowed
// and made to lose packets, the same way each time for a seed. Imported by tests alone.
package gossiptest

import (
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Network connects Transports by their address. Its methods are safe for concurrent use.
type Network struct {
	Latency time.Duration // of a packet; set before use

	mu      sync.Mutex // guards what follows
	nodes   map[string]*Transport
	group   map[string]int // nodes of different groups do not reach each other
	loss    float64
	rnd     *rand.Rand
	packets uint64
	bytes   uint64
}

// New returns a network whose losses follow from the seed.
func New(seed uint64) *Network {
	return &Network{Latency: time.Millisecond, nodes: map[string]*Transport{}, group: map[string]int{}, rnd: rand.New(rand.NewPCG(seed, 0))}
}

// Partition puts nodes, by address, into groups; those not named are in group 0.
func (n *Network) Partition(group map[string]int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.group = group
}

// Lose makes a share of the packets vanish.
func (n *Network) Lose(share float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = share
}

// Sent returns how many packets and bytes were sent so far.
func (n *Network) Sent() (packets, bytes uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.packets, n.bytes
}

// route returns the receiver of something from a to b, nil when it does not get there.
func (n *Network) route(a, b string, size int, packet bool) *Transport {
	n.mu.Lock()
	defer n.mu.Unlock()
	if packet {
		n.packets++
		n.bytes += uint64(size)
		if n.loss > 0 && n.rnd.Float64() < n.loss {
			return nil
		}
	}
	if n.group[a] != n.group[b] {
		return nil
	}
	return n.nodes[b]
}

// Transport is one node's end: a memberlist.Transport.
type Transport struct {
	net     *Network
	addr    string
	ip      net.IP
	port    int
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
}

// Transport returns the end of a node at ip:port.
func (n *Network) Transport(addr string) *Transport {
	a, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		panic(err) // a test's constant
	}
	t := &Transport{net: n, addr: addr, ip: a.IP, port: a.Port, packets: make(chan *memberlist.Packet, 512),
		streams: make(chan net.Conn, 64), done: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[addr] = t
	return t
}

// FinalAdvertiseAddr returns the node's address.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) { return t.ip, t.port, nil }

// WriteTo sends a packet, which arrives after the network's latency or never.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	now := time.Now()
	to := t.net.route(t.addr, addr, len(b), true)
	if to == nil {
		return now, nil
	}
	p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: &net.UDPAddr{IP: t.ip, Port: t.port}}
	time.AfterFunc(t.net.Latency, func() {
		p.Timestamp = time.Now()
		select {
		case to.packets <- p:
		default: // the receiver's buffer is full: lost, as UDP does
		}
	})
	return now, nil
}

// PacketCh is where packets arrive.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// DialTimeout connects a stream.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	to := t.net.route(t.addr, addr, 0, false)
	if to == nil {
		time.Sleep(timeout)
		return nil, errors.New("unreachable")
	}
	a, b := net.Pipe()
	select {
	case to.streams <- named{b, &net.TCPAddr{IP: t.ip, Port: t.port}}:
		return named{a, &net.TCPAddr{IP: to.ip, Port: to.port}}, nil
	case <-to.done:
		return nil, errors.New("refused")
	}
}

type named struct {
	net.Conn
	remote net.Addr
}

func (n named) RemoteAddr() net.Addr { return n.remote }

// StreamCh is where streams arrive.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown takes the node off the network.
func (t *Transport) Shutdown() error {
	t.once.Do(func() {
		close(t.done)
		t.net.mu.Lock()
		defer t.net.mu.Unlock()
		if t.net.nodes[t.addr] == t {
			delete(t.net.nodes, t.addr)
		}
	})
	return nil
}
