//go:build process && linux

package process

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshagent/meshagent/agent/api"
	"github.com/meshagent/meshagent/test/lab"
)

// TestGatewayHandsOver: clients from outside, each call on a connection of its own, do not see that the agent of a gateway is replaced.
func TestGatewayHandsOver(t *testing.T) {
	c := lab.New(t, 126, 1, 1)
	g := c.Host(1)
	serve(c.Host(2), "v1")
	if _, err := g.API.Register(t.Context(), []byte("name: ingressgateway\nprotocol: gateway\nlabels: {istio: ingressgateway}\n")); err != nil {
		t.Fatal(err)
	}
	g.AwaitUsable("web", 1)
	if _, err := g.API.Apply(t.Context(), api.Apply{Writes: []api.Write{{Source: `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8090, name: http, protocol: HTTP}
    hosts: ["shop.example.com"]
`}, {Source: `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example.com]
  gateways: [edge]
  http:
  - route: [{destination: {host: web}}]
`}}}); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	call := func() error {
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+g.Addr()+":8090/", nil)
		if err != nil {
			return err
		}
		r.Host = "shop.example.com"
		resp, err := client.Do(r)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			return fmt.Errorf("%s: %s", resp.Status, resp.Header.Get("mesh-error"))
		}
		return nil
	}
	c.Await("the gateway", 20*time.Second, call)

	var over atomic.Bool
	calls, ended := 0, make(chan error, 1)
	go func() {
		for ; !over.Load(); calls++ {
			if err := call(); err != nil {
				ended <- fmt.Errorf("call %d: %w", calls, err)
				return
			}
		}
		ended <- nil
	}()
	for range 2 {
		g.HandOver()
	}
	over.Store(true)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	t.Logf("%d calls", calls)
}
