package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"
)

// newDemoService is one version of the demo's service: it knows nothing of the mesh.
func newDemoService() *cobra.Command {
	var version, listen string
	c := &cobra.Command{Use: "service", Short: "The demo's service", Hidden: true, Args: argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serveDemo(cmd.Context(), listen, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				json.NewEncoder(w).Encode(map[string]string{"version": version, "caller": r.Header.Get("X-Forwarded-Client-Cert")})
			})
		}}
	c.Flags().StringVar(&version, "version", "v1", "what it answers")
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:9080", "where it listens")
	return c
}

// newDemoFrontend is the demo's caller: for each request of its own it calls a URL, whose name it asks the agent for.
func newDemoFrontend() *cobra.Command {
	var listen, dns, url string
	c := &cobra.Command{Use: "frontend", Short: "The demo's caller", Hidden: true, Args: argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, network, dns)
			}}
			client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
				DialContext: (&net.Dialer{Resolver: resolver}).DialContext, MaxIdleConnsPerHost: 16}}
			return serveDemo(cmd.Context(), listen, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				json.NewEncoder(w).Encode(callOnce(r.Context(), client, resolver, url, r.URL.Query().Get("user")))
			})
		}}
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:9090", "where it listens")
	c.Flags().StringVar(&dns, "dns", "127.0.0.1:8600", "the agent's DNS")
	c.Flags().StringVar(&url, "url", "http://my-service.service.mesh/", "what it calls")
	return c
}

func callOnce(ctx context.Context, client *http.Client, resolver *net.Resolver, url, user string) answer {
	a := answer{URL: url}
	fail := func(err error) answer { a.Error = err.Error(); return a }
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fail(err)
	}
	if a.Resolved, err = resolver.LookupHost(ctx, req.URL.Hostname()); err != nil {
		return fail(err)
	}
	if user != "" {
		req.Header.Set("end-user", user)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close()
	a.Status = resp.StatusCode
	if resp.StatusCode != http.StatusOK {
		return fail(fmt.Errorf("mesh-error: %s", resp.Header.Get("Mesh-Error")))
	}
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		return fail(err)
	}
	return a
}

func serveDemo(ctx context.Context, listen string, h http.HandlerFunc) error {
	srv := &http.Server{Addr: listen, Handler: h, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.ListenAndServe(); ctx.Err() == nil {
		return err
	}
	return nil
}
