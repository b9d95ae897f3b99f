package server_test

import (
	"os"
	"testing"

	"github.com/meshagent/meshagent/agent/api/apitest"
)

func start(t testing.TB) *apitest.Fake {
	dir, err := os.MkdirTemp("", "api") // that of t may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	f, err := apitest.Start(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return f
}
