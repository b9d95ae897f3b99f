package http2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// benchFields are of a browser's request, about as many and as long as they are.
var benchFields = []Field{
	field("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
	field("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
	field("accept-language", "en-US,en;q=0.5"),
	field("accept-encoding", "gzip, deflate, br, zstd"),
	field("cookie", "session=3f786850e387550fdab836ed7e6dc881de23001b; theme=dark; consent=yes"),
	field("content-type", "application/json"),
	field("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
}

var benchReply = []Field{
	field("date", "Mon, 02 Nov 2026 15:04:05 GMT"),
	field("server", "nginx/1.26.2"),
	field("content-type", "application/json; charset=utf-8"),
	field("cache-control", "no-cache, no-store, must-revalidate"),
	field("etag", `"33a64df551425fcc55e4d42a148795d9f25f89d4"`),
	field("vary", "Accept-Encoding"),
}

func benchRequest() *Request {
	return &Request{Method: []byte("POST"), Scheme: []byte("http"), Authority: []byte("orders.default.service.mesh"),
		Path: []byte("/api/v1/orders?limit=50&after=c2Vjb25k"), Length: -1, Trailers: true}
}

// trace makes the trace id of a request, which none had before.
func trace(id []byte, n int) {
	for i := 34; i > 26; i-- {
		id[i] = "0123456789abcdef"[n&15]
		n >>= 4
	}
}

// Once a connection is warm nothing is allocated. PERFORMANCE: 0 on h2 after warm-up.
func TestNoAllocations(t *testing.T) {
	w := newWire(t, Options{Fields: 20}, Options{Fields: 20})
	chunk := make([]byte, 100<<10)
	r := benchRequest()
	fields := append([]Field{}, benchFields...)
	fields = append(fields, field("x-token", "t"))
	fields[len(fields)-1].Secret = true
	sum := []Field{field("Grpc-Status", "0")}
	large := make([]Field, 30)
	for i := range large {
		large[i] = field("x", "yyyy")
	}
	long := append([]Field{}, field("x", strings.Repeat("y", 3*maxFrame)))
	kinds := map[Kind]int{}
	w.server.each = func(ev Event) {
		kinds[ev.Kind]++
		switch s := ev.Stream; ev.Kind {
		case EventRequest:
			w.server.Respond(s, 103, -1, sum, false)
			w.server.Respond(s, 200, -1, benchReply, false)
		case EventData:
			w.server.Take(s, len(ev.Data))
			w.server.Data(s, ev.Data, false)
		case EventTooLarge, EventReset:
			w.server.Close(s, Cancel)
			return
		}
		if ev.End {
			w.server.Trailers(ev.Stream, sum)
			w.server.Close(ev.Stream, NoError)
		}
	}
	w.client.each = func(ev Event) {
		if ev.Kind == EventData {
			w.client.Take(ev.Stream, len(ev.Data))
		}
		if ev.Stream != nil && ev.Stream.Ended() {
			w.client.Close(ev.Stream, Cancel)
		}
	}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	malformed := newPeer().frame(typeHeaders, flagEnd|flagEndHeaders, 1, literal(getFields("connection", "x", "X", "\x00")...)).Bytes()
	n := 0
	for _, c := range []struct {
		name string
		f    func()
	}{
		{"request", func() { w.open(r, fields, true) }},
		{"request with a field that is new", func() {
			trace(fields[6].Value, n)
			n++
			w.open(r, fields, true)
		}},
		{"body and trailers", func() {
			s := w.open(r, fields, false)
			for rest := chunk; len(rest) > 0; {
				n, err := w.client.Data(s, rest, false)
				must(err)
				rest = rest[n:]
				w.settle()
			}
			b := w.client.Reserve(s, 10)
			must(w.client.Commit(s, len(b), false))
			must(w.client.Trailers(s, sum))
		}},
		{"many streams", func() {
			for range 100 {
				w.open(r, fields, true)
			}
		}},
		{"head in many frames", func() { w.open(r, long, true) }},
		{"head over the limits", func() { w.open(r, large, true) }},
		{"cancelled", func() {
			s := w.open(r, fields, false)
			w.client.Close(s, Cancel)
		}},
		{"malformed", func() {
			binary.BigEndian.PutUint32(malformed[5:], w.client.nextID)
			w.client.nextID += 2
			w.client.Out = append(w.client.Out, malformed...)
		}},
		{"ping", func() { w.client.Ping(7) }},
	} {
		one := func() { c.f(); w.settle(); w.client.patience, w.server.patience = patience, patience }
		for range 100 {
			one()
		}
		if n := testing.AllocsPerRun(20, one); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
		if w.client.Len() != 0 || w.server.Len() != 0 {
			t.Errorf("%s: %d and %d streams are left", c.name, w.client.Len(), w.server.Len())
		}
	}
	for _, k := range []Kind{EventRequest, EventData, EventTrailers, EventTooLarge, EventReset, EventRefused} {
		if kinds[k] == 0 {
			t.Errorf("no event %d was seen", k)
		}
	}
}

// benchHeads are requests of one connection, each with a trace id of its own, as the library compresses them. They can be read over and
// over: the first one clears the table.
func benchHeads() (frames [][]byte) {
	p := newPeer()
	p.enc.SetMaxDynamicTableSize(0)
	p.enc.SetMaxDynamicTableSize(tableSize)
	r := benchRequest()
	kv := []string{":method", string(r.Method), ":scheme", string(r.Scheme), ":path", string(r.Path), ":authority", string(r.Authority), "te", "trailers"}
	for _, f := range benchFields {
		kv = append(kv, string(f.Name), string(f.Value))
	}
	for i := range 256 {
		id := []byte(kv[len(kv)-1])
		trace(id, i)
		kv[len(kv)-1] = string(id)
		p.Buffer.Reset()
		frames = append(frames, bytes.Clone(p.head(1, true, kv...).Bytes()))
	}
	return frames
}

// BenchmarkReadHead reads the head of a request. Ours begins and ends a stream, too.
func BenchmarkReadHead(b *testing.B) {
	frames := benchHeads()
	b.Run("http2", func(b *testing.B) {
		b.ReportAllocs()
		c := NewServer(Options{}, new(Scratch))
		c.Next([]byte(Preface))
		c.Next(newPeer().settings().Bytes())
		i, id := 0, uint32(1)
		for b.Loop() {
			f := frames[i&255]
			binary.BigEndian.PutUint32(f[5:], id)
			ev, n, err := c.Next(f)
			if ev.Kind != EventRequest || n != len(f) || err != nil {
				b.Fatal(ev.Kind, n, err)
			}
			c.Close(ev.Stream, Cancel)
			c.Out = c.Out[:0]
			i, id = i+1, id+2
		}
	})
	b.Run("x-net", func(b *testing.B) {
		b.ReportAllocs()
		in := new(bytes.Reader)
		fr := xhttp2.NewFramer(nil, in)
		fr.ReadMetaHeaders = hpack.NewDecoder(tableSize, nil)
		fr.SetReuseFrames()
		i := 0
		for b.Loop() {
			in.Reset(frames[i&255])
			f, err := fr.ReadFrame()
			if err != nil || len(f.(*xhttp2.MetaHeadersFrame).Fields) != 12 {
				b.Fatal(f, err)
			}
			i++
		}
	})
}

// BenchmarkWriteHead writes the head of a request. Ours begins and ends a stream, too; the library is given strings.
func BenchmarkWriteHead(b *testing.B) {
	r := benchRequest()
	b.Run("http2", func(b *testing.B) {
		b.ReportAllocs()
		c := NewClient(Options{}, new(Scratch))
		fields := append([]Field{}, benchFields...)
		id := bytes.Clone(fields[6].Value)
		fields[6].Value = id
		n, size := 0, 0
		for b.Loop() {
			trace(id, n)
			c.Out = c.Out[:0]
			s, err := c.Open(r, fields, true)
			if err != nil {
				b.Fatal(err)
			}
			size = len(c.Out)
			c.Close(s, Cancel)
			n++
		}
		b.ReportMetric(float64(size), "wire-B")
	})
	b.Run("x-net", func(b *testing.B) {
		b.ReportAllocs()
		var out, block bytes.Buffer
		fr, enc := xhttp2.NewFramer(&out, nil), hpack.NewEncoder(&block)
		list := []hpack.HeaderField{{Name: ":method", Value: string(r.Method)}, {Name: ":scheme", Value: string(r.Scheme)},
			{Name: ":path", Value: string(r.Path)}, {Name: ":authority", Value: string(r.Authority)}, {Name: "te", Value: "trailers"}}
		for _, f := range benchFields {
			list = append(list, hpack.HeaderField{Name: string(f.Name), Value: string(f.Value)})
		}
		id := []byte(list[len(list)-1].Value)
		n := 0
		for b.Loop() {
			trace(id, n)
			list[len(list)-1].Value = string(id)
			out.Reset()
			block.Reset()
			for _, f := range list {
				enc.WriteField(f)
			}
			if err := fr.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
				b.Fatal(err)
			}
			n++
		}
		b.ReportMetric(float64(out.Len()), "wire-B")
	})
}

// BenchmarkHuffman reads a browser's name for itself.
func BenchmarkHuffman(b *testing.B) {
	in := hpack.AppendHuffmanString(nil, string(benchFields[0].Value))
	b.Run("http2", func(b *testing.B) {
		var dst []byte
		for b.Loop() {
			var ok bool
			if dst, _, ok = appendHuffman(dst[:0], in, 1000); !ok || len(dst) != len(benchFields[0].Value) {
				b.Fatal(string(dst))
			}
		}
	})
	b.Run("x-net", func(b *testing.B) {
		var dst bytes.Buffer
		for b.Loop() {
			dst.Reset()
			if _, err := hpack.HuffmanDecode(&dst, in); err != nil || dst.Len() != len(benchFields[0].Value) {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkConnection is what a connection costs that has carried one request: its bytes are what an idle one holds.
func BenchmarkConnection(b *testing.B) {
	b.ReportAllocs()
	x := new(Scratch)
	in := append([]byte(Preface), newPeer().settings().Bytes()...)
	in = append(in, benchHeads()[0]...)
	for b.Loop() {
		c := NewServer(Options{}, x)
		for at := 0; ; {
			ev, n, err := c.Next(in[at:])
			if err != nil {
				b.Fatal(err)
			}
			if at += n; ev.Kind == EventRequest {
				c.Respond(ev.Stream, 200, -1, benchReply, true)
				c.Close(ev.Stream, NoError)
				break
			}
		}
	}
}

const (
	batch  = 32 // requests at once
	upload = 1 << 20
)

// discard reads bodies, and answers at their end.
func discard(e *engine, ev Event) {
	switch ev.Kind {
	case EventData:
		e.Take(ev.Stream, len(ev.Data))
	case EventReset:
		e.Close(ev.Stream, Cancel)
		return
	}
	if ev.End {
		e.Respond(ev.Stream, 200, -1, benchReply, true)
		e.Close(ev.Stream, NoError)
	}
}

// ours measures rounds of requests, each with a body of size bytes, between two of our ends over TCP, a goroutine each.
func ours(b *testing.B, requests, size int) {
	n, err := net.Dial("tcp", listen(b, Options{}, discard, func(err error) { b.Error(err) }))
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	left := 0
	payload := make([]byte, size)
	push := func(e *engine, s *Stream) {
		if rest, ok := s.Owner.(*int); ok && *rest > 0 {
			k, err := e.Data(s, payload[size-*rest:], true)
			if err != nil {
				b.Fatal(err)
			}
			*rest -= k
		}
	}
	e := newEngine(n, true, Options{}, func(e *engine, ev Event) {
		switch s := ev.Stream; {
		case ev.Kind == EventWritable && s != nil:
			push(e, s)
		case ev.Kind == EventWritable || ev.Kind == EventSettings:
			for s := range e.Streams() {
				push(e, s)
			}
		case ev.Kind == EventResponse:
			e.Close(s, Cancel)
			left--
		}
	})
	r := benchRequest()
	rest := make([]int, requests)
	for b.Loop() {
		for i := range requests {
			s, err := e.Open(r, benchFields, size == 0)
			if err != nil {
				b.Fatal(err)
			}
			rest[i], s.Owner = size, &rest[i]
			push(e, s)
		}
		for left = requests; left > 0; {
			if err := e.turn(); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// theirs measures the same with net/http.
func theirs(b *testing.B, requests, size int) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			b.Error(err)
		}
		for _, f := range benchReply {
			w.Header().Set(string(f.Name), string(f.Value))
		}
		w.WriteHeader(200)
	}))
	server.Config.Protocols = onlyHTTP2()
	server.Start()
	defer server.Close()
	c := httpClient(b)
	payload := make([]byte, size)
	one := func() {
		var body io.Reader
		if size > 0 {
			body = bytes.NewReader(payload)
		}
		q, err := http.NewRequest("POST", server.URL+"/api/v1/orders?limit=50&after=c2Vjb25k", body)
		if err != nil {
			b.Error(err)
			return
		}
		for _, f := range benchFields {
			q.Header.Set(string(f.Name), string(f.Value))
		}
		r, err := c.Do(q)
		if err != nil {
			b.Error(err)
			return
		}
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
	}
	one()
	var wg sync.WaitGroup
	for b.Loop() {
		for range requests {
			wg.Go(one)
		}
		wg.Wait()
	}
}

// BenchmarkExchange sends requests without bodies over a TCP connection to an end that answers them, both in this process.
func BenchmarkExchange(b *testing.B) {
	for _, c := range []struct {
		name string
		f    func(b *testing.B, requests, size int)
	}{{"http2", ours}, {"net-http", theirs}} {
		for _, n := range []int{1, batch} {
			b.Run(fmt.Sprintf("%s/%d-at-once", c.name, n), func(b *testing.B) {
				b.ReportAllocs()
				c.f(b, n, 0)
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/request")
			})
		}
	}
}

// BenchmarkUpload sends a body of 1 MiB over a TCP connection.
func BenchmarkUpload(b *testing.B) {
	for _, c := range []struct {
		name string
		f    func(b *testing.B, requests, size int)
	}{{"http2", ours}, {"net-http", theirs}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(upload)
			c.f(b, 1, upload)
		})
	}
}
