package http2

import "fmt"

// Code is an error code of RFC 9113, section 7.
type Code uint32

// The codes.
const (
	NoError Code = iota
	ProtocolError
	InternalError
	FlowControlError
	SettingsTimeout
	StreamClosed
	FrameSizeError
	RefusedStream // the stream was not looked at: it may be tried again, whatever it is
	Cancel
	CompressionError
	ConnectError
	EnhanceYourCalm
	InadequateSecurity
	HTTP11Required
)

func (c Code) String() string {
	names := [...]string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
		"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY",
		"HTTP_1_1_REQUIRED"}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("code %d", uint32(c))
}

// Error is what a peer did wrong. Errors are constants: they do not hold bytes of the peer.
type Error struct {
	Code Code
	Text string
}

func (e *Error) Error() string { return "http2: " + e.Text + " (" + e.Code.String() + ")" }

// What ends a connection.
var (
	errPreface      = &Error{ProtocolError, "a connection must begin with the preface of HTTP/2"}
	errFirst        = &Error{ProtocolError, "the first frame must be SETTINGS"}
	errSize         = &Error{FrameSizeError, "a frame is longer than the 16384 bytes of our settings"}
	errLength       = &Error{FrameSizeError, "a frame has not the length that its type demands"}
	errZero         = &Error{ProtocolError, "a frame that belongs to a stream is on stream 0"}
	errNotZero      = &Error{ProtocolError, "a frame that belongs to the connection is on a stream"}
	errPadding      = &Error{ProtocolError, "the padding is longer than the frame"}
	errInterleaved  = &Error{ProtocolError, "only CONTINUATION of the same stream may follow HEADERS without END_HEADERS"}
	errContinuation = &Error{ProtocolError, "CONTINUATION must follow HEADERS without END_HEADERS"}
	errBlock        = &Error{EnhanceYourCalm, "a head is sent in too many bytes or frames"}
	errHPACK        = &Error{CompressionError, "a head cannot be decoded, or has far more fields than our settings allow"}
	errIdle         = &Error{ProtocolError, "a frame is on a stream that nobody opened"}
	errID           = &Error{ProtocolError, "a stream must be opened by a client, with an odd id that is higher than all before"}
	errClosed       = &Error{StreamClosed, "HEADERS is on a stream that has ended"}
	errPush         = &Error{ProtocolError, "PUSH_PROMISE is not allowed: we did not enable it"}
	errConnWindow   = &Error{FlowControlError, "more data came than the connection's window allows"}
	errConnCredit   = &Error{FlowControlError, "the connection's window became larger than 2^31-1"}
	errNoIncrement  = &Error{ProtocolError, "WINDOW_UPDATE must not be 0"}
	errAck          = &Error{ProtocolError, "SETTINGS were acknowledged that were not sent"}
	errSetPush      = &Error{ProtocolError, "SETTINGS_ENABLE_PUSH must be 0 or 1, and 0 from a server"}
	errSetWindow    = &Error{FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE must be at most 2^31-1, for each stream with what was added"}
	errSetFrame     = &Error{ProtocolError, "SETTINGS_MAX_FRAME_SIZE must be 16384 to 16777215"}
	errSetTunnels   = &Error{ProtocolError, "SETTINGS_ENABLE_CONNECT_PROTOCOL must be 0 or 1, and stay 1"}
	errGoAway       = &Error{ProtocolError, "the last stream of GOAWAY must not become higher"}
	errFlood        = &Error{EnhanceYourCalm, "too many resets, pings, settings or other frames that ask for work and do none"}
)

// What ends a stream, beside what is wrong with a head.
var (
	errStreamClosed = &Error{StreamClosed, "a frame is on a stream that its sender has ended"}
	errStreamWindow = &Error{FlowControlError, "more data came than the stream's window allows"}
	errStreamCredit = &Error{FlowControlError, "the stream's window became larger than 2^31-1"}
	errNoCredit     = &Error{ProtocolError, "WINDOW_UPDATE of a stream must not be 0"}
	errPriority     = &Error{ProtocolError, "a stream must not depend on itself"}
	errPrioritySize = &Error{FrameSizeError, "PRIORITY must have 5 bytes"}
	errTooMany      = &Error{RefusedStream, "more streams are open than our settings allow"}
	errBusy         = &Error{RefusedStream, "too many streams that were reset are not yet cleared away"}
	errGone         = &Error{RefusedStream, "the peer goes away and has not looked at this stream"}
	errBodyLong     = &Error{ProtocolError, "the body is longer than content-length says, or there where none may be"}
	errBodyShort    = &Error{ProtocolError, "the body is shorter than content-length says"}
	errNoHead       = &Error{ProtocolError, "DATA came before the head of the response"}
	errHeadSize     = &Error{EnhanceYourCalm, "the head or the trailers are larger than our settings allow"}
	errByPeer       = &Error{NoError, "the peer reset the stream"}
)

// What is wrong with a head that is malformed (RFC 9113, section 8).
var (
	faultName       = &Error{ProtocolError, "a field name must be a token in lower case"}
	faultValue      = &Error{ProtocolError, "a field value must not have control bytes, nor spaces at its ends"}
	faultDisguise   = &Error{ProtocolError, "a field that rules framing, routing or credentials is spelled with '_'"}
	faultHop        = &Error{ProtocolError, "fields of HTTP/1 connections are not allowed: connection, keep-alive, transfer-encoding, upgrade and the like"}
	faultTE         = &Error{ProtocolError, "te may only be trailers"}
	faultPseudo     = &Error{ProtocolError, "a pseudo field is not known, or not allowed here"}
	faultOrder      = &Error{ProtocolError, "pseudo fields must come before all others"}
	faultTwice      = &Error{ProtocolError, "a pseudo field must be there once"}
	faultMethod     = &Error{ProtocolError, ":method must be there, and a token"}
	faultScheme     = &Error{ProtocolError, ":scheme must be there, letters first"}
	faultPath       = &Error{ProtocolError, ":path must begin with '/' and have printable ASCII and no '#'; else '*' for OPTIONS"}
	faultHost       = &Error{ProtocolError, ":authority or host must be a name or an address, with or without a port"}
	faultHosts      = &Error{ProtocolError, "host must be there once"}
	faultNoHost     = &Error{ProtocolError, ":authority or host must be there"}
	faultAuthority  = &Error{ProtocolError, ":authority and host must be the same"}
	faultConnect    = &Error{ProtocolError, "CONNECT has :authority with a port, and neither :scheme, :path nor content-length"}
	faultExtended   = &Error{ProtocolError, ":protocol needs CONNECT, :scheme, :path and :authority, and that we allowed it"}
	faultLengths    = &Error{ProtocolError, "content-length must be there once"}
	faultLength     = &Error{ProtocolError, "content-length must be 1 to 18 digits and nothing else"}
	faultCredential = &Error{ProtocolError, "authorization must be there once"}
	faultStatus     = &Error{ProtocolError, ":status must be three digits, 100 or more and not 101"}
	faultInterim    = &Error{ProtocolError, "a 1xx response must not end the stream"}
	faultTrailer    = &Error{ProtocolError, "a trailer may not be a field that rules framing, routing, credentials or how the body is read"}
	faultTrailers   = &Error{ProtocolError, "trailers must end the stream"}
)

// What the caller cannot send.
var (
	ErrEnded   = &Error{InternalError, "the stream was reset or our side of it has ended"}
	ErrStreams = &Error{RefusedStream, "no more streams can be open at once: use another connection"}
	ErrGoAway  = &Error{RefusedStream, "no more streams can be opened on this connection: it is going away or has used all ids"}
	errRequest = &Error{InternalError, "a request to be sent is malformed: method, scheme, authority, path or protocol"}
	errTunnel  = &Error{InternalError, "the server does not allow extended CONNECT"}
	errField   = &Error{InternalError, "a field to be sent must have a token as name, no control bytes, and not rule framing or connections"}
	errStatus  = &Error{InternalError, "a status to be sent must be 100 to 999 and not 101, once not interim, and interim must not end the stream"}
	errExcess  = &Error{InternalError, "the body to be sent is longer than its content-length, or there where none may be"}
	errMissing = &Error{InternalError, "the body to be sent is shorter than its content-length"}
)
