package gossip

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/memberlist"
)

// memberlist trusts who has the key of gossip: an empty message, a padding that is longer than its message or a header that
// announces a million nodes end the process or take a hundred megabytes, and nothing outside can catch that. So all that
// arrives passes a guard first, which opens it as memberlist will and lets through what an agent sends. What is refused is
// counted and dropped; memberlist never sees it.

// The first byte of memberlist's messages.
const (
	msgPing = iota
	msgIndirectPing
	msgAck
	msgSuspect
	msgAlive
	msgDead
	msgPushPull
	msgCompound
	msgUser
	_ // compressed: nothing is, see settings
	msgEncrypted
	msgNack
	msgCRC
	msgError

	msgLabel = 244
)

// cipherVersion is the one form of encryption that is sent: AES-GCM without padding. Before the text come its number and a
// nonce, behind it a tag.
const (
	cipherVersion = 1
	nonceLen      = 12
	tagLen        = 16
)

const (
	// maxState is the largest message of a stream, as memberlist has it.
	maxState = 20 << 20
	// leastNode is what a node takes in a push/pull at least: the names of its fields alone are more.
	leastNode = 40
	// maxStreams and maxStreamsOf bound the streams that others have open here, all and of one address. One lasts for milliseconds
	// every 30 s and host; a stranger can hold one for memberlist's 10 s.
	maxStreams   = 256
	maxStreamsOf = 64
)

// guard is a Transport through which nothing comes that an agent does not send.
type guard struct {
	memberlist.Transport
	g       *Gossip
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
	loops   sync.WaitGroup

	mu   sync.Mutex // guards what follows
	open map[string]int
	all  int
}

func newGuard(g *Gossip, t memberlist.Transport) *guard {
	d := &guard{Transport: t, g: g, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), done: make(chan struct{}),
		open: map[string]int{}}
	d.loops.Go(d.vetPackets)
	d.loops.Go(d.admitStreams)
	return d
}

// network returns what memberlist would open itself.
func network(c *memberlist.Config) (memberlist.Transport, error) {
	return memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{c.BindAddr}, BindPort: c.BindPort,
		Logger: c.Logger})
}

func (d *guard) PacketCh() <-chan *memberlist.Packet { return d.packets }
func (d *guard) StreamCh() <-chan net.Conn           { return d.streams }

func (d *guard) Shutdown() error {
	err := d.Transport.Shutdown()
	d.once.Do(func() { close(d.done) })
	d.loops.Wait()
	return err
}

func (d *guard) vetPackets() {
	for {
		select {
		case <-d.done:
			return
		case p := <-d.Transport.PacketCh():
			if err := d.packet(p.Buf); err != nil {
				d.g.drop("packet", hostOf(p.From), err)
				continue
			}
			select {
			case d.packets <- p:
			case <-d.done:
				return
			}
		}
	}
}

func hostOf(a net.Addr) string {
	if host, _, err := net.SplitHostPort(a.String()); err == nil {
		return host
	}
	return a.String()
}

// packet returns why memberlist must not see a packet.
func (d *guard) packet(b []byte) error {
	b, label, err := memberlist.RemoveLabelHeaderFromPacket(b)
	if err != nil {
		return fmt.Errorf("%w: %w", errBad, err)
	}
	if label != d.g.cfg.Label {
		return fmt.Errorf("%w: packet of mesh %.40q", errBad, label)
	}
	plain, err := d.unseal(b, []byte(label))
	if err != nil {
		return err
	}
	if len(plain) >= 5 && plain[0] == msgCRC {
		plain = plain[5:]
	}
	return checkMessage(plain, true)
}

func checkMessage(b []byte, compound bool) error {
	if len(b) == 0 {
		return fmt.Errorf("%w: empty message", errBad)
	}
	switch b[0] {
	case msgPing, msgIndirectPing, msgAck, msgNack, msgSuspect, msgAlive, msgDead, msgUser:
		return nil
	case msgCompound:
		if compound {
			return checkParts(b[1:])
		}
	}
	return fmt.Errorf("%w: message of type %d in a packet", errBad, b[0])
}

// checkParts goes through a compound: how many, their lengths of two bytes each, and they.
func checkParts(b []byte) error {
	if len(b) == 0 || len(b) < 1+2*int(b[0]) {
		return fmt.Errorf("%w: compound is cut off", errBad)
	}
	lengths, rest := b[1:1+2*int(b[0])], b[1+2*int(b[0]):]
	for ; len(lengths) > 0; lengths = lengths[2:] {
		n := int(binary.BigEndian.Uint16(lengths))
		if n > len(rest) {
			return fmt.Errorf("%w: compound is cut off", errBad)
		}
		if err := checkMessage(rest[:n], false); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// unseal opens what was encrypted with one of the keys.
func (d *guard) unseal(b, auth []byte) ([]byte, error) {
	if len(b) < 1+nonceLen+tagLen || b[0] != cipherVersion {
		return nil, fmt.Errorf("%w: not encrypted as this mesh does", errBad)
	}
	for _, key := range d.g.ring.GetKeys() {
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err // keys were checked
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return nil, err
		}
		if plain, err := aead.Open(nil, b[1:1+nonceLen], b[1+nonceLen:], auth); err == nil {
			return plain, nil
		}
	}
	return nil, fmt.Errorf("%w: encrypted with a key that this host does not have", errBad)
}

func (d *guard) admitStreams() {
	for {
		select {
		case <-d.done:
			return
		case c := <-d.Transport.StreamCh():
			host := hostOf(c.RemoteAddr())
			if !d.enter(host) {
				d.g.drop("streams", host, errTooMany)
				c.Close()
				continue
			}
			v := &vetted{Conn: c, guard: d, host: host, leave: sync.OnceFunc(func() { d.exit(host) })}
			select {
			case d.streams <- v:
			case <-d.done:
				v.Close()
				return
			}
		}
	}
}

var errTooMany = errors.New("too many streams are open")

func (d *guard) enter(host string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all >= maxStreams || d.open[host] >= maxStreamsOf {
		return false
	}
	d.all++
	d.open[host]++
	return true
}

func (d *guard) exit(host string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all--
	if d.open[host]--; d.open[host] == 0 {
		delete(d.open, host)
	}
}

// DialTimeout connects to another host, whose answer is vetted too.
func (d *guard) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	c, err := d.Transport.DialTimeout(addr, timeout)
	if err != nil {
		return nil, err
	}
	return &vetted{Conn: c, guard: d, host: hostOf(c.RemoteAddr()), dialed: true, leave: func() {}}, nil
}

// vetted is a stream that brings one message, which was looked at before its first byte is read.
type vetted struct {
	net.Conn
	guard  *guard
	host   string
	dialed bool // by this host: the label is not said again
	leave  func()
	msg    *bytes.Reader // of the message; nil before it was read
	err    error
}

func (v *vetted) Close() error {
	v.leave()
	return v.Conn.Close()
}

// Read reads from the message. memberlist reads from one goroutine, and has set a deadline.
func (v *vetted) Read(b []byte) (int, error) {
	if v.err == nil && v.msg == nil {
		var msg []byte
		msg, v.err = v.message()
		if errors.Is(v.err, errBad) {
			v.guard.g.drop("stream", v.host, v.err)
			v.err = io.EOF // no answer to who does not speak as an agent
		}
		v.msg = bytes.NewReader(msg)
	}
	if v.err != nil {
		return 0, v.err
	}
	return v.msg.Read(b)
}

// message reads the stream's message to its end: label, type, length, what is encrypted.
func (v *vetted) message() ([]byte, error) {
	var msg bytes.Buffer
	more := func(n int) ([]byte, error) {
		_, err := io.CopyN(&msg, v.Conn, int64(n))
		return msg.Bytes(), err
	}
	label := v.guard.g.cfg.Label
	head := 0
	if !v.dialed && label != "" {
		head = 2 + len(label)
		b, err := more(head)
		if err != nil {
			return nil, err
		}
		if b[0] != msgLabel || int(b[1]) != len(label) || string(b[2:]) != label {
			return nil, fmt.Errorf("%w: stream of another mesh", errBad)
		}
	}
	b, err := more(5)
	if err != nil {
		return nil, err
	}
	if b[head] != msgEncrypted {
		return nil, fmt.Errorf("%w: stream is not encrypted", errBad)
	}
	n := binary.BigEndian.Uint32(b[head+1:])
	if n > maxState {
		return nil, fmt.Errorf("%w: stream of %d bytes", errBad, n)
	}
	auth := append(bytes.Clone(b[head:head+5]), label...)
	if b, err = more(int(n)); err != nil {
		return nil, err
	}
	plain, err := v.guard.unseal(b[head+5:], auth)
	if err != nil {
		return nil, err
	}
	return b, checkStream(plain, v.dialed)
}

func checkStream(b []byte, dialed bool) error {
	if len(b) == 0 {
		return fmt.Errorf("%w: empty message", errBad)
	}
	switch {
	case b[0] == msgPushPull:
		var head struct {
			Nodes        int
			UserStateLen int
			Join         bool
		}
		if err := codec.NewDecoderBytes(b[1:], &codec.MsgpackHandle{}).Decode(&head); err != nil {
			return fmt.Errorf("%w: push/pull: %w", errBad, err)
		}
		if head.Nodes < 0 || head.Nodes > len(b)/leastNode || head.UserStateLen < 0 || head.UserStateLen > len(b) {
			return fmt.Errorf("%w: push/pull of %d bytes says that it has %d nodes and a state of %d bytes", errBad, len(b), head.Nodes, head.UserStateLen)
		}
		return nil
	case b[0] == msgPing && !dialed, (b[0] == msgAck || b[0] == msgError) && dialed:
		return nil
	}
	return fmt.Errorf("%w: message of type %d in a stream", errBad, b[0])
}
