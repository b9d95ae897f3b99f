package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/meshagent/meshagent/agent/api"
)

// Answers of a route that are not a value for JSON with status 200.
type (
	sent   struct{} // written already
	status struct { // a value with another status
		code  int
		value any
	}
	text struct{ mediaType, body string }
)

func write(w http.ResponseWriter, answer any) error {
	switch a := answer.(type) {
	case sent:
	case nil:
		w.WriteHeader(http.StatusNoContent)
	case text:
		writeBytes(w, http.StatusOK, a.mediaType, []byte(a.body))
	case status:
		return writeJSON(w, a.code, "application/json", a.value)
	default:
		return writeJSON(w, http.StatusOK, "application/json", a)
	}
	return nil
}

func writeJSON(w http.ResponseWriter, code int, mediaType string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	writeBytes(w, code, mediaType, append(b, '\n'))
	return nil
}

func writeBytes(w http.ResponseWriter, code int, mediaType string, b []byte) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(code)
	_, _ = w.Write(b) // an error means that nobody listens any more
}

// fail answers with an error. What is not an *api.Error is for the log alone.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	e, ok := errors.AsType[*api.Error](err)
	if !ok {
		e = s.hide(r, err)
	}
	switch e.Code {
	case api.CodeUnauthorized:
		w.Header().Set("WWW-Authenticate", "Bearer")
	case api.CodeBusy:
		w.Header().Set("Retry-After", "1")
	}
	if err := writeJSON(w, e.Status, api.ProblemType, e); err != nil {
		panic(err) // an Error has strings and a number
	}
}

// hide turns an error that is not for callers into one that is.
func (s *Server) hide(r *http.Request, err error) *api.Error {
	if tooBig, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge(tooBig.Limit)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		return api.NewError(api.CodeTimeout, "this took too long", "GET "+prefix+"/status says whether the servers can be reached")
	}
	s.cfg.Log.Error("api call failed", "method", r.Method, "path", r.URL.Path, "err", err)
	return api.NewError(api.CodeInternal, "the agent failed at this", "its log says why")
}

func tooLarge(limit int64) *api.Error {
	if limit == 0 {
		return api.NewError(api.CodeTooLarge, "this call takes no body", "")
	}
	return api.NewError(api.CodeTooLarge, fmt.Sprintf("body: more than %d bytes", limit), "")
}
