package http2

import (
	"strings"
	"testing"
)

func request(method string) *Request {
	r := &Request{Method: []byte(method), Scheme: []byte("http"), Authority: []byte("a"), Path: []byte("/"), Length: -1}
	if method == "CONNECT" {
		r.Authority, r.Path, r.Scheme = []byte("a:1"), nil, nil
	}
	return r
}

// opens begins requests of these methods; with a "+" they have a body.
func opens(t *testing.T, methods ...string) func(c *Conn) {
	return func(c *Conn) {
		for _, m := range methods {
			method, body := strings.CutSuffix(m, "+")
			if _, err := c.Open(request(method), nil, !body); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (p *peer) response(id uint32, end bool, kv ...string) *peer {
	return p.head(id, end, append([]string{":status", "200"}, kv...)...)
}

// take is what a caller does that only reads.
func take(c *Conn, ev Event) {
	if ev.Kind == EventData {
		c.Take(ev.Stream, len(ev.Data))
	}
	end(c, ev)
}

func TestClient(t *testing.T) {
	type clientRow struct {
		row
		open func(c *Conn)
	}
	get, post := opens(t, "GET"), opens(t, "POST+")
	for _, r := range []clientRow{
		{row{law: "§8.1", name: "response", in: func(p *peer) { p.settings().response(1, false, "x", "y").data(1, "abc", true) }, do: take,
			want: "response 1 200 x=y; data 1 abc end"}, get},
		{row{law: "§8.1", name: "response before the settings", in: func(p *peer) { p.response(1, true) }, do: take, want: connError(0, errFirst)}, get},
		{row{law: "§8.1", name: "trailers", in: func(p *peer) { p.settings().response(1, false).data(1, "abc", false).head(1, true, "grpc-status", "0") },
			do: take, want: "response 1 200; data 1 abc; trailers 1 grpc-status=0 end"}, get},
		{row{law: "B24", name: "trailers alone", in: func(p *peer) { p.settings().response(1, true, "grpc-status", "5") }, do: take,
			want: "response 1 200 grpc-status=5 end"}, get},
		{row{law: "B14 §8.1", name: "interim responses", in: func(p *peer) {
			p.settings().head(1, false, ":status", "100").head(1, false, ":status", "103", "link", "x").response(1, true)
		}, do: take, want: "interim 1 100; interim 1 103 link=x; response 1 200 end"}, post},
		{row{law: "§8.1", name: "interim that ends", in: func(p *peer) { p.settings().head(1, true, ":status", "100") },
			want: streamError(1, faultInterim)}, get},
		{row{law: "B7", name: "endless interim responses", in: func(p *peer) { flood(p.settings(), func() { p.head(1, false, ":status", "100") }) },
			want: "249 times interim 1 100; " + connError(0, errFlood)}, get},
		{row{law: "§8.6", name: "101", in: func(p *peer) { p.settings().head(1, false, ":status", "101") }, want: streamError(1, faultStatus)}, get},
		{row{law: "§8.3.2", name: "no :status", in: func(p *peer) { p.settings().head(1, false, "x", "y") }, want: streamError(1, faultStatus)}, get},
		{row{law: "§8.3.2", name: "short :status", in: func(p *peer) { p.settings().head(1, false, ":status", "20") }, want: streamError(1, faultStatus)}, get},
		{row{law: "§8.3.2", name: "long :status", in: func(p *peer) { p.settings().head(1, false, ":status", "2000") }, want: streamError(1, faultStatus)}, get},
		{row{law: "§8.3.2", name: ":status that is no number", in: func(p *peer) { p.settings().head(1, false, ":status", "+20") }, want: streamError(1, faultStatus)}, get},
		{row{law: "§8.3", name: ":path in a response", in: func(p *peer) { p.settings().response(1, true, ":path", "/") }, want: streamError(1, faultPseudo)}, get},
		{row{law: "§8.2", name: "upper case", in: func(p *peer) { p.settings().frame(typeHeaders, flagEndHeaders, 1, literal(":status", "200", "X", "y")) },
			want: streamError(1, faultName)}, get},
		{row{law: "§8.2.2", name: "connection", in: func(p *peer) { p.settings().response(1, true, "connection", "close") }, want: streamError(1, faultHop)}, get},
		{row{law: "B19", name: "large head", in: func(p *peer) { p.settings().response(1, true, repeat(101, "x", "y")...) }, want: streamError(1, errHeadSize)}, get},
		{row{law: "S33", name: "underscores pass", in: func(p *peer) { p.settings().response(1, true, "x_y", "a") }, do: take, want: "response 1 200 x_y=a end"}, get},
		{row{law: "§8.1.1", name: "length that agrees", in: func(p *peer) { p.settings().response(1, false, "content-length", "3").data(1, "abc", true) }, do: take,
			want: "response 1 200 length=3; data 1 abc end"}, get},
		{row{law: "B18 S22", name: "body too long", in: func(p *peer) { p.settings().response(1, false, "content-length", "3").data(1, "abcd", true) }, do: take,
			want: "response 1 200 length=3; " + streamError(1, errBodyLong)}, get},
		{row{law: "B18 S22", name: "body too short", in: func(p *peer) { p.settings().response(1, false, "content-length", "3").data(1, "ab", true) }, do: take,
			want: "response 1 200 length=3; " + streamError(1, errBodyShort)}, get},
		{row{law: "B18 S22", name: "no body at all", in: func(p *peer) { p.settings().response(1, true, "content-length", "3") },
			want: streamError(1, errBodyShort)}, get},
		{row{law: "B17", name: "HEAD", in: func(p *peer) { p.settings().response(1, true, "content-length", "3") }, do: take,
			want: "response 1 200 length=3 end"}, opens(t, "HEAD")},
		{row{law: "B17", name: "HEAD with an empty frame", in: func(p *peer) { p.settings().response(1, false, "content-length", "3").data(1, "", true) }, do: take,
			want: "response 1 200 length=3; data 1  end"}, opens(t, "HEAD")},
		{row{law: "B17", name: "HEAD with a body", in: func(p *peer) { p.settings().response(1, false, "content-length", "3").data(1, "abc", true) },
			want: "response 1 200 length=3; " + streamError(1, errBodyLong)}, opens(t, "HEAD")},
		{row{law: "B17", name: "204 with a body", in: func(p *peer) { p.settings().head(1, false, ":status", "204").data(1, "abc", true) },
			want: "response 1 204; " + streamError(1, errBodyLong)}, get},
		{row{law: "B17", name: "304 with a length", in: func(p *peer) { p.settings().head(1, true, ":status", "304", "content-length", "3") }, do: take,
			want: "response 1 304 length=3 end"}, get},
		{row{law: "B17", name: "304 with a body", in: func(p *peer) {
			p.settings().head(1, false, ":status", "304", "content-length", "3").data(1, "abc", true)
		},
			want: "response 1 304 length=3; " + streamError(1, errBodyLong)}, get},
		{row{law: "S20 S21", name: "CONNECT", in: func(p *peer) { p.settings().response(1, false, "content-length", "1").data(1, "abc", false) }, do: take,
			want: "response 1 200 length=1; data 1 abc"}, opens(t, "CONNECT+")},
		{row{law: "S20", name: "CONNECT refused", in: func(p *peer) {
			p.settings().head(1, false, ":status", "403", "content-length", "1").data(1, "abc", false)
		}, do: take,
			want: "response 1 403 length=1; " + streamError(1, errBodyLong)}, opens(t, "CONNECT+")},
		{row{law: "§8.1", name: "data before the head", in: func(p *peer) { p.settings().data(1, "abc", true) }, want: streamError(1, errNoHead)}, get},
		{row{law: "§8.1", name: "data after an interim head", in: func(p *peer) { p.settings().head(1, false, ":status", "100").data(1, "abc", true) },
			want: "interim 1 100; " + streamError(1, errNoHead)}, get},
		{row{law: "B15", name: "trailers that do not end", in: func(p *peer) { p.settings().response(1, false).head(1, false, "x", "y") },
			want: "response 1 200; " + streamError(1, faultTrailers)}, get},
		{row{law: "B15", name: "a second response", in: func(p *peer) { p.settings().response(1, false).response(1, false) },
			want: "response 1 200; " + streamError(1, faultPseudo)}, get},
		{row{law: "B3 §8.1", name: "an early response, the request is not read to its end", in: func(p *peer) { p.settings().response(1, true).reset(1, NoError) },
			do: take, want: "response 1 200 end; reset 1 NO_ERROR the peer reset the stream"}, post},
		{row{law: "B6", name: "refused", in: func(p *peer) { p.settings().reset(1, RefusedStream) }, do: take,
			want: "reset 1 REFUSED_STREAM the peer reset the stream retry"}, post},
		{row{law: "B6", name: "reset", in: func(p *peer) { p.settings().reset(1, InternalError) }, do: take,
			want: "reset 1 INTERNAL_ERROR the peer reset the stream"}, post},
		{row{law: "B6 §6.8", name: "the server goes away", in: func(p *peer) { p.settings().goAway(3, NoError).response(1, true).response(3, true) }, do: take,
			want: "go away 3 NO_ERROR; reset 5 REFUSED_STREAM " + errGone.Text + " retry; response 1 200 end; response 3 200 end"}, opens(t, "GET", "GET", "POST")},
		{row{law: "B6 §6.8", name: "the server warns, then goes away", in: func(p *peer) { p.settings().goAway(maxID, NoError).response(1, true).goAway(1, NoError) }, do: take,
			want: "go away 2147483647 NO_ERROR; response 1 200 end; go away 1 NO_ERROR; reset 3 REFUSED_STREAM " + errGone.Text + " retry; reset 5 REFUSED_STREAM " +
				errGone.Text + " retry"}, opens(t, "GET", "POST+", "POST")},
		{row{law: "§6.8", name: "the server takes back its word", in: func(p *peer) { p.settings().goAway(1, NoError).goAway(3, NoError) },
			want: "go away 1 NO_ERROR; " + connError(0, errGoAway)}, get},
		{row{law: "§6.6", name: "push", in: func(p *peer) { p.settings().frame(typePush, flagEndHeaders, 1, u32(2)) }, want: connError(0, errPush)}, get},
		{row{law: "§6.6", name: "push enabled by a server", in: func(p *peer) { p.settings(setPush, 1) }, want: connError(0, errSetPush)}, get},
		{row{law: "S6", name: "frame size 0", in: func(p *peer) { p.settings(setFrame, 0).response(1, true) }, want: connError(0, errSetFrame)}, get},
		{row{law: "§5.1.1", name: "stream of the server", in: func(p *peer) { p.settings().response(2, true) }, want: connError(0, errID)}, get},
		{row{law: "§5.1", name: "head on an idle stream", in: func(p *peer) { p.settings().response(3, true) }, want: connError(0, errIdle)}, get},
		{row{law: "§5.1", name: "data on an idle stream", in: func(p *peer) { p.settings().data(3, "abc", true) }, want: connError(0, errIdle)}, get},
		{row{law: "§5.1", name: "reset of an idle stream", in: func(p *peer) { p.settings().reset(2, Cancel) }, want: connError(0, errIdle)}, get},
		{row{law: "§5.1", name: "second head after the end", in: func(p *peer) { p.settings().response(1, true).response(1, true) }, do: take,
			want: "response 1 200 end; " + connError(0, errClosed)}, get},
		{row{law: "B4 §5.1", name: "what was on its way when we cancelled", in: func(p *peer) {
			p.settings().response(1, false, "x", "y").data(1, "abc", false).data(1, "def", false).head(1, true, "z", "w").response(3, true, "x", "y", "z", "w")
		}, do: func(c *Conn, ev Event) {
			if ev.Kind == EventResponse {
				c.Close(ev.Stream, Cancel)
			}
		}, want: "response 1 200 x=y; > RST 1 CANCEL; response 3 200 x=y z=w end"}, opens(t, "GET", "GET")},
	} {
		t.Run(r.law+" "+r.name, func(t *testing.T) {
			checkBoth(t, r.row, "", func(x *Scratch) *Conn {
				c := NewClient(r.o, x)
				r.open(c)
				return c
			})
		})
	}
}
