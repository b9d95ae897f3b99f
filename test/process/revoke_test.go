//go:build process && linux

package process

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/test/lab"
)

// TestRevokedHost: when a host is revoked, the calls that are under way to it and from it end within 2 s, and there are no new ones.
func TestRevokedHost(t *testing.T) {
	c := lab.New(t, 121, 1, 2)
	began := make(chan struct{}, 2)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			return
		}
		began <- struct{}{}
		<-r.Context().Done()
	}))
	defer app.Close()
	at := netip.MustParseAddrPort(app.Listener.Addr().String())
	there, here := c.Host(2), c.Host(3) // there is a thief
	there.Define("stolen", "http", at)
	here.Define("precious", "http", at)
	here.Calls()
	there.Calls()
	get := func(url string) string {
		resp, err := (&http.Client{Timeout: 20 * time.Second}).Get(url)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return fmt.Sprint(resp.Status, " ", string(b), err)
	}
	toThere, fromThere := "http://"+here.Reach("stolen").String(), "http://"+there.Reach("precious").String()
	for _, url := range []string{toThere, fromThere} {
		if got := get(url); !strings.HasPrefix(got, "200 OK") {
			t.Fatalf("before: %s", got)
		}
	}
	ended := make(chan string, 2)
	for _, url := range []string{toThere, fromThere} {
		go func() { ended <- get(url + "/long") }()
		<-began
	}
	begin := time.Now()
	c.Host(1).CLI("ca", "revoke", "--node", "host2", "--reason", "stolen", "--yes")
	for range 2 {
		if got := <-ended; !strings.HasPrefix(got, "503") {
			t.Errorf("a call under way: %s", got)
		}
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("calls went on for %v", took)
	} else {
		t.Logf("the last call ended after %v", took)
	}
	for _, url := range []string{toThere, fromThere} {
		if got := get(url); !strings.HasPrefix(got, "503") {
			t.Errorf("a new call: %s", got)
		}
	}
}
