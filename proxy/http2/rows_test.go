package http2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
)

// end gives back a stream when it has ended, as a caller does that answers nothing.
func end(c *Conn, ev Event) {
	if ev.Stream != nil && ev.Stream.Ended() {
		c.Close(ev.Stream, Cancel)
	}
}

// answer answers each request when it is whole.
func answer(c *Conn, ev Event) {
	if ev.Kind == EventData {
		c.Take(ev.Stream, len(ev.Data))
	}
	if ev.Stream == nil {
		return
	}
	if ev.End {
		c.Respond(ev.Stream, 200, -1, nil, true)
	}
	end(c, ev)
}

// refuse answers requests with bodies or too large heads at once, and wants nothing more of them.
func refuse(c *Conn, ev Event) {
	switch {
	case ev.Kind == EventTooLarge:
		c.Respond(ev.Stream, 431, -1, nil, true)
	case ev.Kind == EventRequest && !ev.End:
		c.Respond(ev.Stream, 413, -1, nil, true)
	default:
		return
	}
	c.Close(ev.Stream, NoError)
}

func connError(last uint32, e *Error) string {
	return fmt.Sprintf("> GOAWAY %d %v %s; error http2: %s (%v)", last, e.Code, e.Text, e.Text, e.Code)
}

func streamError(id uint32, e *Error) string {
	return fmt.Sprintf("> RST %d %v; reset %d %v %s", id, e.Code, id, e.Code, e.Text)
}

var rows = []row{
	{law: "§8.1", name: "request without a body", in: func(p *peer) { p.settings().get(1, "x", "y") }, do: answer,
		want: "request 1 GET http a / x=y end; > HEADERS 1 :status=200 end"},
	{law: "§8.1", name: "request with a body", in: func(p *peer) { p.settings().post(1).data(1, "abc", false).data(1, "def", true) }, do: answer,
		want: "request 1 POST http a /; data 1 abcdef end; > HEADERS 1 :status=200 end"},
	{law: "B15 §8.1", name: "trailers", in: func(p *peer) { p.settings().post(1, "te", "trailers").data(1, "abc", false).head(1, true, "x", "y") },
		do: answer, want: "request 1 POST http a / te; data 1 abc; trailers 1 x=y end; > HEADERS 1 :status=200 end"},
	{law: "B14 §8.1", name: "interim responses", in: func(p *peer) { p.settings().get(1) }, do: func(c *Conn, ev Event) {
		if ev.Kind == EventRequest {
			c.Respond(ev.Stream, 103, -1, []Field{{Name: []byte("Link"), Value: []byte("x")}}, false)
			c.Respond(ev.Stream, 200, 3, nil, false)
			c.Data(ev.Stream, []byte("abc"), true)
		}
	}, want: "request 1 GET http a / end; > HEADERS 1 :status=103 link=x; > HEADERS 1 :status=200 content-length=3; > DATA 1 abc end"},
	{law: "B24", name: "trailers of a response", in: func(p *peer) { p.settings().get(1) }, do: func(c *Conn, ev Event) {
		if ev.Kind == EventRequest {
			c.Respond(ev.Stream, 200, -1, nil, false)
			c.Data(ev.Stream, []byte("abc"), false)
			c.Trailers(ev.Stream, []Field{{Name: []byte("Grpc-Status"), Value: []byte("0")}})
		}
	}, want: "request 1 GET http a / end; > HEADERS 1 :status=200; > DATA 1 abc; > HEADERS 1 grpc-status=0 end"},
	{law: "§8.2.3", name: "pieces of Cookie are joined", in: func(p *peer) {
		p.settings().get(1, "x", "1", "cookie", "a=b", "y", "2", "cookie", "c=d", "cookie", "e")
	},
		want: "request 1 GET http a / x=1 cookie=a=b; c=d; e y=2 end"},
	{law: "B18", name: "host that agrees", in: func(p *peer) { p.settings().get(1, "host", "A") }, want: "request 1 GET http a / end"},
	{law: "B18", name: "host alone", in: func(p *peer) {
		p.settings().head(1, true, ":method", "GET", ":scheme", "http", ":path", "/", "host", "b:80")
	},
		want: "request 1 GET http b:80 / end"},
	{law: "B21", name: "OPTIONS *", in: func(p *peer) {
		p.settings().head(1, true, ":method", "OPTIONS", ":scheme", "http", ":path", "*", ":authority", "[::1]:80")
	}, want: "request 1 OPTIONS http [::1]:80 * end"},
	{law: "B21", name: "unknown method, path bytes untouched", in: func(p *peer) {
		p.settings().head(1, true, ":method", "BREW-it", ":scheme", "http", ":path", `/%2f//../a%zz|{}\?b`, ":authority", "a")
	}, want: `request 1 BREW-it http a /%2f//../a%zz|{}\?b end`},
	{law: "S24", name: "scheme in mixed case is only told", in: func(p *peer) {
		p.settings().head(1, true, ":method", "GET", ":scheme", "HtTpS", ":path", "/", ":authority", "a")
	}, want: "request 1 GET HtTpS a / end"},
	{law: "S33", name: "underscores are left out", in: func(p *peer) { p.settings().get(1, "x_mesh_identity", "a", "x", "y") }, want: "request 1 GET http a / x=y end"},
	{law: "S33", name: "underscores when asked", o: Options{Underscores: true}, in: func(p *peer) { p.settings().get(1, "x_y", "a") },
		want: "request 1 GET http a / x_y=a end"},
	{law: "S32", name: "each value of a field", in: func(p *peer) { p.settings().get(1, "x", "good", "x", "bad") }, want: "request 1 GET http a / x=good x=bad end"},
	{law: "S14", name: "grpc-timeout is passed on", in: func(p *peer) { p.settings().get(1, "grpc-timeout", "99999999H") }, want: "request 1 GET http a / grpc-timeout=99999999H end"},
	{law: "§7541 7.1.3", name: "fields that are secret stay so", in: func(p *peer) {
		p.settings().frame(typeHeaders, flagEnd|flagEndHeaders, 1, p.fields(getFields()...)+"\x10\x01x\x01y")
	}, want: "request 1 GET http a / x=y(secret) end"},
	{law: "§7541 7.1.3", name: "a cookie with a secret piece is secret", in: func(p *peer) {
		p.settings().frame(typeHeaders, flagEnd|flagEndHeaders, 1, p.fields(getFields("cookie", "a")...)+"\x1f\x11\x01b")
	}, want: "request 1 GET http a / cookie=a; b(secret) end"},

	// The connection's beginning.
	{law: "§3.4", name: "another first frame", in: func(p *peer) { p.get(1) }, want: connError(0, errFirst)},
	{law: "§3.4", name: "acknowledgement first", in: func(p *peer) { p.frame(typeSettings, flagAck, 0, "") }, want: connError(0, errFirst)},
	{law: "§6.5", name: "acknowledged settings", in: func(p *peer) { p.settings().frame(typeSettings, flagAck, 0, "").get(1) }, want: "request 1 GET http a / end"},
	{law: "§6.5", name: "acknowledged twice", in: func(p *peer) {
		p.settings().frame(typeSettings, flagAck, 0, "").frame(typeSettings, flagAck, 0, "")
	}, want: connError(0, errAck)},

	// Frames.
	{law: "S5 §5.5", name: "unknown frames", in: func(p *peer) {
		p.settings()
		for typ := 0x0a; typ <= 0xff; typ++ {
			p.frame(byte(typ), 0xff, uint32(typ), "abc")
		}
		p.get(1)
	}, want: "request 1 GET http a / end"},
	{law: "§4.2", name: "frame too long", in: func(p *peer) { p.settings().frame(typePing, 0, 0, strings.Repeat("x", maxFrame+1)) }, want: connError(0, errSize)},
	{law: "§4.2", name: "unknown frame too long", in: func(p *peer) { p.settings().frame(77, 0, 0, strings.Repeat("x", maxFrame+1)) }, want: connError(0, errSize)},
	{law: "§6", name: "reserved bit", in: func(p *peer) { p.settings().get(1<<31 | 1) }, want: "request 1 GET http a / end"},
	{law: "§6.7", name: "ping", in: func(p *peer) { p.settings().frame(typePing, 0, 0, "12345678") }, want: "> PING ack=true 3132333435363738"},
	{law: "§6.7", name: "pong", in: func(p *peer) { p.settings().frame(typePing, flagAck, 0, "12345678") }, want: "pong 3132333435363738"},
	{law: "§6.7", name: "short ping", in: func(p *peer) { p.settings().frame(typePing, 0, 0, "1234567") }, want: connError(0, errLength)},
	{law: "§6.7", name: "ping on a stream", in: func(p *peer) { p.settings().frame(typePing, 0, 1, "12345678") }, want: connError(0, errNotZero)},
	{law: "§6.5", name: "settings on a stream", in: func(p *peer) { p.settings().frame(typeSettings, 0, 1, "") }, want: connError(0, errNotZero)},
	{law: "§6.5", name: "settings of odd length", in: func(p *peer) { p.settings().frame(typeSettings, 0, 0, "1234567") }, want: connError(0, errLength)},
	{law: "§6.5", name: "acknowledgement with settings", in: func(p *peer) { p.settings().frame(typeSettings, flagAck, 0, "123456") }, want: connError(0, errLength)},
	{law: "§6.5.2", name: "unknown settings", in: func(p *peer) { p.settings(0xff, 1, 0x10, 7) }, want: "> SETTINGS ack; settings"},
	{law: "§6.5.2", name: "push is neither on nor off", in: func(p *peer) { p.settings(setPush, 2) }, want: connError(0, errSetPush)},
	{law: "§6.5.2", name: "window over 2^31-1", in: func(p *peer) { p.settings(setWindow, 1<<31) }, want: connError(0, errSetWindow)},
	{law: "S6 §6.5.2", name: "frame size 0", in: func(p *peer) { p.settings(setFrame, 0) }, want: connError(0, errSetFrame)},
	{law: "S6 §6.5.2", name: "frame size below 16384", in: func(p *peer) { p.settings(setFrame, maxFrame-1) }, want: connError(0, errSetFrame)},
	{law: "§6.5.2", name: "frame size over 2^24-1", in: func(p *peer) { p.settings(setFrame, 1<<24) }, want: connError(0, errSetFrame)},
	{law: "§8441", name: "tunnels twice", in: func(p *peer) { p.settings(setTunnels, 2) }, want: connError(0, errSetTunnels)},
	{law: "§8441", name: "tunnels taken back", in: func(p *peer) { p.settings(setTunnels, 1).settings(setTunnels, 0) }, want: connError(0, errSetTunnels)},
	{law: "§6.6", name: "push promise", in: func(p *peer) { p.settings().frame(typePush, flagEndHeaders, 1, u32(2)) }, want: connError(0, errPush)},
	{law: "§6.6", name: "push promise on stream 0", in: func(p *peer) { p.settings().frame(typePush, flagEndHeaders, 0, u32(2)) }, want: connError(0, errZero)},
	{law: "§5.3", name: "priorities are ignored", in: func(p *peer) {
		p.settings().frame(typePriority, 0, 7, u32(1)+"\x01").frame(typeHeaders, flagEnd|flagEndHeaders|flagPriority, 1, u32(3)+"\xff"+p.fields(getFields()...))
	}, want: "request 1 GET http a / end"},
	{law: "§6.3", name: "short priority", in: func(p *peer) { p.settings().frame(typePriority, 0, 1, "1234") }, want: connError(0, errPrioritySize)},
	{law: "§6.3", name: "priority on stream 0", in: func(p *peer) { p.settings().frame(typePriority, 0, 0, "12345") }, want: connError(0, errZero)},
	{law: "§5.3.1", name: "priority on itself", in: func(p *peer) { p.settings().frame(typePriority, 0, 1, u32(1)+"\x01") }, want: connError(0, errPriority)},
	{law: "§5.3.1", name: "head that depends on itself", in: func(p *peer) {
		p.settings().frame(typeHeaders, flagEnd|flagEndHeaders|flagPriority, 1, u32(1)+"\x01"+p.fields(getFields()...))
	}, want: connError(0, errPriority)},
	{law: "§6.2", name: "head shorter than its priority", in: func(p *peer) { p.settings().frame(typeHeaders, flagEnd|flagEndHeaders|flagPriority, 1, "1234") },
		want: connError(0, errLength)},
	{law: "§6.2", name: "padded head", in: func(p *peer) {
		p.settings().frame(typeHeaders, flagEnd|flagEndHeaders|flagPadded, 1, "\x03"+p.fields(getFields()...)+"abc")
	}, want: "request 1 GET http a / end"},
	{law: "§6.2", name: "head with padding alone", in: func(p *peer) { p.settings().frame(typeHeaders, flagEnd|flagEndHeaders|flagPadded, 1, "\x03ab") }, want: connError(0, errPadding)},
	{law: "§6.2", name: "head without its padding", in: func(p *peer) { p.settings().frame(typeHeaders, flagEnd|flagEndHeaders|flagPadded, 1, "") }, want: connError(0, errPadding)},
	{law: "§6.2", name: "head on stream 0", in: func(p *peer) { p.settings().get(0) }, want: connError(0, errZero)},
	{law: "§4.3", name: "empty head", in: func(p *peer) { p.settings().frame(typeHeaders, flagEnd|flagEndHeaders, 1, "") },
		want: "> RST 1 PROTOCOL_ERROR; refused 1 PROTOCOL_ERROR " + faultMethod.Text},
	{law: "§4.3", name: "head that cannot be decoded", in: func(p *peer) { p.settings().frame(typeHeaders, flagEnd|flagEndHeaders, 1, "\xff\xff\xff") }, want: connError(1, errHPACK)},
	{law: "§6.10", name: "head in three frames", in: func(p *peer) {
		b := p.fields(getFields("x", "y")...)
		p.settings().frame(typeHeaders, flagEnd, 1, b[:1]).frame(typeContinuation, 0, 1, b[1:5]).frame(typeContinuation, flagEndHeaders, 1, b[5:])
	}, want: "request 1 GET http a / x=y end"},
	{law: "§6.10", name: "another frame between", in: func(p *peer) { p.settings().frame(typeHeaders, flagEnd, 1, "").frame(typePing, 0, 0, "12345678") }, want: connError(0, errInterleaved)},
	{law: "§6.10", name: "unknown frame between", in: func(p *peer) { p.settings().frame(typeHeaders, flagEnd, 1, "").frame(77, 0, 0, "") }, want: connError(0, errInterleaved)},
	{law: "§6.10", name: "of another stream", in: func(p *peer) { p.settings().frame(typeHeaders, flagEnd, 1, "").frame(typeContinuation, 0, 3, "") }, want: connError(0, errInterleaved)},
	{law: "§6.10", name: "continuation of nothing", in: func(p *peer) { p.settings().get(1).frame(typeContinuation, flagEndHeaders, 1, "") },
		want: "request 1 GET http a / end; " + connError(1, errContinuation)},
	{law: "§4.3", name: "a name that is not in the table", in: func(p *peer) { p.settings().frame(typeHeaders, flagEnd|flagEndHeaders, 1, "\x7e\x00") },
		want: connError(1, errHPACK)},
	{law: "§4.3", name: "a name that is cut off", in: func(p *peer) { p.settings().frame(typeHeaders, flagEnd|flagEndHeaders, 1, "\x40\x05abc") },
		want: connError(1, errHPACK)},
	{law: "§4.3", name: "trailers that cannot be decoded", in: func(p *peer) { p.settings().post(1).frame(typeHeaders, flagEnd|flagEndHeaders, 1, "\xff") },
		want: "request 1 POST http a /; " + connError(1, errHPACK)},
	{law: "§4.3", name: "a head behind our reset that cannot be decoded", in: func(p *peer) {
		p.settings().post(1).frame(typeHeaders, flagEnd|flagEndHeaders, 1, "\xff")
	}, do: refuse, want: "request 1 POST http a /; > HEADERS 1 :status=413 end; > RST 1 NO_ERROR; " + connError(1, errHPACK)},
	{law: "S3 B7 §6.10", name: "endless continuation", in: func(p *peer) {
		p.settings().frame(typeHeaders, flagEnd, 1, "")
		for range 100 {
			p.frame(typeContinuation, 0, 1, "")
		}
	}, want: connError(0, errBlock)},
	{law: "S3 B7 §6.10", name: "large continuation", in: func(p *peer) {
		p.settings().frame(typeHeaders, flagEnd, 1, "")
		for range 20 {
			p.frame(typeContinuation, 0, 1, strings.Repeat("\x82", maxFrame))
		}
	}, want: connError(0, errBlock)},

	// Streams.
	{law: "§5.1.1", name: "even id", in: func(p *peer) { p.settings().get(2) }, want: connError(0, errID)},
	{law: "§5.1.1", name: "lower id", in: func(p *peer) { p.settings().get(5).get(3) }, want: "request 5 GET http a / end; " + connError(5, errID)},
	{law: "§5.1", name: "data on an idle stream", in: func(p *peer) { p.settings().data(1, "a", true) }, want: connError(0, errIdle)},
	{law: "§5.1", name: "data on stream 0", in: func(p *peer) { p.settings().data(0, "a", true) }, want: connError(0, errZero)},
	{law: "§5.1", name: "reset on an idle stream", in: func(p *peer) { p.settings().reset(1, Cancel) }, want: connError(0, errIdle)},
	{law: "§6.4", name: "reset on stream 0", in: func(p *peer) { p.settings().reset(0, Cancel) }, want: connError(0, errZero)},
	{law: "§6.4", name: "short reset", in: func(p *peer) { p.settings().get(1).frame(typeReset, 0, 1, "123") }, want: "request 1 GET http a / end; " + connError(1, errLength)},
	{law: "§5.1", name: "window of an idle stream", in: func(p *peer) { p.settings().window(1, 1) }, want: connError(0, errIdle)},
	{law: "§5.1", name: "data after the end", in: func(p *peer) { p.settings().get(1).data(1, "a", true) }, do: end,
		want: "request 1 GET http a / end; " + streamError(1, errStreamClosed)},
	{law: "§5.1", name: "head after the end", in: func(p *peer) { p.settings().get(1).get(1) }, do: end,
		want: "request 1 GET http a / end; " + streamError(1, errStreamClosed)},
	{law: "§5.1", name: "data on a stream that was answered", in: func(p *peer) { p.settings().get(1).data(1, "a", true) }, do: answer,
		want: "request 1 GET http a / end; > HEADERS 1 :status=200 end; > RST 1 STREAM_CLOSED"},
	{law: "§5.1", name: "head on a stream that was answered", in: func(p *peer) { p.settings().get(1).get(1) }, do: answer,
		want: "request 1 GET http a / end; > HEADERS 1 :status=200 end; " + connError(1, errClosed)},
	{law: "§5.1", name: "head on a stream that was answered long ago", in: func(p *peer) {
		p.settings()
		for i := range 200 {
			p.get(uint32(2*i + 1))
		}
		p.get(1, "x", "y").get(401, "x", "y")
	}, do: answer, want: strings.Join(each(200, func(i int) string {
		return fmt.Sprintf("request %d GET http a / end; > HEADERS %d :status=200 end", 2*i+1, 2*i+1)
	}), "; ") + "; > RST 1 STREAM_CLOSED; request 401 GET http a / x=y end; > HEADERS 401 :status=200 end"},
	{law: "§5.1", name: "what may come late", in: func(p *peer) {
		p.settings().get(1).window(1, 1).reset(1, Cancel).frame(typePriority, 0, 1, "12345").get(3)
	},
		do: answer, want: "request 1 GET http a / end; > HEADERS 1 :status=200 end; request 3 GET http a / end; > HEADERS 3 :status=200 end"},
	{law: "B4 §5.1", name: "the client cancels", in: func(p *peer) { p.settings().post(1).reset(1, Cancel).get(3) }, do: end,
		want: "request 1 POST http a /; reset 1 CANCEL the peer reset the stream; request 3 GET http a / end"},
	{law: "§5.1", name: "data behind its reset", in: func(p *peer) { p.settings().post(1).reset(1, Cancel).data(1, "a", false).get(3) }, do: end,
		want: "request 1 POST http a /; reset 1 CANCEL the peer reset the stream; > RST 1 STREAM_CLOSED; request 3 GET http a / end"},
	{law: "§5.1", name: "head behind its reset", in: func(p *peer) { p.settings().post(1).reset(1, Cancel).head(1, true, "x", "y") }, do: end,
		want: "request 1 POST http a /; reset 1 CANCEL the peer reset the stream; " + connError(1, errClosed)},
	{law: "§5.1", name: "head behind its reset, before Close", in: func(p *peer) { p.settings().post(1).reset(1, Cancel).head(1, true, "x", "y") },
		want: "request 1 POST http a /; reset 1 CANCEL the peer reset the stream; " + connError(1, errClosed)},
	{law: "B3 §5.1", name: "what was on its way when we reset", in: func(p *peer) {
		p.settings().post(1).data(1, "abc", false).window(1, 5).head(1, true, "x", "y").get(3, "x", "y")
	}, do: refuse, want: "request 1 POST http a /; > HEADERS 1 :status=413 end; > RST 1 NO_ERROR; request 3 GET http a / x=y end"},
	{law: "B18 §5.1", name: "what was on its way when we refused", in: func(p *peer) {
		p.settings().post(1, "connection", "x").data(1, "abc", false).head(1, true, "x", "y").get(3, "x", "y")
	}, want: "> RST 1 PROTOCOL_ERROR; refused 1 PROTOCOL_ERROR " + faultHop.Text + "; request 3 GET http a / x=y end"},
	{law: "B18 §5.1", name: "what was on its way when we reset, before Close", in: func(p *peer) {
		p.settings().post(1, "content-length", "1").data(1, "abc", false).data(1, "def", false).head(1, true, "x", "y").get(3, "x", "y")
	}, want: "request 1 POST http a / length=1; " + streamError(1, errBodyLong) + "; request 3 GET http a / x=y end"},
	{law: "B6 §5.1.2", name: "too many streams", o: Options{Streams: 2}, in: func(p *peer) { p.settings().get(1).get(3).get(5, "x", "y").get(7, "x", "y") },
		want: "request 1 GET http a / end; request 3 GET http a / end; > RST 5 REFUSED_STREAM; refused 5 REFUSED_STREAM " + errTooMany.Text +
			"; > RST 7 REFUSED_STREAM; refused 7 REFUSED_STREAM " + errTooMany.Text},
	{law: "S1 B7", name: "streams that were reset and not yet cleared away", o: Options{Streams: 1}, in: func(p *peer) {
		p.settings().get(1).reset(1, Cancel).get(3).reset(3, Cancel).get(5)
	}, want: "request 1 GET http a / end; reset 1 CANCEL the peer reset the stream; request 3 GET http a / end; reset 3 CANCEL the peer reset the stream; " +
		"> RST 5 REFUSED_STREAM; refused 5 REFUSED_STREAM " + errBusy.Text},

	// Bodies.
	{law: "B18 S22", name: "body that agrees", in: func(p *peer) { p.settings().post(1, "content-length", "3").data(1, "ab", false).data(1, "c", true) }, do: answer,
		want: "request 1 POST http a / length=3; data 1 abc end; > HEADERS 1 :status=200 end"},
	{law: "B18 S22", name: "body too long", in: func(p *peer) {
		p.settings().post(1, "content-length", "3").data(1, "ab", false).data(1, "cd", true).get(3)
	},
		want: "request 1 POST http a / length=3; data 1 ab; " + streamError(1, errBodyLong) + "; request 3 GET http a / end"},
	{law: "B18 S22", name: "body too short", in: func(p *peer) { p.settings().post(1, "content-length", "3").data(1, "ab", true).get(3) },
		want: "request 1 POST http a / length=3; " + streamError(1, errBodyShort) + "; request 3 GET http a / end"},
	{law: "B18 S22", name: "body too short, empty frame", in: func(p *peer) { p.settings().post(1, "content-length", "3").data(1, "", true) },
		want: "request 1 POST http a / length=3; " + streamError(1, errBodyShort)},
	{law: "B18 S22", name: "body too short, trailers", in: func(p *peer) { p.settings().post(1, "content-length", "3").head(1, true, "x", "y") },
		want: "request 1 POST http a / length=3; " + streamError(1, errBodyShort)},
	{law: "§6.1", name: "padded data", in: func(p *peer) {
		p.settings().post(1).frame(typeData, flagPadded, 1, "\x03abcxyz").frame(typeData, flagPadded|flagEnd, 1, "\x00def")
	}, do: answer, want: "request 1 POST http a /; data 1 abcdef end; > HEADERS 1 :status=200 end"},
	{law: "§6.1", name: "padding behind the end", in: func(p *peer) { p.settings().post(1).frame(typeData, flagPadded|flagEnd, 1, "\x03abcxyz").get(3) },
		want: "request 1 POST http a /; data 1 abc end; request 3 GET http a / end"},
	{law: "§6.1", name: "only padding, and the end", in: func(p *peer) { p.settings().post(1).frame(typeData, flagPadded|flagEnd, 1, "\x03xyz") },
		want: "request 1 POST http a /; data 1  end"},
	{law: "§6.1", name: "padding longer than the frame", in: func(p *peer) { p.settings().post(1).frame(typeData, flagPadded, 1, "\x03ab") },
		want: "request 1 POST http a /; " + connError(1, errPadding)},
	{law: "§6.1", name: "no length of padding", in: func(p *peer) { p.settings().post(1).frame(typeData, flagPadded, 1, "") },
		want: "request 1 POST http a /; " + connError(1, errPadding)},
	{law: "B15", name: "length in trailers", in: func(p *peer) { p.settings().post(1).head(1, true, "content-length", "0") },
		want: "request 1 POST http a /; " + streamError(1, faultTrailer)},
	{law: "B15", name: "credentials in trailers", in: func(p *peer) { p.settings().post(1).head(1, true, "authorization", "a") },
		want: "request 1 POST http a /; " + streamError(1, faultTrailer)},
	{law: "§8.1", name: "pseudo field in trailers", in: func(p *peer) { p.settings().post(1).head(1, true, ":path", "/") },
		want: "request 1 POST http a /; " + streamError(1, faultPseudo)},
	{law: "§8.1", name: "trailers that do not end", in: func(p *peer) { p.settings().post(1).head(1, false, "x", "y") },
		want: "request 1 POST http a /; " + streamError(1, faultTrailers)},
	{law: "B19", name: "large trailers", o: Options{HeadBytes: 1000}, in: func(p *peer) { p.settings().post(1).head(1, true, "x", strings.Repeat("y", 1000)) },
		want: "request 1 POST http a /; " + streamError(1, errHeadSize)},

	// CONNECT.
	{law: "B21 S21", name: "CONNECT", in: func(p *peer) {
		p.settings().head(1, false, ":method", "CONNECT", ":authority", "a:443").data(1, "abc", true)
	},
		do: func(c *Conn, ev Event) {
			if ev.Kind == EventRequest {
				c.Respond(ev.Stream, 200, 7, nil, false)
				c.Data(ev.Stream, []byte("abc"), true)
			}
		}, want: "request 1 CONNECT  a:443 ; > HEADERS 1 :status=200; > DATA 1 abc end; data 1 abc end"},
	{law: "B23", name: "extended CONNECT", o: Options{Tunnels: true}, in: func(p *peer) {
		p.settings().head(1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", "/chat", ":authority", "a", "sec-websocket-version", "13")
	}, want: "request 1 CONNECT https a /chat protocol=websocket sec-websocket-version=13"},
	{law: "B23", name: "extended CONNECT without a path", o: Options{Tunnels: true}, in: func(p *peer) {
		p.settings().head(1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "a")
	}, want: "> RST 1 PROTOCOL_ERROR; refused 1 PROTOCOL_ERROR " + faultExtended.Text},
	{law: "B23", name: "extended CONNECT to no protocol", o: Options{Tunnels: true}, in: func(p *peer) {
		p.settings().head(1, false, ":method", "CONNECT", ":protocol", "", ":scheme", "https", ":path", "/", ":authority", "a")
	}, want: "> RST 1 PROTOCOL_ERROR; refused 1 PROTOCOL_ERROR " + faultExtended.Text},

	// Limits of heads.
	{law: "B19", name: "100 fields", in: func(p *peer) { p.settings().get(1, repeat(100, "x", "y")...) }, want: "request 1 GET http a /" + strings.Repeat(" x=y", 100) + " end"},
	{law: "B19", name: "101 fields", in: func(p *peer) { p.settings().get(1, repeat(101, "x", "y")...).get(3, "x", "y") }, do: answer,
		want: "too large 1 end; > HEADERS 1 :status=200 end; request 3 GET http a / x=y end; > HEADERS 3 :status=200 end"},
	{law: "B19", name: "101 fields, most left out", in: func(p *peer) { p.settings().get(1, repeat(101, "x_", "y")...) }, want: "too large 1 end"},
	{law: "B19", name: "64 KiB", in: func(p *peer) { large(p.settings(), 0) }, want: "request 1 GET http a / x=65337 bytes end"},
	{law: "B19", name: "more than 64 KiB", in: func(p *peer) { large(p.settings(), 1).get(3) }, want: "too large 1 end; request 3 GET http a / end"},
	{law: "B19", name: "much more than 64 KiB, with a body", in: func(p *peer) {
		p.settings()
		b := p.fields(getFields("x", strings.Repeat("\xff", 30_000))...) // 26 bits each
		p.frame(typeHeaders, 0, 1, b[:maxFrame])
		for b = b[maxFrame:]; len(b) > maxFrame; b = b[maxFrame:] {
			p.frame(typeContinuation, 0, 1, b[:maxFrame])
		}
		p.frame(typeContinuation, flagEndHeaders, 1, b).data(1, "abc", true)
	}, do: refuse, o: Options{HeadBytes: 20_000}, want: "too large 1; > HEADERS 1 :status=431 end; > RST 1 NO_ERROR"},
	{law: "S4 B7", name: "1 MB of cookies out of 10 KB", in: func(p *peer) {
		p.settings().get(1, "cookie", strings.Repeat("x", 4000)).frame(typeHeaders, flagEnd|flagEndHeaders, 3, p.fields(getFields()...)+strings.Repeat("\xbe", 10_000)).get(5, "x", "y")
	}, want: "request 1 GET http a / cookie=4000 bytes end; too large 3 end; request 5 GET http a / x=y end"},
	{law: "S4 B7", name: "a large field copied by two bytes", in: func(p *peer) {
		p.settings().get(1, strings.Repeat("x", 4000), "").frame(typeHeaders, flagEnd|flagEndHeaders, 3, p.fields(getFields()...)+strings.Repeat("\x7e\x00", maxLost+30))
	}, want: "request 1 GET http a / " + strings.Repeat("x", 4000) + "= end; " + connError(3, errHPACK)},
	{law: "§7541 4.4", name: "a field larger than the table empties it", in: func(p *peer) { tooLargeForTable(p, 4070) },
		want: "request 1 GET http a / x=y end; request 3 GET http a / x=y end; request 5 GET http a / x=4070 bytes end; " + connError(7, errHPACK)},
	{law: "§7541 4.4", name: "a field larger than the table and the limits empties it", o: Options{HeadBytes: 1024}, in: func(p *peer) { tooLargeForTable(p, 5000) },
		want: "request 1 GET http a / x=y end; request 3 GET http a / x=y end; too large 5 end; " + connError(7, errHPACK)},
	{law: "S23", name: "a good value for a name that came with a bad one", in: func(p *peer) { p.settings().get(1, "x", "a\nb").get(3, "x", "y") },
		want: "> RST 1 PROTOCOL_ERROR; refused 1 PROTOCOL_ERROR " + faultValue.Text + "; request 3 GET http a / x=y end"},
	{law: "B19", name: "a size of the table that we do not allow", in: func(p *peer) {
		p.settings().frame(typeHeaders, flagEnd|flagEndHeaders, 1, string(appendInt(nil, 0x20, 5, tableSize+1))+p.fields(getFields()...))
	}, want: connError(1, errHPACK)},

	// Windows.
	{law: "§6.9", name: "short window", in: func(p *peer) { p.settings().frame(typeWindow, 0, 0, "123") }, want: connError(0, errLength)},
	{law: "§6.9", name: "no increment", in: func(p *peer) { p.settings().window(0, 0) }, want: connError(0, errNoIncrement)},
	{law: "§6.9", name: "no increment of a stream", in: func(p *peer) { p.settings().get(1).window(1, 0).get(3) },
		want: "request 1 GET http a / end; " + streamError(1, errNoCredit) + "; request 3 GET http a / end"},
	{law: "§6.9.1", name: "overflow", in: func(p *peer) { p.settings().window(0, maxWindow) }, want: connError(0, errConnCredit)},
	{law: "§6.9.1", name: "overflow of a stream", in: func(p *peer) { p.settings().get(1).window(1, maxWindow) },
		want: "request 1 GET http a / end; " + streamError(1, errStreamCredit)},
	{law: "§6.9.2", name: "overflow by settings", in: func(p *peer) { p.settings().get(1).window(1, 1).settings(setWindow, maxWindow) },
		want: "request 1 GET http a / end; " + connError(1, errSetWindow)},
	{law: "§6.9", name: "more than a stream's window", o: Options{StreamWindow: defaultWindow}, in: func(p *peer) {
		p.settings().post(1)
		for range 4 {
			p.data(1, strings.Repeat("x", maxFrame), false)
		}
		p.get(3)
	}, do: func(c *Conn, ev Event) {
		if ev.Kind == EventReset {
			c.Close(ev.Stream, Cancel)
		}
	}, want: "request 1 POST http a /; data 1 " + strings.Repeat("x", 3*maxFrame) + "; " + streamError(1, errStreamWindow) + "; > WINDOW 0 +65536; request 3 GET http a / end"},
	{law: "§6.9", name: "more than the connection's window", o: Options{StreamWindow: defaultWindow, ConnWindow: 4 * defaultWindow}, in: func(p *peer) {
		p.settings()
		for id := uint32(1); id < 12; id += 2 {
			p.post(id)
			for range 3 {
				p.data(id, strings.Repeat("x", maxFrame), false)
			}
		}
	}, do: func(c *Conn, ev Event) {}, want: func() string {
		var b strings.Builder
		for id := 1; id < 10; id += 2 {
			fmt.Fprintf(&b, "request %d POST http a /; data %d %s; ", id, id, strings.Repeat("x", 3*maxFrame))
		}
		return b.String() + "request 11 POST http a /; " + connError(11, errConnWindow)
	}()},

	// Going away.
	{law: "B6 §6.8", name: "the client goes away", in: func(p *peer) { p.settings().get(1).goAway(0, NoError).get(3) },
		want: "request 1 GET http a / end; go away 0 NO_ERROR; request 3 GET http a / end"},
	{law: "§6.8", name: "short GOAWAY", in: func(p *peer) { p.settings().frame(typeGoAway, 0, 0, "1234567") }, want: connError(0, errLength)},
	{law: "§6.8", name: "GOAWAY on a stream", in: func(p *peer) { p.settings().frame(typeGoAway, 0, 1, "12345678") }, want: connError(0, errNotZero)},
	{law: "§6.8", name: "GOAWAY that takes back", in: func(p *peer) { p.settings().goAway(0, NoError).goAway(2, NoError) },
		want: "go away 0 NO_ERROR; " + connError(0, errGoAway)},
	{law: "B6 B29 §6.8", name: "we go away and lose nothing", in: func(p *peer) {
		p.settings().get(1).get(3).frame(typePing, flagAck, 0, string(binary.BigEndian.AppendUint64(nil, leavePing))).post(5, "x", "y").data(5, "abc", true).get(7, "x", "y")
	}, do: func(c *Conn, ev Event) {
		if ev.ID == 1 {
			c.Shutdown()
		}
		answer(c, ev)
	}, want: "request 1 GET http a / end; > GOAWAY 2147483647 NO_ERROR ; > PING ack=false 6c656176696e6721; > HEADERS 1 :status=200 end; " +
		"request 3 GET http a / end; > HEADERS 3 :status=200 end; > GOAWAY 3 NO_ERROR "},

	// Floods.
	{law: "S1 B7", name: "rapid reset", in: func(p *peer) {
		p.settings()
		for i := range 20_000 {
			p.get(uint32(2*i+1)).reset(uint32(2*i+1), Cancel)
		}
	}, do: end, want: strings.Join(each(249, func(i int) string {
		return fmt.Sprintf("request %d GET http a / end; reset %d CANCEL the peer reset the stream", 2*i+1, 2*i+1)
	}), "; ") + "; request 499 GET http a / end; " + connError(499, errFlood)},
	{law: "S2 B7", name: "made you reset", in: func(p *peer) {
		p.settings()
		for i := range 20_000 {
			p.get(uint32(2*i+1)).window(uint32(2*i+1), maxWindow)
		}
	}, do: end, want: strings.Join(each(249, func(i int) string {
		return fmt.Sprintf("request %d GET http a / end; %s", 2*i+1, streamError(uint32(2*i+1), errStreamCredit))
	}), "; ") + "; request 499 GET http a / end; > RST 499 FLOW_CONTROL_ERROR; " + connError(499, errFlood)},
	{law: "S2 B7", name: "made you refuse", in: func(p *peer) {
		p.settings()
		for i := range 20_000 {
			p.get(uint32(2*i+1), "connection", "x")
		}
	}, want: strings.Join(each(249, func(i int) string {
		return fmt.Sprintf("> RST %d PROTOCOL_ERROR; refused %d PROTOCOL_ERROR %s", 2*i+1, 2*i+1, faultHop.Text)
	}), "; ") + "; > RST 499 PROTOCOL_ERROR; " + connError(499, errFlood)},
	{law: "B7", name: "pings", in: func(p *peer) { flood(p.settings(), func() { p.frame(typePing, 0, 0, "12345678") }) },
		want: "997 times > PING ack=true 3132333435363738; " + connError(0, errFlood)},
	{law: "B7", name: "settings", in: func(p *peer) { flood(p, func() { p.settings(setWindow, 1) }) },
		want: strings.Repeat("> SETTINGS ack; settings; ", 249) + "> SETTINGS ack; " + connError(0, errFlood)},
	{law: "B7", name: "empty data", in: func(p *peer) { flood(p.settings().post(1), func() { p.data(1, "", false) }) },
		want: "request 1 POST http a /; " + connError(1, errFlood)},
	{law: "B7", name: "empty data of a stream that we reset", in: func(p *peer) { flood(p.settings().post(1), func() { p.data(1, "", false) }) }, do: refuse,
		want: "request 1 POST http a /; > HEADERS 1 :status=413 end; > RST 1 NO_ERROR; " + connError(1, errFlood)},
	{law: "B7", name: "data of padding", in: func(p *peer) { flood(p.settings().post(1), func() { p.frame(typeData, flagPadded, 1, "\x05abcde") }) },
		want: "request 1 POST http a /; " + connError(1, errFlood)},
	{law: "B7", name: "windows", in: func(p *peer) { flood(p.settings().get(1), func() { p.window(1, 1) }) }, want: "request 1 GET http a / end; " + connError(1, errFlood)},
	{law: "B7", name: "windows of the connection", in: func(p *peer) { flood(p.settings(), func() { p.window(0, 1) }) }, want: connError(0, errFlood)},
	{law: "B7", name: "windows of one byte, each for one byte of data", in: func(p *peer) {
		flood(p.settings(setWindow, 0).get(1), func() { p.window(1, 1) })
	}, do: func(c *Conn, ev Event) {
		switch ev.Kind {
		case EventRequest:
			c.Respond(ev.Stream, 200, -1, nil, false)
		case EventWritable:
			c.Data(ev.Stream, []byte("xx"), false)
		}
	}, want: "request 1 GET http a / end; > HEADERS 1 :status=200; " + strings.Repeat("writable 1; > DATA 1 x; ", 996) + connError(1, errFlood)},
	{law: "B7", name: "heads over the limit", o: Options{Fields: 1}, in: func(p *peer) {
		p.settings()
		for i := range 1000 {
			p.get(uint32(2*i+1), "x", "y", "x", "y")
		}
	}, do: refuse, want: strings.Join(each(249, func(i int) string {
		return fmt.Sprintf("too large %d end; > HEADERS %d :status=431 end", 2*i+1, 2*i+1)
	}), "; ") + "; " + connError(499, errFlood)},
	{law: "B3 B7", name: "uploads that we do not read to their end are no flood", o: Options{StreamWindow: 1 << 26}, in: func(p *peer) {
		p.settings()
		for i := range 300 {
			p.post(uint32(2*i + 1))
			for range 8 {
				p.data(uint32(2*i+1), strings.Repeat("x", fairData), false)
			}
		}
	}, do: refuse, want: strings.Join(each(300, func(i int) string {
		return fmt.Sprintf("request %d POST http a /; > HEADERS %d :status=413 end; > RST %d NO_ERROR", 2*i+1, 2*i+1, 2*i+1)
	}), "; ")},
	{law: "B7", name: "priorities", in: func(p *peer) { flood(p.settings(), func() { p.frame(typePriority, 0, 1, "12345") }) }, want: connError(0, errFlood)},
	{law: "B7", name: "unknown frames", in: func(p *peer) { flood(p.settings(), func() { p.frame(77, 0, 0, "") }) }, want: connError(0, errFlood)},
	{law: "B7", name: "resets of what has ended", in: func(p *peer) { flood(p.settings().get(1), func() { p.reset(1, Cancel) }) }, do: answer,
		want: "request 1 GET http a / end; > HEADERS 1 :status=200 end; " + connError(1, errFlood)},
	{law: "B7", name: "work gives patience back", in: func(p *peer) {
		p.settings()
		for i := range 2000 {
			p.get(uint32(2*i+1)).frame(typePing, 0, 0, "12345678").window(0, 1)
		}
	}, do: answer, want: strings.Join(each(2000, func(i int) string {
		return fmt.Sprintf("request %d GET http a / end; > HEADERS %d :status=200 end; > PING ack=true 3132333435363738", 2*i+1, 2*i+1)
	}), "; ")},
}

func repeat(n int, kv ...string) (all []string) {
	for range n {
		all = append(all, kv...)
	}
	return all
}

func each(n int, f func(i int) string) (all []string) {
	for i := range n {
		all = append(all, f(i))
	}
	return all
}

func flood(p *peer, f func()) {
	for range 10_000 {
		f()
	}
}

// tooLargeForTable enters a field into the table, uses it, enters one of that size, and uses what was there before.
func tooLargeForTable(p *peer, size int) {
	head := func(id uint32, b string) {
		p.frame(typeHeaders, flagEnd|flagEndHeaders, id, literal(getFields()...)+b)
	}
	p.settings()
	head(1, "\x40\x01x\x01y")
	head(3, "\xbe")
	head(5, string(appendLiteral(nil, 0x40, 6, 0, []byte("x"), bytes.Repeat([]byte("v"), size))))
	head(7, "\xbe")
}

// large writes a request whose head is more bytes over 64 KiB.
func large(p *peer, more int) *peer {
	size := 0
	for _, f := range getFields("x", "") {
		size += len(f)
	}
	size += 5 * 32
	b := literal(getFields("x", strings.Repeat("y", 64<<10-size+more))...)
	p.frame(typeHeaders, flagEnd, 1, b[:maxFrame])
	for b = b[maxFrame:]; len(b) > maxFrame; b = b[maxFrame:] {
		p.frame(typeContinuation, 0, 1, b[:maxFrame])
	}
	return p.frame(typeContinuation, flagEndHeaders, 1, b)
}

func TestServer(t *testing.T) {
	for _, r := range rows {
		t.Run(r.law+" "+r.name, func(t *testing.T) { check(t, r) })
	}
	t.Run("§3.4 no preface", func(t *testing.T) {
		for _, in := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01", "PRI * HTTP/2.0\r\n\r\nSM\r\n\rx"} {
			c, s := NewServer(Options{}, new(Scratch)), newScript()
			c.Out = c.Out[:0]
			s.feed(t, c, []byte(in), func(int) int { return 1 }, nil)
			if s.String() != connError(0, errPreface) {
				t.Errorf("%q: %s", in, s)
			}
		}
	})
}
