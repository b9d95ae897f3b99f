package server_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/agent/api/apitest"
	"github.com/meshagent/meshagent/agent/api/server"
)

// FuzzHandler: no request makes a handler panic, and every error is of the API and of no accident.
func FuzzHandler(f *testing.F) {
	for _, c := range samples {
		f.Add(true, c.method, c.target, "localhost", "Content-Type", c.mediaType, []byte(c.body))
	}
	f.Add(false, "GET", "/api/v1/tokens", "127.0.0.1:8500", "Authorization", "Bearer test-api-token", []byte{})
	f.Add(false, "GET", "/api/v1/status", "evil.example", "Origin", "http://evil.example", []byte{})
	f.Add(false, "POST", "/api/v1/policies?dryRun=true", "[::1]", "Authorization", "Bearer x", []byte(`{"writes":[{"source":"{}"}]}`))
	f.Add(true, "DELETE", "/api/v1/policies/%2f/k/%00/n?index=18446744073709551615", "", "Content-Type", "application/json", []byte("x"))
	f.Fuzz(func(t *testing.T, local bool, method, target, host, header, value string, body []byte) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return // net/http refuses it
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond) // long polls
		defer cancel()
		r := httptest.NewRequestWithContext(ctx, "GET", "/", strings.NewReader(string(body)))
		r.Method, r.URL, r.Host = method, u, host
		r.Header[http.CanonicalHeaderKey(header)] = []string{value}
		w := httptest.NewRecorder()
		server.New(apitest.New().Config()).Handler(local).ServeHTTP(w, r)
		switch {
		case w.Code >= 400:
			var e api.Error
			if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Header().Get("Content-Type") != api.ProblemType || e.Status != w.Code ||
				!slices.Contains(api.Codes(), e.Code) || e.Code == api.CodeInternal {
				t.Errorf("%s %q: %d %s", method, target, w.Code, w.Body)
			}
			return
		case w.Code != http.StatusOK && w.Code != http.StatusNoContent:
			t.Errorf("%s %q: %d", method, target, w.Code)
		case w.Header().Get("Content-Type") == "application/json" && !json.Valid(w.Body.Bytes()):
			t.Errorf("%s %q: no JSON: %s", method, target, w.Body)
		}
		if !local && method != "GET" && method != "HEAD" && !strings.HasSuffix(value, "test-api-token") {
			t.Errorf("%s %q is done without a token", method, target)
		}
	})
}
