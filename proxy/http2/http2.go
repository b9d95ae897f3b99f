// Package http2 is the HTTP/2 of the data path (RFC 9113), server and client side, as a state machine without input or output, without
// goroutines, locks or clocks: Conn.Next turns the bytes that the caller has read into events, and what is to be written is appended to
// Conn.Out, so that the frames of many streams share one write and one TLS record. It knows nothing of the mesh.
//
// Imported by proxy. Guarantees:
//   - The events depend on the bytes and never on how they were cut into reads, but for the pieces that DATA comes in.
//   - Nothing is allocated per stream, head or piece of data once a connection is warm.
//   - What RFC 9113 calls malformed never becomes a request or a response: the stream is reset. Nor can such a thing be sent.
//   - Memory is bounded by Options. Out grows by less than twice what was read, plus what the caller sends.
//   - A peer that makes work without doing any (resets, pings, settings, empty frames) is sent away: see the comment at patience.
//
// HPACK: the tables are of golang.org/x/net/http2/hpack, its code is not. The Decoder there makes strings (13 allocations for a browser's
// head), its Encoder wants strings, and what it decodes by Huffman has no bound but the input, and takes longer (see
// docs/performance/http2.md). So the static table and the Huffman code are read out of the library when the program starts; the dynamic
// table is a ring over one piece of memory. Both sides are fuzzed against the library. Huffman is read but not written: on the way between
// hosts of a site the bytes it saves cost more than they are worth.
//
// Priorities are ignored, as RFC 9113 allows, and we say so in our settings. There is no push.
//
// A Conn, its Streams and its Scratch are used by one goroutine at a time.
package http2

// Options are the limits of a connection. The zero value has those that the comments name.
type Options struct {
	// Streams is how many streams may be open at once: by the peer of a server, by us as a client, even if the server allows more.
	// 100; at most 1,000.
	Streams int
	// StreamWindow is how many bytes of a stream the caller may have to hold before it has taken them. 256 KiB; at least 64 KiB-1, for
	// a peer may send as much before it has read our settings.
	StreamWindow int
	// ConnWindow is the same for all streams of the connection together. Streams * StreamWindow, so that streams whose data nobody
	// takes, however many, never stop the others; at least 4 * StreamWindow.
	ConnWindow int
	// HeadBytes is the size of a head's fields after decoding, 32 bytes counted for each beside its own. 64 KiB.
	HeadBytes int
	// Fields is how many fields a head may have, pieces of Cookie counted one by one. 100.
	Fields int
	// Tunnels lets a client ask for extended CONNECT (RFC 8441), as WebSockets over HTTP/2 do.
	Tunnels bool
	// Underscores lets request fields pass whose name has an underscore. They are left out otherwise: many programs read x_user as
	// x-user, and would take a client's field for one of ours. In responses they always pass.
	Underscores bool
}

func (o Options) orDefaults() Options {
	or := func(v *int, least, most, def int) {
		if *v <= 0 {
			*v = def
		}
		*v = min(max(*v, least), most)
	}
	or(&o.Streams, 1, 1000, 100)
	or(&o.StreamWindow, defaultWindow, 1<<28, 256<<10)
	or(&o.ConnWindow, 4*o.StreamWindow, maxWindow, min(o.Streams*o.StreamWindow, maxWindow))
	or(&o.HeadBytes, 1<<10, 1<<20, 64<<10)
	or(&o.Fields, 1, 1000, 100)
	return o
}

// Scratch is memory that connections share which are used by one goroutine, as those of one event loop are. The zero value is ready.
type Scratch struct {
	// Now is the time in milliseconds, of any clock that does not go back. The caller sets it when convenient: it only tells a stream
	// that was reset at once from one that somebody waited for, and forgives old floods. Where it stays 0 only work forgives.
	Now int64

	head  Head
	free  []*Stream
	spare []byte // for a head in several frames
	low   []byte // for names in lower case
	ids   []uint8
}

const maxFree = 4096 // streams kept for the next ones

func (x *Scratch) stream() *Stream {
	n := len(x.free)
	if n == 0 {
		return new(Stream)
	}
	s := x.free[n-1]
	x.free = x.free[:n-1]
	return s
}

func (x *Scratch) release(s *Stream) {
	*s = Stream{}
	if len(x.free) < maxFree {
		x.free = append(x.free, s)
	}
}

// Preface is what a client's side of a connection begins with.
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const (
	frameHead     = 9
	maxFrame      = 16384 // the default, which we neither raise nor exceed: streams take turns, and it is about a TLS record
	defaultWindow = 65535
	maxWindow     = 1<<31 - 1
	maxID         = 1<<31 - 1
	tableSize     = 4096 // of HPACK, both ways
)

// Frame types.
const (
	typeData = iota
	typeHeaders
	typePriority
	typeReset
	typeSettings
	typePush
	typePing
	typeGoAway
	typeWindow
	typeContinuation
)

// Flags.
const (
	flagEnd        = 0x1 // of DATA and HEADERS: END_STREAM
	flagAck        = 0x1 // of SETTINGS and PING
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// Settings.
const (
	setTable        = 1
	setPush         = 2
	setStreams      = 3
	setWindow       = 4
	setFrame        = 5
	setHead         = 6
	setTunnels      = 8
	setNoPriorities = 9
)
