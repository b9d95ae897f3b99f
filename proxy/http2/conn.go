package http2

import (
	"encoding/binary"
	"iter"
)

// Conn is one end of a connection.
type Conn struct {
	// Out is what the caller has to write, in this order, and then takes away. While it holds much that the peer does not read, do not
	// call Next: its answers would add to it.
	Out []byte

	opts    Options
	scratch *Scratch
	client  bool
	err     *Error // the connection has ended with it

	// What the peer set.
	settled     bool // its first SETTINGS came
	unacked     int  // SETTINGS of ours
	peerWindow  int64
	peerStreams uint32
	peerTunnels bool

	// Flow control of the connection.
	sendWindow int64
	recvWindow int64
	taken      int64 // by the caller, and the peer does not know of it

	dec     decoder
	enc     encoder
	streams streams
	open    int // streams that have not ended; others only wait for Close
	closed  closed
	seen    uint32 // the highest stream that the peer opened
	last    uint32 // the highest of them that we looked at
	nextID  uint32 // of a stream that we open

	patience int
	owed     int   // WINDOW_UPDATE frames that our DATA is worth
	forgave  int64 // when time last gave patience back

	// Where we are in what comes in.
	preface int     // bytes of it that were read
	payload int     // of DATA, to come
	padding int     // to come behind it; or what is to be skipped
	end     bool    // the DATA ends its stream
	reading *Stream // whose DATA it is; nil when nobody wants it
	block   []byte  // of a head whose end has not come
	blockID uint32
	flags   byte // of its HEADERS
	parts   int  // its frames

	gone     bool   // the peer sent GOAWAY
	goneLast uint32 // what it said
	sweeping bool   // streams above are yet to be reported
	leaving  leaving
}

// leaving is how far we are in ending the connection without losing a request.
type leaving uint8

const (
	staying leaving = iota
	warned          // the peer was told, and may have streams on their way to us
	left            // later streams are not looked at
)

// NewServer begins the server's end of a connection. Out has our settings.
func NewServer(o Options, x *Scratch) *Conn { return newConn(o, x, false) }

// NewClient begins the client's end of a connection. Out has the preface and our settings.
func NewClient(o Options, x *Scratch) *Conn { return newConn(o, x, true) }

func newConn(o Options, x *Scratch, client bool) *Conn {
	o = o.orDefaults()
	c := &Conn{opts: o, scratch: x, client: client, unacked: 1, peerWindow: defaultWindow, peerStreams: 100, sendWindow: defaultWindow,
		recvWindow: int64(o.ConnWindow), dec: decoder{table{most: tableSize}}, enc: newEncoder(), nextID: 1, forgave: x.Now}
	c.patience = c.mostPatience()
	if client {
		c.Out = append(c.Out, Preface...)
		c.preface = len(Preface)
	}
	at := c.beginFrame()
	set := func(id uint16, v int) {
		c.Out = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(c.Out, id), uint32(v))
	}
	if client {
		set(setPush, 0)
	} else {
		set(setStreams, o.Streams)
		if o.Tunnels {
			set(setTunnels, 1)
		}
	}
	set(setWindow, o.StreamWindow)
	set(setHead, o.HeadBytes)
	set(setNoPriorities, 1)
	c.endFrame(at, typeSettings, 0, 0)
	c.appendWindow(0, o.ConnWindow-defaultWindow)
	return c
}

// Move gives the connection other memory to share: another goroutine takes it over.
func (c *Conn) Move(x *Scratch) { c.scratch = x }

// Len is how many streams wait for their Close.
func (c *Conn) Len() int { return c.streams.n }

// Streams gives all streams that wait for their Close. The one that was given may be closed meanwhile.
func (c *Conn) Streams() iter.Seq[*Stream] {
	return func(yield func(*Stream) bool) {
		for _, s := range c.streams.buckets {
			for s != nil {
				next := s.next
				if !yield(s) {
					return
				}
				s = next
			}
		}
	}
}

// InHead tells if a head has begun whose end has not come: give it a deadline, for it may hold twice HeadBytes of memory.
func (c *Conn) InHead() bool { return c.blockID != 0 }

// CanOpen tells if Open would open a stream now.
func (c *Conn) CanOpen() bool { return c.mayOpen() == nil }

// Most is how many streams of ours may be open at once, by our options and what the server's settings say so far.
func (c *Conn) Most() int { return int(min(uint32(c.opts.Streams), c.peerStreams)) }

// Tunnels tells if the server allows extended CONNECT.
func (c *Conn) Tunnels() bool { return c.peerTunnels }

// Next reads in, which goes on where the bytes end that were read before, up to the next event, and tells how many bytes it used. With
// EventNone more bytes are needed behind those that were not used, which are never more than a frame of 16 KiB. After an error, which is
// an *Error, write Out, which says why, and close the connection; all its streams have ended.
func (c *Conn) Next(in []byte) (ev Event, n int, err error) {
	if c.err != nil {
		return Event{}, 0, c.err
	}
	for {
		if c.sweeping && c.sweep(&ev) {
			return ev, n, nil
		}
		k, e := c.step(in[n:], &ev)
		if n += k; e != nil {
			c.fail(e)
			return Event{}, n, e
		}
		if ev.Kind != EventNone || k == 0 {
			return ev, n, nil
		}
	}
}

// Fail ends the connection at once: the peer is told why, Next gives the error from now on. Write Out and close.
func (c *Conn) Fail(code Code, text string) { c.fail(&Error{code, text}) }

func (c *Conn) fail(e *Error) {
	if c.err == nil {
		c.err = e
		c.appendGoAway(c.last, e.Code, e.Text)
	}
}

// Shutdown ends the connection without losing a request. A server warns first, and refuses new streams when the peer has read that,
// which Next notices, or at the second call. Done tells when nothing is left.
func (c *Conn) Shutdown() {
	switch {
	case c.err != nil || c.leaving == left:
	case c.client || c.leaving == warned:
		c.leave()
	default:
		c.leaving = warned
		c.appendGoAway(maxID, NoError, "")
		c.Ping(leavePing)
	}
}

const leavePing = 0x6c656176696e6721

func (c *Conn) leave() {
	c.leaving = left
	c.appendGoAway(c.last, NoError, "")
}

// Done tells if the connection can be closed after Shutdown: all streams were given back.
func (c *Conn) Done() bool { return c.leaving == left && c.streams.n == 0 }

// What a peer may do without doing any work. Patience ends a connection that asks more of it: whose client resets requests before they
// are answered, makes us reset them or sends heads over the limits, who sends pings, settings, priorities, unknown frames, empty DATA,
// interim responses, or windows of a few bytes. Work gives it back: data both ways, and streams that end as they should. So does time,
// for a peer that pings for days.
const (
	patience = 1000

	costFrame    = 1
	costSettings = 4 // windows of all streams change
	costReset    = 4 // a request was begun for nothing: 250 of them in a row

	earnData   = 1 // a frame, either way
	earnStream = 10

	fairData  = 1 << 10 // bytes of DATA that are work in any case
	perWindow = 2 << 10 // bytes of our DATA that are worth a WINDOW_UPDATE: Go sends two after 4 KiB, of stream and connection

	perPatience = 100 // milliseconds that give back one
	hasty       = 50  // milliseconds; who waited longer before the reset had a reason
)

// mostPatience is enough for all streams to be cancelled at once.
func (c *Conn) mostPatience() int { return max(patience, 2*costReset*c.opts.Streams) }

func (c *Conn) earn(n int) { c.patience = min(c.patience+n, c.mostPatience()) }

func (c *Conn) spend(n int) *Error {
	if d := (c.scratch.Now - c.forgave) / perPatience; d > 0 {
		c.forgave = c.scratch.Now
		c.earn(int(min(d, 1<<20)))
	}
	if c.patience -= n; c.patience < 0 {
		return errFlood
	}
	return nil
}

// check notices the end of a stream.
func (c *Conn) check(s *Stream) {
	if s.open && s.Ended() {
		s.open = false
		c.open--
		if !s.reset && !s.large {
			c.earn(earnStream)
		}
	}
}

// Close gives back a stream. If it has not ended it is reset with the code; what the caller has not taken of it counts as taken.
func (c *Conn) Close(s *Stream, code Code) {
	if c.reading == s { // what is to come of this frame is for nobody
		c.creditConn(c.payload)
		c.padding += c.payload
		c.payload, c.reading = 0, nil
	}
	if !s.Ended() {
		s.reset = true
		c.check(s)
		c.appendReset(s.ID, code)
	}
	c.creditConn(int(s.held))
	c.closed.add(s.ID, s.reset && !s.byPeer)
	c.streams.remove(s)
	c.scratch.release(s)
}

// Take tells that the caller has passed on n bytes of the data of s: the peer may send as much again.
func (c *Conn) Take(s *Stream, n int) {
	s.held -= int32(n)
	c.credit(s, n)
}

// credit lets the peer know from time to time.
func (c *Conn) credit(s *Stream, n int) {
	c.creditConn(n)
	s.taken += int32(n)
	if int(s.taken) >= c.opts.StreamWindow/2 && !s.recvEnd && !s.reset {
		c.appendWindow(s.ID, int(s.taken))
		s.recvWindow += s.taken
		s.taken = 0
	}
}

// creditConn lets the peer know of half a stream's window: where all other streams stall that must be enough for one to go on.
func (c *Conn) creditConn(n int) {
	c.taken += int64(n)
	if c.taken >= int64(c.opts.StreamWindow/2) {
		c.appendWindow(0, int(c.taken))
		c.recvWindow += c.taken
		c.taken = 0
	}
}
