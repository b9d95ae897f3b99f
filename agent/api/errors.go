package api

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

// Code is the stable name of a kind of error. Programs decide by it, never by the text.
type Code string

// The codes.
const (
	CodeInvalid        Code = "invalid"         // the request, or what it carries, is not valid
	CodeUnauthorized   Code = "unauthorized"    // no token, or not a valid one
	CodeForbidden      Code = "forbidden"       // known, but not allowed
	CodeNotFound       Code = "not_found"       //
	CodeConflict       Code = "conflict"        // changed by somebody else meanwhile
	CodeTooLarge       Code = "too_large"       // body over the limit
	CodeBusy           Code = "busy"            // too many requests
	CodeNoServer       Code = "no_server"       // no server, or no leader, can be reached
	CodeUnknownOutcome Code = "unknown_outcome" // the write may or may not have happened: read, then decide
	CodeReadOnly       Code = "read_only"       // the servers' disks are almost full
	CodeNotServer      Code = "not_server"      // only a server can do this
	CodeNotAllowed     Code = "method_not_allowed"
	CodeTimeout        Code = "timeout"
	CodeInternal       Code = "internal"
)

// codes is every code with its HTTP status and title.
var codes = map[Code]struct {
	status int
	title  string
}{
	CodeInvalid:        {http.StatusBadRequest, "Invalid"},
	CodeUnauthorized:   {http.StatusUnauthorized, "A token is needed"},
	CodeForbidden:      {http.StatusForbidden, "Not allowed"},
	CodeNotFound:       {http.StatusNotFound, "Not found"},
	CodeConflict:       {http.StatusConflict, "Changed meanwhile"},
	CodeTooLarge:       {http.StatusRequestEntityTooLarge, "Too large"},
	CodeBusy:           {http.StatusTooManyRequests, "Too many requests"},
	CodeNoServer:       {http.StatusServiceUnavailable, "No server can be reached"},
	CodeUnknownOutcome: {http.StatusServiceUnavailable, "Outcome unknown"},
	CodeReadOnly:       {http.StatusServiceUnavailable, "Read only"},
	CodeNotServer:      {http.StatusBadRequest, "Not a server"},
	CodeNotAllowed:     {http.StatusMethodNotAllowed, "Method not allowed"},
	CodeTimeout:        {http.StatusGatewayTimeout, "Timed out"},
	CodeInternal:       {http.StatusInternalServerError, "Internal error"},
}

// Codes returns all codes, sorted.
func Codes() []Code { return slices.Sorted(maps.Keys(codes)) }

// Error is an error of the API: problem+json (RFC 9457) with a code and a hint. Detail may have several lines, one for each
// thing that is wrong.
type Error struct {
	Type   string `json:"type"` // urn:meshagent:error:CODE
	Title  string `json:"title"`
	Status int    `json:"status"`
	Code   Code   `json:"code"`
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"` // what to do
}

// ProblemType is the media type of an Error.
const ProblemType = "application/problem+json"

// NewError returns an Error of a code; an unknown code becomes CodeInternal. hint may be empty.
func NewError(code Code, detail, hint string) *Error {
	c, ok := codes[code]
	if !ok {
		code, c = CodeInternal, codes[CodeInternal]
	}
	return &Error{Type: "urn:meshagent:error:" + string(code), Title: c.title, Status: c.status, Code: code, Detail: detail, Hint: hint}
}

// Error returns detail and hint.
func (e *Error) Error() string {
	s := strings.TrimSpace(e.Detail)
	if s == "" {
		s = e.Title
	}
	if e.Hint != "" {
		s += "\n" + e.Hint
	}
	return s
}

// Is reports whether target is an Error of the same code, so that errors.Is(err, &api.Error{Code: api.CodeNotFound}) works.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}
