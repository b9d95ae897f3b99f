package server_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/meshagent/meshagent/agent/api"
)

// request returns a request as it comes over TCP, with headers as "Name: value".
func request(method, target, body string, headers ...string) *http.Request {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Host = "127.0.0.1:8500"
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	return r
}

// failure serves a request that must fail, and returns its error.
func failure(t testing.TB, h http.Handler, r *http.Request) api.Error {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var e api.Error
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Header().Get("Content-Type") != api.ProblemType || w.Code != e.Status ||
		e.Type != "urn:meshagent:error:"+string(e.Code) || e.Title == "" {
		t.Errorf("%s %.80s: no error of the API: %d %q %.200s", r.Method, r.URL, w.Code, w.Header(), w.Body)
	}
	return e
}
