package engine

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bare is a tlsSocket in a loop that nobody runs, so that tests decide what happens when. Its peer is a script's.
type bare struct {
	t    *testing.T
	l    *loop
	c    *conn
	s    *tlsSocket
	peer *tlsPeer
	held *holder // under peer: keeps what it writes after the handshake, if it is to
}

func newBare(t *testing.T) *bare {
	e, err := New(Config{Handler: &gate{}, Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	b := &bare{t: t, l: e.loops[0]}
	raw, other := tcpPair(t)
	done := make(chan error)
	go func() {
		b.held = &holder{Conn: raw, through: true}
		nc, err := shake(t.Context(), b.held, tls.Client, false)
		if err == nil {
			b.peer = nc.(*tlsPeer)
			b.peer.SetDeadline(time.Now().Add(patience))
		}
		done <- err
	}()
	nc, err := shake(t.Context(), other, tls.Server, true)
	if err := errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	b.c = newConn(b.l)
	b.c.s = b.l.socket(b.c, nc, 0, false)
	b.s = b.c.s.(*tlsSocket)
	unix.SetsockoptInt(b.s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<10)
	t.Cleanup(func() { b.l.poll.close(); raw.Close() })
	return b
}

// tcpPair is a connection. What is not read of it does not take much of the kernel.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	x, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	x.(*net.TCPConn).SetReadBuffer(16 << 10)
	y, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return x.(*net.TCPConn), y.(*net.TCPConn)
}

// wait waits until the descriptor is ready, and tells the socket as a poller would.
func (b *bare) wait(events int16) {
	b.t.Helper()
	fds := []unix.PollFd{{Fd: int32(b.s.fd), Events: events}}
	for {
		n, err := unix.Poll(fds, int(patience/time.Millisecond))
		if err == unix.EINTR {
			continue
		}
		if n == 0 || err != nil {
			b.t.Fatalf("nothing happened: %v", err)
		}
		break
	}
	if fds[0].Revents&unix.POLLOUT != 0 {
		b.s.writable()
	}
	if fds[0].Revents&unix.POLLIN != 0 {
		b.s.empty = false
	}
}

// clean holds that the socket has no memory.
func (b *bare) clean() {
	b.t.Helper()
	if s := b.s; s.own != nil || s.link.in != nil || s.link.out != nil {
		b.t.Errorf("an idle socket holds %d, %d and %d bytes", cap(s.own), len(s.link.in), cap(s.link.out))
	}
}

// TestTLSSocketReads reads a stream that comes in records of all sizes and is cut up in any way, into buffers of all sizes.
func TestTLSSocketReads(t *testing.T) {
	b := newBare(t)
	random := rand.New(rand.NewPCG(1, 2))
	sizes := []int{1, 2, 100, 4 << 10, 20_000, 64 << 10}
	size := func() int { return 1 + random.IntN(sizes[random.IntN(len(sizes))]) }
	b.held.through = false
	sent, got := &pattern{size: 1 << 30}, 0
	p := make([]byte, 64<<10)
	for range 300 {
		if _, err := io.CopyN(b.peer, sent, int64(size())); err != nil {
			t.Fatal(err)
		}
		if random.IntN(3) == 0 {
			continue
		}
		for len(b.held.held) > 0 {
			n := min(len(b.held.held), size())
			if _, err := b.held.Conn.Write(b.held.held[:n]); err != nil {
				t.Fatal(err)
			}
			b.held.held = b.held.held[n:]
			b.wait(unix.POLLIN)
			for {
				n, err := b.s.read(p[:size()])
				if err == errAgain {
					break
				}
				if err != nil || n == 0 {
					t.Fatalf("%d and %v at %d", n, err, got)
				}
				if !isPattern(p[:n], got) {
					t.Fatalf("bytes %d to %d are wrong", got, got+n)
				}
				if got += n; cap(b.s.own) > 80<<10 {
					t.Fatalf("it holds %d bytes", cap(b.s.own))
				}
			}
		}
		if got != sent.at {
			t.Fatalf("%d of %d bytes came", got, sent.at)
		}
		b.clean()
	}
}

// fill writes until nothing is taken any more.
func (b *bare) fill(from *pattern) {
	b.t.Helper()
	p := make([]byte, 200<<10)
	for {
		n, _ := from.Read(p)
		took, err := b.s.write(p[:n])
		if err != nil {
			b.t.Fatal(err)
		}
		from.at -= n - took
		if b.s.waiting() > tlsPiece+5*recordCost {
			b.t.Fatalf("%d bytes wait", b.s.waiting())
		}
		if took == 0 {
			return
		}
	}
}

// TestTLSSocketWrites writes faster than the peer reads: what waits is bounded, and nothing gets lost, whatever ends the connection.
func TestTLSSocketWrites(t *testing.T) {
	const size = 5_000_000
	for _, e := range []struct {
		name string
		end  func(b *bare)
	}{
		{"closed", func(b *bare) { b.s.close(false) }},
		{"half-closed", func(b *bare) { b.s.closeWrite() }},
		{"half-closed, then closed", func(b *bare) { b.s.closeWrite(); b.s.close(false) }},
	} {
		t.Run(e.name, func(t *testing.T) {
			b := newBare(t)
			from := &pattern{size: size}
			b.fill(from)
			if b.s.flushed() || b.s.waiting() == 0 {
				t.Error("all has left, they say")
			}
			read := make(chan error)
			total := 0
			go func() {
				all, err := io.ReadAll(b.peer)
				total = len(all)
				if !isPattern(all, 0) {
					err = errors.New("wrong bytes")
				}
				read <- err
			}()
			for from.at < size {
				b.wait(unix.POLLOUT)
				b.fill(from)
			}
			e.end(b)
			for b.s.waiting() > 0 {
				b.wait(unix.POLLOUT)
			}
			if err := <-read; err != nil || total != size {
				t.Errorf("the peer read %d of %d bytes and %v", total, size, err)
			}
			b.clean()
		})
	}
	for _, e := range []struct {
		name string
		end  func(b *bare)
	}{
		{"reset", func(b *bare) { b.s.close(true) }},
		{"closed, but it takes too long", func(b *bare) { b.s.close(false); b.s.timer.due(0) }},
		{"closed, but the loop ends", func(b *bare) {
			b.s.close(false)
			b.l.poll.close()
			b.l.poll.table = nil
			b.l.poll.ep, b.l.poll.waker = -1, -1
		}},
	} {
		t.Run(e.name, func(t *testing.T) {
			b := newBare(t)
			b.fill(&pattern{size: size})
			e.end(b)
			if _, err := io.ReadAll(b.peer); err == nil || isTimeout(err) {
				t.Errorf("the peer read to %v, want a reset", err)
			}
			b.clean()
		})
	}
}

// TestTLSSocketRecords holds that what is written in one turn becomes as few records as can be.
func TestTLSSocketRecords(t *testing.T) {
	for _, e := range []struct {
		name  string
		write func(c *conn)
		want  []int
	}{
		{"many small ones", func(c *conn) {
			for range 1000 {
				c.push([]byte("0123456789"))
			}
		}, []int{10_000}},
		{"a head and a large body", func(c *conn) {
			c.push(make([]byte, 100))
			c.push(make([]byte, 60_000))
		}, nil},
		{"a large body", func(c *conn) { c.push(make([]byte, 40_000)) }, []int{maxPlain, maxPlain, 40_000 - 2*maxPlain}},
	} {
		t.Run(e.name, func(t *testing.T) {
			b := newBare(t)
			b.l.turn()
			unix.SetsockoptInt(b.s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
			e.write(b.c)
			b.l.settle()
			b.s.closeWrite()
			got := make(chan []int)
			go func() {
				var sizes []int
				all, _ := io.ReadAll(b.peer.raw)
				for len(all) > 0 {
					n := record(all)
					sizes = append(sizes, n-recordHead-1-16)
					all = all[n:]
				}
				got <- sizes
			}()
			for b.s.waiting() > 0 {
				b.wait(unix.POLLOUT)
			}
			sizes := <-got
			sizes = sizes[:len(sizes)-1] // the close_notify
			sum := 0
			for _, n := range sizes {
				sum += n
			}
			if e.want != nil && !slices.Equal(sizes, e.want) || len(sizes) > sum/maxPlain+2 {
				t.Errorf("records of %v, want %v", sizes, e.want)
			}
		})
	}
}

// TestTLSSocketEnds holds how a connection ends for who reads it, and that it keeps ending in this way.
func TestTLSSocketEnds(t *testing.T) {
	for _, e := range []struct {
		name string
		end  func(b *bare)
		want error // nil: any but io.EOF
	}{
		{"a close_notify", func(b *bare) { b.peer.CloseWrite() }, io.EOF},
		{"a close_notify and a FIN", func(b *bare) { b.peer.Close() }, io.EOF},
		{"a FIN", func(b *bare) { b.peer.cut() }, io.ErrUnexpectedEOF},
		{"a FIN in a record", func(b *bare) { io.WriteString(b.held.Conn, "\x17\x03\x03\x00\x40xxx"); b.peer.cut() }, io.ErrUnexpectedEOF},
		{"a FIN in the head of a record", func(b *bare) { io.WriteString(b.held.Conn, "\x17\x03"); b.peer.cut() }, io.ErrUnexpectedEOF},
		{"a reset", func(b *bare) { b.peer.SetLinger(0); b.peer.Close() }, nil},
		{"garbage", func(b *bare) { io.WriteString(b.held.Conn, "\x17\x03\x03\x00\x20"+strings.Repeat("x", 32)) }, nil},
		{"a record that is too long", func(b *bare) { io.WriteString(b.held.Conn, "\x17\x03\x03\xff\xff") }, nil},
	} {
		for _, before := range []string{"", "hello"} {
			t.Run(e.name+" after "+before, func(t *testing.T) {
				b := newBare(t)
				io.WriteString(b.peer, before)
				e.end(b)
				var got []byte
				var err error
				p := make([]byte, 100)
				for n := 0; err == nil || err == errAgain; {
					if err == errAgain {
						b.wait(unix.POLLIN)
					}
					n, err = b.s.read(p)
					got = append(got, p[:n]...)
				}
				if string(got) != before && !strings.HasPrefix(e.name, "a reset") {
					t.Errorf("got %q, want %q", got, before)
				}
				if e.want == io.EOF && err != io.EOF || e.want != nil && !errors.Is(err, e.want) || e.want == nil && errors.Is(err, io.EOF) {
					t.Errorf("it ended with %v, want %v", err, e.want)
				}
				b.s.empty = false
				if _, again := b.s.read(p); e.want != nil && again != err || again == errAgain || e.want == nil && again == io.EOF {
					t.Errorf("it ended with %v, and then with %v", err, again)
				}
				if b.s.alive() {
					t.Error("it is alive, they say")
				}
			})
		}
	}
}

// TestTLSSocketAlive holds that what came for TLS alone is no reason not to use a connection.
func TestTLSSocketAlive(t *testing.T) {
	b := newBare(t)
	if !b.s.alive() {
		t.Error("a fresh connection is not alive")
	}
	s := newSealer(&peer{Conn: b.peer, w: &world{t: t}}, "CLIENT_TRAFFIC_SECRET_0")
	s.send(s.update(nil, 2))
	b.wait(unix.POLLIN)
	if !b.s.alive() {
		t.Error("after a KeyUpdate it is not alive")
	}
	s.send(s.seal(nil, typeApplication, "")[:10])
	b.wait(unix.POLLIN)
	if !b.s.alive() {
		t.Error("with half a record it is not alive")
	}
	b = newBare(t)
	io.WriteString(b.peer, "x")
	b.wait(unix.POLLIN)
	if b.s.alive() {
		t.Error("though something came it is alive")
	}
}

// TestTLSSocketFlood holds that who makes TLS answer, and reads no answer, is not read.
func TestTLSSocketFlood(t *testing.T) {
	b := newBare(t)
	s := newSealer(&peer{Conn: b.peer, w: &world{t: t}}, "CLIENT_TRAFFIC_SECRET_0")
	const batch, most = 300, 100
	sent, got := 0, 0
	read := func() {
		b.wait(unix.POLLIN)
		for {
			n, err := b.s.read(b.l.rbuf)
			if got += n; err == errAgain {
				return
			} else if err != nil {
				t.Fatal(err)
			}
			if b.s.waiting() > tlsWaiting+tlsPiece {
				t.Fatalf("%d bytes wait", b.s.waiting())
			}
		}
	}
	for range most {
		var raw []byte
		for range batch {
			raw = s.seal(s.update(raw, 1), typeApplication, "x")
			sent++
		}
		s.send(raw)
		if read(); b.s.held {
			break
		}
	}
	if !b.s.held {
		t.Fatalf("after %d updates it is still read, %d bytes wait", sent, b.s.waiting())
	}
	b.l.todo = b.l.todo[:0]
	b.c.queued = false
	go io.Copy(io.Discard, b.peer.raw)
	for b.s.held {
		b.wait(unix.POLLOUT)
	}
	if !b.c.queued {
		t.Error("the connection was not stepped when it could be read again")
	}
	for got < sent {
		read()
	}
	if b.s.waiting() == 0 {
		b.clean()
	}
}

// TestS9KeyUpdates: who does nothing but change keys is turned away, after some records, by crypto/tls.
func TestS9KeyUpdates(t *testing.T) {
	b := newBare(t)
	s := newSealer(&peer{Conn: b.peer, w: &world{t: t}}, "CLIENT_TRAFFIC_SECRET_0")
	var raw []byte
	for range 100 {
		raw = s.update(raw, 1)
	}
	s.send(raw)
	for {
		b.wait(unix.POLLIN)
		if n, err := b.s.read(b.l.rbuf); n > 0 || err != nil && err != errAgain {
			if n > 0 || !strings.Contains(err.Error(), "too many non-advancing records") {
				t.Errorf("read %d and %v", n, err)
			}
			return
		}
	}
}

// TestTLSSocketAllocations holds that we add nothing to what crypto/tls allocates itself, which is one object of 24 bytes for each time
// that it asks for bytes.
func TestTLSSocketAllocations(t *testing.T) {
	message := bytes.Repeat([]byte("x"), 300)
	p := make([]byte, 4<<10)
	exchange := func(read, write, answer func([]byte) (int, error), peer io.Reader) func() {
		return func() {
			write(message)
			n, err := read(p)
			if n != len(message) || err != nil {
				t.Fatalf("read %d and %v", n, err)
			}
			answer(message)
			if n, err := peer.Read(p); n != len(message) || err != nil {
				t.Fatalf("the peer read %d and %v", n, err)
			}
		}
	}
	a, other := tcpPair(t)
	client, server := tls.Client(a, testTLS()), tls.Server(other, testTLS())
	go client.Handshake()
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	defer server.Close()
	theirs := allocations(exchange(server.Read, client.Write, server.Write, client))
	b := newBare(t)
	b.peer.NetConn().(*Link).way = linkPass // as client is
	read := func(p []byte) (int, error) { b.wait(unix.POLLIN); return b.s.read(p) }
	ours := allocations(exchange(read, b.peer.Write, b.s.write, b.peer))
	if t.Logf("crypto/tls: %.2f, over us: %.2f", theirs, ours); ours > theirs+.3 { // its pool forgets some under the race detector
		t.Errorf("%.2f allocations for an exchange, want %.2f, as for two of crypto/tls", ours, theirs)
	}
	b.clean()
}

// allocations is testing.AllocsPerRun without collections, which empty the pools of crypto/tls, and with fractions.
func allocations(f func()) float64 {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	const n = 2000
	f()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		f()
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / n
}

// TestEngineProcess is the process that BenchmarkTLS measures: an engine, with TLS on both sides, driven as it is told.
func TestEngineProcess(t *testing.T) {
	how, upstream, ok := strings.Cut(os.Getenv("ENGINE_PROCESS"), " ")
	if !ok {
		t.Skip("BenchmarkTLS starts it")
	}
	w := &world{t: t, s: &scenario{}}
	e, err := New(Config{Handler: &forward{w}, Portable: how == "goroutines"})
	if err != nil {
		t.Fatal(err)
	}
	w.e = e
	w.up = e.Upstream(UpstreamConfig{Name: "servers", Dial: secured{tcpListener{addr: upstream}, "servers"}.dial})
	ctx, stop := context.WithCancel(t.Context())
	go func() { io.Copy(io.Discard, os.Stdin); stop() }()
	ln := listen(t, how+" TLS", "clients")
	fmt.Println("listening at", ln.Addr())
	go e.Serve(ctx, ln, nil)
	e.Run(ctx)
}

// forward sends everything to the servers.
type forward struct{ *world }

func (f *forward) Decide(c *Call) { c.Decision.Upstream = f.up }
func (f *forward) Done(*Call)     {}

// BenchmarkTLS measures what a request costs an engine of its own process, over TLS from clients and to a server, in event loops and by
// goroutines: cpu-us/op is user and system time.
func BenchmarkTLS(b *testing.B) {
	for _, how := range []string{"loops", "goroutines"} {
		for _, n := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s %d clients", how, n), func(b *testing.B) { benchTLS(b, how, n) })
		}
	}
}

func benchTLS(b *testing.B, how string, n int) {
	back := listen(b, "goroutines TLS", "servers")
	defer back.Close()
	go answerAll(back)
	cmd := exec.Command(os.Args[0], "-test.run=^TestEngineProcess$")
	cmd.Env = append(os.Environ(), "ENGINE_PROCESS="+how+" "+back.Addr().String())
	stdin, _ := cmd.StdinPipe()
	stdout, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()
	var addr string
	if _, err := fmt.Fscanf(stdout, "listening at %s\n", &addr); err != nil {
		b.Fatal(err)
	}
	work := make(chan struct{}, 100)
	var clients sync.WaitGroup
	for range n {
		nc, err := secured{tcpListener{addr: addr}, "clients"}.dial(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		clients.Go(func() { benchClient(b, nc, work) })
	}
	for range 1000 { // opens connections
		work <- struct{}{}
	}
	before := timeOf(b, cmd.Process.Pid)
	b.ResetTimer()
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	clients.Wait()
	b.StopTimer()
	b.ReportMetric(float64(timeOf(b, cmd.Process.Pid)-before)/float64(b.N)/1e3, "cpu-us/op")
}

// answerAll is a server for benchClient.
func answerAll(ln net.Listener) {
	answer := append([]byte("HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n"), benchBody...)
	for {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			buf := make([]byte, 4<<10)
			for {
				n, err := nc.Read(buf) // a request is one record, as it was for the engine
				if err != nil || !bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
					nc.Close()
					return
				}
				nc.Write(answer)
			}
		}()
	}
}

// timeOf is the time that a process has used.
func timeOf(b *testing.B, pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * time.Second / 100
}

// BenchmarkTLSIdle measures what connections without a request cost: bytes/conn is what the engine holds for each beside its tls.Conn,
// tls-bytes/conn what that holds.
func BenchmarkTLSIdle(b *testing.B) {
	for _, how := range []string{"loops", "goroutines"} {
		b.Run(how, func(b *testing.B) {
			const n = 1000
			w := newWorld(b, how, &scenario{decide: func(_ *world, c *Call) { c.Decision.Answer.Status = 204 }})
			defer w.end()
			for b.Loop() {
				start := inUse()
				var clients, servers []net.Conn
				for range n {
					x, y := tcpPair(b)
					c := tls.Client(x, testTLS())
					go c.Handshake()
					s := tls.Server(NewLink(y), testTLS())
					if err := s.Handshake(); err != nil {
						b.Fatal(err)
					}
					clients, servers = append(clients, c), append(servers, s)
				}
				shaken := inUse()
				for _, s := range servers {
					w.e.Add(s, nil)
				}
				clear(servers)
				for _, c := range clients {
					p := w.peer(c)
					p.send(get)
					p.expect("HTTP/1.1 204 No Content\r\n\r\n")
					<-w.calls
				}
				b.ReportMetric((inUse()-shaken)/n, "bytes/conn")
				b.ReportMetric((shaken-start)/n/2, "tls-bytes/conn")
				for _, c := range clients {
					c.Close()
				}
			}
		})
	}
}

func inUse() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}
