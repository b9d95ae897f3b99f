// The program websocket is a WebSocket server and a client of it, by two libraries that know nothing of each other.
//
//	websocket serve ADDRESS       says where it listens
//	websocket call ADDRESS CASE   ends with code 1 and a sentence when the case fails
//	websocket cases               lists them
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		l, err := net.Listen("tcp4", args[1])
		if err != nil {
			return err
		}
		fmt.Println("listens on", l.Addr())
		s := &server{closed: map[string]chan int{}}
		http.HandleFunc("/ws", s.webSocket)
		http.HandleFunc("/closed", s.closedWith)
		http.HandleFunc("/forbidden", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusForbidden) })
		return http.Serve(l, nil)
	case len(args) == 3 && args[0] == "call":
		call, ok := cases[args[2]]
		if !ok {
			return fmt.Errorf("no case %q", args[2])
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		return call(ctx, args[1])
	case len(args) == 1 && args[0] == "cases":
		for _, name := range slices.Sorted(maps.Keys(cases)) {
			fmt.Println(name)
		}
		return nil
	}
	return errors.New("usage: websocket serve ADDRESS | call ADDRESS CASE | cases")
}

// server echoes messages and does what those say that begin with "please".
type server struct {
	mu     sync.Mutex // guards closed
	closed map[string]chan int
}

// closing returns where the code that a client's connection ended with is, by the client's name.
func (s *server) closing(client string) chan int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed[client] == nil {
		s.closed[client] = make(chan int, 1)
	}
	return s.closed[client]
}

func (s *server) closedWith(w http.ResponseWriter, r *http.Request) {
	select {
	case code := <-s.closing(r.FormValue("client")):
		fmt.Fprint(w, code)
	case <-time.After(10 * time.Second):
		http.Error(w, "it is not closed", http.StatusGatewayTimeout)
	}
}

func (s *server) webSocket(w http.ResponseWriter, r *http.Request) {
	u := gorilla.Upgrader{Subprotocols: []string{"second", "first"}, EnableCompression: true}
	c, err := u.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer c.Close()
	ponged := make(chan string, 1)
	c.SetPongHandler(func(data string) error { ponged <- data; return nil })
	if greeting := r.FormValue("greeting"); greeting != "" {
		c.WriteMessage(gorilla.TextMessage, []byte(greeting))
	}
	for {
		kind, m, err := c.ReadMessage()
		if err != nil {
			code := websocketCode(err)
			s.closing(r.FormValue("client")) <- code
			return
		}
		switch what, rest, _ := strings.Cut(string(m[:min(len(m), 100)]), ": "); what {
		case "please ping":
			c.WriteControl(gorilla.PingMessage, []byte(rest), time.Now().Add(time.Second))
			go func() { c.WriteMessage(gorilla.TextMessage, []byte(<-ponged)) }()
		case "please close":
			code, reason, _ := strings.Cut(rest, " ")
			n, _ := strconv.Atoi(code)
			c.WriteControl(gorilla.CloseMessage, gorilla.FormatCloseMessage(n, reason), time.Now().Add(time.Second))
		case "please vanish":
			return
		default:
			c.WriteMessage(kind, m)
		}
	}
}

func websocketCode(err error) int {
	if c := (*gorilla.CloseError)(nil); errors.As(err, &c) {
		return c.Code
	}
	return gorilla.CloseAbnormalClosure
}

// cases are what a client does with the server at an address.
var cases = map[string]func(ctx context.Context, addr string) error{
	"echo":         echo,
	"fragments":    fragments,
	"full duplex":  fullDuplex,
	"compression":  compression,
	"ping":         ping,
	"pinged":       pinged,
	"server first": serverFirst,
	"subprotocol":  subprotocol,
	"refused":      refused,
	"close":        closes,
	"closed":       closed,
	"vanish":       vanish,
	"vanished":     vanished,
	"many":         many,
}

func dial(ctx context.Context, addr, query string, o *websocket.DialOptions) (*websocket.Conn, error) {
	c, _, err := websocket.Dial(ctx, "ws://"+addr+"/ws?"+query, o)
	if err == nil {
		c.SetReadLimit(2 << 20)
	}
	return c, err
}

func payload(n int) []byte { return bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n] }

func roundTrip(ctx context.Context, c *websocket.Conn, kind websocket.MessageType, m []byte) error {
	if err := c.Write(ctx, kind, m); err != nil {
		return fmt.Errorf("write %d bytes: %w", len(m), err)
	}
	return read(ctx, c, kind, m)
}

func read(ctx context.Context, c *websocket.Conn, kind websocket.MessageType, want []byte) error {
	k, got, err := c.Read(ctx)
	if err != nil {
		return fmt.Errorf("read %d bytes: %w", len(want), err)
	}
	if k != kind || !bytes.Equal(got, want) {
		return fmt.Errorf("%v of %d bytes came back as %v of %d", kind, len(want), k, len(got))
	}
	return nil
}

// echo: every form of a frame's length, and 1 MB.
func echo(ctx context.Context, addr string) error {
	c, err := dial(ctx, addr, "", nil)
	if err != nil {
		return err
	}
	for _, kind := range []websocket.MessageType{websocket.MessageText, websocket.MessageBinary} {
		for _, n := range []int{0, 1, 125, 126, 65535, 65536, 1 << 20} {
			if err := roundTrip(ctx, c, kind, payload(n)); err != nil {
				return err
			}
		}
	}
	return c.Close(websocket.StatusNormalClosure, "")
}

// fragments: one message of many frames.
func fragments(ctx context.Context, addr string) error {
	c, err := dial(ctx, addr, "", nil)
	if err != nil {
		return err
	}
	w, err := c.Writer(ctx, websocket.MessageText)
	if err != nil {
		return err
	}
	m := payload(100_000)
	for part := range slices.Chunk(m, 999) {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return read(ctx, c, websocket.MessageText, m)
}

// fullDuplex: both ways are busy at one time.
func fullDuplex(ctx context.Context, addr string) error {
	c, err := dial(ctx, addr, "", nil)
	if err != nil {
		return err
	}
	const n = 20
	sent := make(chan error, 1)
	go func() {
		for range n {
			if err := c.Write(ctx, websocket.MessageBinary, payload(1<<20)); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for range n {
		if err := read(ctx, c, websocket.MessageBinary, payload(1<<20)); err != nil {
			return err
		}
	}
	return <-sent
}

// compression: an extension that both sides agree on is theirs.
func compression(ctx context.Context, addr string) error {
	c, resp, err := websocket.Dial(ctx, "ws://"+addr+"/ws", &websocket.DialOptions{CompressionMode: websocket.CompressionNoContextTakeover})
	if err != nil {
		return err
	}
	c.SetReadLimit(2 << 20)
	if x := resp.Header.Get("Sec-WebSocket-Extensions"); !strings.Contains(x, "permessage-deflate") {
		return fmt.Errorf("the extensions are %q", x)
	}
	return roundTrip(ctx, c, websocket.MessageText, payload(1<<20))
}

// ping: the client's, answered by the server.
func ping(ctx context.Context, addr string) error {
	c, err := dial(ctx, addr, "", nil)
	if err != nil {
		return err
	}
	ctx = c.CloseRead(ctx)
	for range 3 {
		if err := c.Ping(ctx); err != nil {
			return err
		}
	}
	return nil
}

// pinged: the server's, answered by the client while it reads.
func pinged(ctx context.Context, addr string) error {
	c, err := dial(ctx, addr, "", nil)
	if err != nil {
		return err
	}
	if err := c.Write(ctx, websocket.MessageText, []byte("please ping: are you there")); err != nil {
		return err
	}
	return read(ctx, c, websocket.MessageText, []byte("are you there"))
}

// serverFirst: a message right behind the 101.
func serverFirst(ctx context.Context, addr string) error {
	for range 50 {
		c, err := dial(ctx, addr, "greeting=hello", nil)
		if err != nil {
			return err
		}
		if err := read(ctx, c, websocket.MessageText, []byte("hello")); err != nil {
			return err
		}
		c.CloseNow()
	}
	return nil
}

func subprotocol(ctx context.Context, addr string) error {
	c, err := dial(ctx, addr, "", &websocket.DialOptions{Subprotocols: []string{"first", "second"}})
	if err != nil {
		return err
	}
	if c.Subprotocol() != "second" {
		return fmt.Errorf("it is %q, and the server wants second", c.Subprotocol())
	}
	return nil
}

// refused: the server's answer that is no 101 comes through.
func refused(ctx context.Context, addr string) error {
	_, resp, err := websocket.Dial(ctx, "ws://"+addr+"/forbidden", nil)
	if err == nil {
		return errors.New("there is a connection")
	}
	if resp == nil || resp.StatusCode != http.StatusForbidden {
		return fmt.Errorf("the answer is %v: %w", resp, err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "no\n" {
		return fmt.Errorf("the body is %q: %w", b, err)
	}
	return nil
}

// closes: the client closes with a code, the server sees it and answers.
func closes(ctx context.Context, addr string) error {
	for _, code := range []websocket.StatusCode{1000, 1001, 3000, 4999} {
		client := fmt.Sprintf("closes-%d", code)
		c, err := dial(ctx, addr, "client="+client, nil)
		if err != nil {
			return err
		}
		if err := c.Close(code, "a reason"); err != nil {
			return fmt.Errorf("%d: %w", code, err)
		}
		if err := sawEnd(ctx, addr, client, code); err != nil {
			return err
		}
	}
	return nil
}

func sawEnd(ctx context.Context, addr, client string, want websocket.StatusCode) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/closed?client="+client, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != strconv.Itoa(int(want)) {
		return fmt.Errorf("the server saw %s %s: %w, want %d", resp.Status, b, err, want)
	}
	return nil
}

// closed: the server closes with a code, the client sees it.
func closed(ctx context.Context, addr string) error {
	for _, code := range []websocket.StatusCode{1000, 1011, 1013, 4000} {
		c, err := dial(ctx, addr, "", nil)
		if err != nil {
			return err
		}
		if err := c.Write(ctx, websocket.MessageText, fmt.Appendf(nil, "please close: %d for a reason", code)); err != nil {
			return err
		}
		_, _, err = c.Read(ctx)
		if e := (websocket.CloseError{}); !errors.As(err, &e) || e.Code != code || e.Reason != "for a reason" {
			return fmt.Errorf("the server closed with %d, and it came as: %w", code, err)
		}
	}
	return nil
}

// vanish: the server's connection ends without a word, and so does the client's.
func vanish(ctx context.Context, addr string) error {
	c, err := dial(ctx, addr, "", nil)
	if err != nil {
		return err
	}
	if err := c.Write(ctx, websocket.MessageText, []byte("please vanish")); err != nil {
		return err
	}
	if _, _, err = c.Read(ctx); err == nil || ctx.Err() != nil || websocket.CloseStatus(err) != -1 {
		return fmt.Errorf("the server is gone, and the client sees: %w", err)
	}
	return nil
}

// vanished: the client's connection ends without a word, and so does the server's.
func vanished(ctx context.Context, addr string) error {
	c, err := dial(ctx, addr, "client=vanished", nil)
	if err != nil {
		return err
	}
	c.CloseNow()
	return sawEnd(ctx, addr, "vanished", gorilla.CloseAbnormalClosure)
}

// many: connections do not know of each other.
func many(ctx context.Context, addr string) error {
	const n = 200
	ends := make(chan error, n)
	for range n {
		go func() {
			c, err := dial(ctx, addr, "", nil)
			for range 20 {
				if err == nil {
					err = roundTrip(ctx, c, websocket.MessageText, payload(1000))
				}
			}
			if err == nil {
				err = c.Close(websocket.StatusNormalClosure, "")
			}
			ends <- err
		}()
	}
	var errs []error
	for range n {
		errs = append(errs, <-ends)
	}
	return errors.Join(errs...)
}
