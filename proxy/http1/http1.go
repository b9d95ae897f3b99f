// Package http1 reads and writes HTTP/1.0 and HTTP/1.1 messages for the data path. It does no input or output of its own: it looks
// at the bytes that the caller has read, and appends to the buffer that the caller will write. It knows nothing of the mesh.
//
// Imported by proxy. Guarantees:
//   - The verdict on a message depends on its bytes and never on how they were cut into reads; no byte is searched twice.
//   - Nothing is allocated once a Request, Response, Trailer or Body exists; what they give are slices of the caller's buffer.
//   - What two programs could read in two ways is refused, never repaired. Every error means that the end of the message is not
//     known: answer with its status and close the connection.
//   - What is written is framed by this package and reads back as the same message. Fields that belong to one connection never pass.
//
// Nothing here is safe for concurrent use, except Names.
package http1

// Limits that hold where Options does not say otherwise.
const (
	MaxHeadBytes    = 64 << 10 // of a head, from its first byte to its empty line
	MaxFields       = 100      // of a head or of trailers
	MaxTrailerBytes = 16 << 10 // the caller's buffer must be able to hold them in one piece
	maxExtension    = 16 << 10 // bytes of chunk extensions in one body: nobody needs them, so a flood of them is an attack
	maxOptions      = 32       // names in Connection: each is compared with each field
	maxHost         = 255 + 6  // a DNS name and a port
	mostFields      = 128      // that Options can ask for
)

// Options are the limits of a head. The zero value is MaxHeadBytes, MaxFields, and no underscores.
type Options struct {
	Bytes  int
	Fields int // at most 128
	// Underscores lets request fields pass whose name has an underscore. They are left out otherwise: many programs read X_User
	// as X-User, and would take a client's field for one of ours. In responses they always pass.
	Underscores bool
}

func (o Options) orDefaults() Options {
	if o.Bytes <= 0 {
		o.Bytes = MaxHeadBytes
	}
	o.Bytes = min(o.Bytes, 1<<24)
	if o.Fields <= 0 {
		o.Fields = MaxFields
	}
	o.Fields = min(o.Fields, mostFields)
	return o
}

// Proto is the version of a message. There are no others: 0.9 has no head, and what looks like 1.2 or 2.0 is refused.
type Proto uint8

// The versions.
const (
	HTTP10 Proto = iota
	HTTP11
)

// Kind is how the end of a body is found.
type Kind uint8

// The kinds of bodies.
const (
	None       Kind = iota // nothing follows the head
	Length                 // Framing.Length bytes, at least one
	Chunked                // chunks, then trailers
	UntilClose             // all bytes until the peer closes; responses only
	Tunnel                 // the connection is no longer HTTP: after 101, or after 2xx to CONNECT
)

// Framing is where a body ends.
type Framing struct {
	Kind Kind
	// Length is the Content-Length, -1 without one. With Kind None it is 0, or what the body would have had: HEAD and 304 tell.
	Length int64
}

// Asked is what must be remembered of a request to read the response to it, and to write that response to who asked.
type Asked struct {
	Proto     Proto
	KeepAlive bool // the client can go on with this connection
	Head      bool // the method is HEAD
	Connect   bool // the method is CONNECT
	Upgrade   bool // the request has an Upgrade that was sent on
}
