package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestNetHTTP lets clients and servers of net/http, which know nothing of us, send each other much at the same time.
func TestNetHTTP(t *testing.T) {
	for _, d := range drivers() {
		if inMemory(d) {
			continue
		}
		for _, client := range []string{"h1", "h2"} {
			for _, server := range []string{"h1", "h2"} {
				t.Run(d+" "+client+"-"+server, func(t *testing.T) { playNetHTTP(t, d, client, server, false) })
			}
		}
	}
}

func protocolsOf(name string) *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(name == "h1")
	p.SetUnencryptedHTTP2(name == "h2")
	return p
}

func playNetHTTP(t *testing.T, driver, client, server string, moving bool) {
	back := listen(t, driver, "servers")
	srv := &http.Server{Protocols: protocolsOf(server), Handler: http.HandlerFunc(serveSum)}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { srv.Serve(hidden{back}) })
	defer srv.Close()

	w := &world{t: t, s: &scenario{}, driver: driver, front: listen(t, driver, "clients"), calls: make(chan string, 10000)}
	var err error
	if w.e, err = New(Config{Handler: w, Loops: 2, Portable: portable(driver)}); err != nil {
		t.Fatal(err)
	}
	spread(w.e)
	to := UpstreamConfig{Name: "net/http", Dial: back.dial}
	if server == "h2" {
		to.Protocol = HTTP2
	}
	w.up = w.e.Upstream(to)
	ctx, stop := context.WithCancel(t.Context())
	w.stop = stop
	defer w.end()
	w.serve(ctx, w.e, w.front)
	if moving {
		defer restless(t, w.e)()
	}

	transport := &http.Transport{Protocols: protocolsOf(client), MaxIdleConnsPerHost: 10,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return w.front.dial(ctx) }}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport, Timeout: time.Minute}
	url := "http://" + w.front.Addr().String()
	var callers sync.WaitGroup
	for i := range 4 {
		callers.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(i)))
			for range 12 {
				if err := callSum(c, url, random); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	callers.Wait()
	for range len(w.calls) {
		if got := <-w.calls; !strings.HasSuffix(got, " 200 - 1") {
			t.Errorf("a call ended as %q", got)
		}
	}
}

// serveSum answers with as many bytes as it is asked for, and with the sum of the request in a trailer.
func serveSum(w http.ResponseWriter, r *http.Request) {
	sum := sha256.New()
	io.Copy(sum, r.Body)
	size, _ := strconv.Atoi(r.Header.Get("Size"))
	if r.Header.Get("Known") != "" {
		w.Header().Set("Content-Length", strconv.Itoa(size))
	} else {
		w.Header().Set("Trailer", "Sum")
	}
	w.Header().Set("Sum-Of-Trailer", r.Trailer.Get("Mine"))
	w.WriteHeader(200)
	io.Copy(w, &pattern{size: size})
	w.Header().Set("Sum", fmt.Sprintf("%x", sum.Sum(nil)))
}

func callSum(c *http.Client, url string, random *rand.Rand) error {
	sizes := []int{0, 1, 100, 5000, 70_000, 300_000, 700_000}
	body := make([]byte, sizes[random.IntN(len(sizes))])
	for i := range body {
		body[i] = byte(random.Uint32())
	}
	var in io.Reader = bytes.NewReader(body)
	known := random.IntN(2) == 0
	if !known {
		in = io.MultiReader(in)
	}
	q, err := http.NewRequest("PUT", url+"/"+strconv.Itoa(len(body)), in)
	if err != nil {
		return err
	}
	if !known && len(body) > 0 {
		q.Trailer = http.Header{"Mine": {"here"}}
	}
	size := sizes[random.IntN(len(sizes))]
	q.Header.Set("Size", strconv.Itoa(size))
	if random.IntN(2) == 0 {
		q.Header.Set("Known", "yes")
	}
	r, err := c.Do(q)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	want := &pattern{size: size}
	b := make([]byte, size+1)
	n, err := io.ReadFull(r.Body, b)
	if err != io.ErrUnexpectedEOF && err != io.EOF {
		return fmt.Errorf("the answer of %d bytes had %d and ended with %v", size, n, err)
	}
	sent := make([]byte, size)
	io.ReadFull(want, sent)
	sum := r.Trailer.Get("Sum")
	switch {
	case r.StatusCode != 200:
		return fmt.Errorf("status %d", r.StatusCode)
	case !bytes.Equal(sent, b[:n]):
		return fmt.Errorf("the answer has %d bytes, want %d", n, size)
	case q.Header.Get("Known") == "" && sum != fmt.Sprintf("%x", sha256.Sum256(body)):
		return fmt.Errorf("the request of %d bytes came with the sum %q", len(body), sum)
	case q.Trailer != nil && r.Header.Get("Sum-Of-Trailer") != "here":
		return fmt.Errorf("the trailer of the request did not arrive")
	}
	return nil
}
