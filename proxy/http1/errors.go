package http1

// Error is what is wrong with a message. After any Error the connection must be closed, both ways: nobody knows where the next
// message begins. Errors are constants: they do not hold bytes of the message.
type Error struct {
	Status int // the answer: 400, 414, 417, 431, 501 or 505 to a bad request, 502 for a bad response, 500 when we would write nonsense
	Text   string
}

func (e *Error) Error() string { return "http1: " + e.Text }

// fault is one mistake, as it is answered when a request has it and when a response has it.
type fault struct{ request, response Error }

func (f *fault) of(response bool) error {
	if response {
		return &f.response
	}
	return &f.request
}

func newFault(status int, text string) *fault { return &fault{Error{status, text}, Error{502, text}} }

// What can be wrong with a head.
var (
	faultLine       = newFault(400, "a line must end with CR LF, not with LF alone")
	faultRequest    = newFault(400, "a request must begin with METHOD TARGET HTTP/1.1, one space between each")
	faultStatus     = newFault(400, "a response must begin with HTTP/1.1 and three digits, one space between them")
	faultVersion    = newFault(505, "the version must be HTTP/1.0 or HTTP/1.1")
	faultTarget     = newFault(400, "the target may only have printable ASCII and no '#'; escape other bytes with '%'")
	faultForm       = newFault(400, "the target must begin with '/'; else '*' for OPTIONS, host:port for CONNECT, or http://host/path")
	faultTargetSize = newFault(414, "the target makes the head too large")
	faultSize       = newFault(431, "the head is too large")
	faultCount      = newFault(431, "the head has too many fields")
	faultFold       = newFault(400, "a field must not be continued on a second line")
	faultName       = newFault(400, "a field must be a name of letters, digits or !#$%&'*+-.^_`|~, with ':' directly behind it")
	faultValue      = newFault(400, "a field's value must not have control bytes")
	faultDisguise   = newFault(400, "a field that rules framing or connections is spelled with '_'")
	faultNoHost     = newFault(400, "Host is missing")
	faultHosts      = newFault(400, "Host must be there once")
	faultHost       = newFault(400, "Host must be a name or an address, with or without a port")
	faultAuthority  = newFault(400, "Host must be the same as the host in the target")
	faultLengths    = newFault(400, "Content-Length must be there once")
	faultLength     = newFault(400, "Content-Length must be 1 to 18 digits and nothing else")
	faultBoth       = newFault(400, "Content-Length and Transfer-Encoding exclude each other")
	faultCodings    = newFault(400, "Transfer-Encoding must be there once, with chunked once and last")
	faultCoding     = newFault(501, "Transfer-Encoding may only be chunked")
	faultCoding10   = newFault(400, "HTTP/1.0 has no Transfer-Encoding")
	faultConnection = newFault(400, "Connection must be a list of names")
	faultOptions    = newFault(400, "Connection has too many names")
	faultExpect     = newFault(417, "Expect may only be 100-continue")
	faultCredential = newFault(400, "Authorization must be there once")
	faultConnect    = newFault(400, "CONNECT has no body: leave out Content-Length and Transfer-Encoding")
	faultSwitch     = newFault(400, "101 answers a request that did not ask for an upgrade")
	faultSwitchTo   = newFault(400, "101 must say in one Upgrade, listed in Connection, to what")
)

// What can be wrong with a body.
var (
	faultChunkSize   = newFault(400, "a chunk size must be 1 to 15 hexadecimal digits")
	faultChunkLine   = newFault(400, "a chunk size must be followed by CR LF, or by ';' and an extension without control bytes")
	faultChunkEnd    = newFault(400, "a chunk must end with CR LF after as many bytes as it announced")
	faultExtension   = newFault(400, "the body has too many bytes of chunk extensions")
	faultTrailer     = newFault(400, "a trailer may not be a field that rules framing, routing, credentials or how the body is read")
	faultTrailerSize = newFault(431, "the trailers are too large or too many")
	faultCut         = newFault(400, "the connection ended before the body did")
)

// What we refuse to write. These are mistakes of the caller, or what another protocol would smuggle in.
var (
	errMethod = &Error{500, "a method to be sent must be a token"}
	errTarget = &Error{500, "a target to be sent must begin with '/' and have neither spaces, control bytes nor '#'"}
	errHost   = &Error{500, "a Host to be sent must be a name or an address, with or without a port"}
	errField  = &Error{500, "a field to be sent must have a token as name, no control bytes, and not rule framing or connections"}
	errLong   = &Error{500, "the body to be sent is longer than its Content-Length"}
	errShort  = &Error{500, "the body to be sent is shorter than its Content-Length"}
)
