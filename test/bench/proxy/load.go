//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/meshagent/meshagent/proxy/http2"
)

// load is what is put on an address, and for how long.
type load struct {
	proto   string           // "h1", "h2" or "grpc"
	addrs   []netip.AddrPort // connections are spread over them
	host    string
	body    int // bytes that are asked for
	conns   int
	streams int // requests at one time on each connection; 1 for h1
	rate    int // requests per second, open loop; 0 is a closed loop: each slot sends when it is answered
	warm    time.Duration
	window  time.Duration // what is measured, after warm
	// sample is called when the window begins and when it ends.
	sample func()
	// idle ends the load when every slot has had one answer, and is called then, while all connections are open.
	idle func()
}

// outcome is what the load saw in its window.
type outcome struct {
	requests  int64           // answered, between the two samples
	latencies []time.Duration // sorted; open loop: from when each was due
	behind    int             // open loop: never answered, counted with the time they had waited at the end
}

// loader runs one load in one thread. Any answer that is not as it should be ends it.
//
// First every slot makes one call, a few at a time, so that connections to and behind the proxy are there. Then the load begins, and
// the window when warm has passed; with a closed loop not before every slot was answered again, for a proxy may only now open what so
// many calls at one time need.
type loader struct {
	load
	*poller
	x        http2.Scratch
	buf      []byte
	clients  []client
	dirty    []client        // have something to flush
	since    []time.Duration // for each slot, when it sent
	start    time.Time
	meeting  bool          // the first calls are under way
	met      int           // slots that have made their first call
	waiting  map[int]bool  // slots that have yet to be answered before the window begins
	pace     *pacer        // nil for a closed loop
	from, to time.Duration // the window, once it has begun
	begun    chan struct{} // closed when it begins
	count    atomic.Int64
	out      outcome
}

const (
	meetAtOnce = 32
	patience   = 30 * time.Second // until the window begins
	grace      = time.Second      // for answers that are late at the end
)

// client is one connection.
type client interface {
	handler
	begin(slot int) error // sends a request, perhaps only with the next flush
	flush() error
}

func (l *loader) now() time.Duration { return time.Since(l.start) }

// run puts a load on an address. Errors: ctx is done, no connection, an answer that was wrong.
func (s load) run(ctx context.Context) (outcome, error) {
	s.streams = max(s.streams, 1)
	p, err := newPoller()
	if err != nil {
		return outcome{}, err
	}
	defer p.close()
	l := &loader{load: s, poller: p, buf: make([]byte, 256<<10), since: make([]time.Duration, s.conns*s.streams), start: time.Now(),
		meeting: true, waiting: map[int]bool{}, begun: make(chan struct{})}
	runtime.LockOSThread() // for the timer slack
	defer runtime.UnlockOSThread()
	const prSetTimerSlack = 29
	syscall.RawSyscall(syscall.SYS_PRCTL, prSetTimerSlack, 1, 0)
	for i := range s.conns {
		fd, err := connect(s.addrs[i%len(s.addrs)])
		if err != nil {
			return outcome{}, err
		}
		c := l.client(fd, i*s.streams)
		l.clients = append(l.clients, c)
		if err := p.watch(fd, c, true, false); err != nil {
			return outcome{}, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var sampled sync.WaitGroup
	if s.idle == nil {
		sampled.Go(func() { l.samples(ctx) })
	}
	err = l.turns(ctx)
	if err != nil {
		cancel()
	}
	sampled.Wait()
	slices.Sort(l.out.latencies)
	return l.out, err
}

// samples calls sample at both ends of the window and counts what was answered between.
func (l *loader) samples(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-l.begun:
	}
	l.sample()
	first := l.count.Load()
	select {
	case <-ctx.Done():
		return
	case <-time.After(l.to - l.now()):
	}
	l.sample()
	l.out.requests = l.count.Load() - first
}

func (l *loader) turns(ctx context.Context) error {
	for slot := range min(meetAtOnce, len(l.since)) {
		if err := l.meet(slot); err != nil {
			return err
		}
	}
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		wait, err := l.turn()
		if err != nil || wait < 0 {
			return err
		}
		for _, c := range l.dirty {
			if err := c.flush(); err != nil {
				return err
			}
		}
		l.dirty = l.dirty[:0]
		if err := l.wait(min(wait, 50*time.Millisecond)); err != nil {
			return err
		}
	}
}

// meet makes the first call of a slot.
func (l *loader) meet(slot int) error {
	l.met++
	l.waiting[slot] = true
	return l.send(slot)
}

// turn does what the time asks for, and tells how long nothing is to be done; less than 0 is the end.
func (l *loader) turn() (wait time.Duration, err error) {
	now := l.now()
	switch {
	case l.meeting && len(l.waiting) == 0:
		l.meeting = false
		if l.idle != nil {
			l.idle()
			return -1, nil
		}
		return 0, l.begin()
	case l.from == 0 && now > patience:
		return 0, fmt.Errorf("%d of %d calls at one time were not answered within %v", len(l.waiting), len(l.since), patience)
	case l.meeting:
		return patience, nil
	case l.from == 0 && len(l.waiting) == 0 && now >= l.warm:
		l.from, l.to = now, now+l.window
		if l.pace != nil {
			l.from, l.to = l.warm, l.warm+l.window
		}
		close(l.begun)
	}
	if l.pace == nil {
		if l.from > 0 && now >= l.to {
			return -1, nil
		}
		return max(l.to-now, time.Millisecond), nil
	}
	for slot, ok := l.pace.begin(now); ok; slot, ok = l.pace.begin(now) {
		if err := l.send(slot); err != nil {
			return 0, err
		}
	}
	if now < l.pace.end {
		return l.pace.wait(now), nil
	}
	late := l.pace.unanswered(l.warm)
	if len(late) > 0 && now < l.pace.end+grace {
		return 5 * time.Millisecond, nil
	}
	for _, due := range late {
		l.out.latencies = append(l.out.latencies, now-due)
	}
	l.out.behind = len(late)
	return -1, nil
}

// begin begins the load, at time 0.
func (l *loader) begin() error {
	l.start = time.Now()
	if l.rate > 0 {
		l.pace = newPacer(l.rate, len(l.since), l.warm+l.window)
		return nil
	}
	for slot := range l.since {
		l.waiting[slot] = true
		if err := l.send(slot); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) send(slot int) error {
	l.since[slot] = l.now()
	return l.clients[slot/l.streams].begin(slot)
}

// answered is told by a client that a slot's answer has come as a whole.
func (l *loader) answered(slot int) error {
	now := l.now()
	l.count.Add(1)
	delete(l.waiting, slot)
	switch {
	case l.meeting && l.met < len(l.since):
		return l.meet(l.met)
	case l.meeting:
		return nil
	case l.pace != nil:
		due, again := l.pace.done(slot, now)
		if due >= l.warm {
			l.out.latencies = append(l.out.latencies, now-due)
		}
		if again {
			return l.send(slot)
		}
		return nil
	}
	if l.from > 0 && now < l.to {
		l.out.latencies = append(l.out.latencies, now-l.since[slot])
	}
	return l.send(slot)
}

func (l *loader) client(fd, slot int) client {
	switch l.proto {
	case "h1":
		r := fmt.Appendf(nil, "GET /%d HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n", l.body, l.host)
		return &h1Client{l: l, fd: fd, slot: slot, request: r}
	case "h2", "grpc":
		c := &h2Client{Conn: http2.NewClient(http2.Options{Streams: max(l.streams, 100)}, &l.x), l: l, fd: fd}
		c.request = http2.Request{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte(l.host),
			Path: fmt.Appendf(nil, "/%d", l.body), Length: -1}
		c.fields = []http2.Field{{Name: []byte("user-agent"), Value: []byte("bench")}, {Name: []byte("accept"), Value: []byte("*/*")}}
		if l.proto == "grpc" {
			c.request.Method, c.request.Path, c.request.Trailers = []byte("POST"), fmt.Appendf(nil, "/bench.Bench/Get%d", l.body), true
			c.fields = []http2.Field{{Name: []byte("user-agent"), Value: []byte("grpc-bench")}, {Name: []byte("content-type"), Value: []byte("application/grpc")}}
		}
		c.first, c.slots = slot, make([]stream, l.streams)
		return c
	}
	panic("no protocol " + l.proto)
}

type h1Client struct {
	l       *loader
	fd      int
	slot    int
	request []byte
	busy    bool
	head    []byte // of an answer, when it has not come as a whole
	left    int    // of a body
	inBody  bool
}

func (c *h1Client) failed(err error) error { return fmt.Errorf("%s: %w", c.l.proto, err) }
func (c *h1Client) flush() error           { return nil }

func (c *h1Client) begin(int) error {
	c.busy = true
	rest, err := write(c.fd, c.request)
	if err == nil && len(rest) > 0 {
		err = errors.New("the proxy takes no request")
	}
	return err
}

func (c *h1Client) event(bool) error {
	b, err := read(c.fd, c.l.buf)
	if err != nil || len(b) == 0 {
		return err
	}
	done, err := c.take(b)
	if err != nil || !done {
		return err
	}
	return c.l.answered(c.slot)
}

const maxHead = 16 << 10

// take reads what came and tells whether it was the end of the answer.
func (c *h1Client) take(b []byte) (done bool, err error) {
	if !c.busy {
		return false, fmt.Errorf("%.60q came without a request", b)
	}
	if !c.inBody {
		if len(c.head) > 0 {
			c.head = append(c.head, b...)
			b = c.head
		}
		end := bytes.Index(b, []byte("\r\n\r\n"))
		if end < 0 {
			if len(b) > maxHead {
				return false, fmt.Errorf("the answer's head is longer than %d bytes", maxHead)
			}
			if len(c.head) == 0 {
				c.head = append(c.head, b...)
			}
			return false, nil
		}
		if c.left, err = parseHead(b[:end+2]); err != nil {
			return false, err
		}
		if c.left != c.l.body {
			return false, fmt.Errorf("the answer has %d bytes, %d were asked for", c.left, c.l.body)
		}
		b = b[end+4:]
		c.inBody = true
	}
	if len(b) > c.left {
		return false, fmt.Errorf("the answer has %d bytes too many", len(b)-c.left)
	}
	if c.left -= len(b); c.left > 0 {
		return false, nil
	}
	c.head, c.inBody, c.busy = c.head[:0], false, false
	return true, nil
}

// parseHead returns the length of the body of an answer with status 200 over a connection that stays open.
func parseHead(head []byte) (int, error) {
	line, fields, _ := bytes.Cut(head, []byte("\r\n"))
	if !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
		return 0, fmt.Errorf("the answer is %.300q", head)
	}
	length := -1
	for len(fields) > 0 {
		line, fields, _ = bytes.Cut(fields, []byte("\r\n"))
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			n, err := strconv.Atoi(string(value))
			if err != nil || n < 0 {
				return 0, fmt.Errorf("content-length %q", value)
			}
			length = n
		case bytes.EqualFold(name, []byte("connection")) && bytes.EqualFold(value, []byte("close")):
			return 0, errors.New("the connection is not kept")
		}
	}
	if length < 0 {
		return 0, fmt.Errorf("the answer has no content-length: %.300q", head)
	}
	return length, nil
}

type h2Client struct {
	*http2.Conn
	l       *loader
	fd      int
	request http2.Request
	fields  []http2.Field
	in      []byte
	first   int
	slots   []stream
	dirty   bool
}

// stream is what is known of the answer that a slot waits for.
type stream struct {
	slot int
	got  int
	ok   bool // gRPC: the status was good
}

var grpcEmpty = make([]byte, 5) // a message of no bytes

func (c *h2Client) failed(err error) error { return fmt.Errorf("%s: %w", c.l.proto, err) }

func (c *h2Client) begin(slot int) error {
	grpc := c.l.proto == "grpc"
	st, err := c.Open(&c.request, c.fields, !grpc)
	if err != nil {
		return err
	}
	s := &c.slots[slot-c.first]
	*s = stream{slot: slot}
	st.Owner = s
	if grpc {
		if n, err := c.Data(st, grpcEmpty, true); err != nil || n != len(grpcEmpty) {
			return fmt.Errorf("the request's message could not be sent: %d bytes, %w", n, err)
		}
	}
	c.touch()
	return nil
}

// touch has the connection flushed at the end of the turn.
func (c *h2Client) touch() {
	if !c.dirty {
		c.dirty = true
		c.l.dirty = append(c.l.dirty, c)
	}
}

func (c *h2Client) flush() error {
	c.dirty = false
	rest, err := write(c.fd, c.Out)
	if err == nil && len(rest) > 0 {
		err = errors.New("the proxy takes no requests")
	}
	c.Out = c.Out[:0]
	return err
}

func (c *h2Client) event(bool) error {
	in, err := read(c.fd, c.l.buf)
	if err != nil || len(in) == 0 {
		return err
	}
	if len(c.in) > 0 {
		c.in = append(c.in, in...)
		in = c.in
	}
	for {
		ev, n, err := c.Next(in)
		in = in[n:]
		if err != nil {
			return err
		}
		if ev.Kind == http2.EventNone {
			break
		}
		if err := c.take(ev); err != nil {
			return err
		}
	}
	c.in = append(c.in[:0], in...)
	if len(c.Out) > 0 {
		c.touch()
	}
	return nil
}

func (c *h2Client) take(ev http2.Event) error {
	var s *stream
	if ev.Stream != nil {
		s = ev.Stream.Owner.(*stream)
	}
	switch ev.Kind {
	case http2.EventResponse, http2.EventTrailers:
		if ev.Kind == http2.EventResponse && ev.Head.Status != 200 {
			return fmt.Errorf("the answer has status %d", ev.Head.Status)
		}
		if v := ev.Head.Get("grpc-status"); v != nil {
			if s.ok = string(v) == "0"; !s.ok {
				return fmt.Errorf("gRPC status %s: %s", v, ev.Head.Get("grpc-message"))
			}
		}
	case http2.EventData:
		s.got += len(ev.Data)
		c.Take(ev.Stream, len(ev.Data))
	case http2.EventReset:
		return fmt.Errorf("the stream was reset: %v", ev.Code)
	case http2.EventGoAway:
		return fmt.Errorf("the connection goes away: %v", ev.Code)
	default:
		return nil
	}
	if !ev.End && ev.Kind != http2.EventTrailers {
		return nil
	}
	want := c.l.body
	if c.l.proto == "grpc" {
		want += len(grpcEmpty)
	}
	if s.got != want || s.ok != (c.l.proto == "grpc") {
		return fmt.Errorf("the answer has %d bytes, %d were asked for; gRPC status 0: %v", s.got, want, s.ok)
	}
	c.Close(ev.Stream, http2.NoError)
	return c.l.answered(s.slot)
}
