package http2

// Kind is what an event says.
type Kind uint8

// The kinds of events.
const (
	EventNone     Kind = iota // there is nothing more without more bytes
	EventRequest              // a request begins: Head; End if it has no body
	EventResponse             // the final head of a response: Head; End if it has no body
	EventInterim              // a 1xx response: Head; another follows
	EventData                 // Data, which the caller has to Take; End with the last piece, which may be empty
	EventTrailers             // Head; they end the stream
	EventTooLarge             // a request begins whose head is over the limits: answer 431 and Close; End as in EventRequest
	// EventReset is that a stream ended before its time: Code, Err, Retry; the caller has still to Close it. A server may send NoError
	// behind a whole response: it does not want the rest of the request.
	EventReset
	EventRefused  // a request that was malformed, or one too many, was reset: ID, Code, Err. There is no Stream
	EventWritable // the peer lets us send again: on Stream, or on all streams where it is nil
	EventSettings // the peer's settings came: Open may allow more, and windows may be larger
	EventGoAway   // the peer wants no more streams: Code. For each of ours that it will not look at an EventReset with Retry follows
	EventPong     // the answer to Ping: Ping
)

// Event is what Next found. Head and Data are good until Next is called again, for any Conn of the same Scratch.
type Event struct {
	Kind   Kind
	End    bool // nothing more comes on Stream
	Retry  bool // the peer did not look at the request: it may be sent again, whatever it is
	Code   Code // what was sent, by whom ever
	ID     uint32
	Stream *Stream
	Head   *Head
	Data   []byte // a part of what Next was given
	Ping   uint64
	Err    *Error // what the peer did wrong, if it did
}
