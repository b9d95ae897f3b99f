package http2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// peer writes what the other side sends, right or wrong, with the library.
type peer struct {
	bytes.Buffer
	*xhttp2.Framer
	enc   *hpack.Encoder
	block bytes.Buffer
}

func newPeer() *peer {
	p := &peer{}
	p.Framer = xhttp2.NewFramer(&p.Buffer, nil)
	p.AllowIllegalWrites = true
	p.enc = hpack.NewEncoder(&p.block)
	return p
}

// frame writes a frame of any content.
func (p *peer) frame(typ, flags byte, id uint32, payload string) *peer {
	p.WriteRawFrame(xhttp2.FrameType(typ), xhttp2.Flags(flags), id, []byte(payload))
	return p
}

// fields encodes a head of name, value, name, value...
func (p *peer) fields(kv ...string) string {
	p.block.Reset()
	for i := 0; i < len(kv); i += 2 {
		p.enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	return p.block.String()
}

// literal encodes a head without compression: the library changes nothing in it.
func literal(kv ...string) string {
	var b []byte
	for i := 0; i < len(kv); i += 2 {
		b = appendLiteral(b, 0, 4, 0, []byte(kv[i]), []byte(kv[i+1]))
	}
	return string(b)
}

func (p *peer) head(id uint32, end bool, kv ...string) *peer {
	return p.frame(typeHeaders, flagEndHeaders|flagIf(end, flagEnd), id, p.fields(kv...))
}

func (p *peer) get(id uint32, kv ...string) *peer { return p.head(id, true, getFields(kv...)...) }

func (p *peer) post(id uint32, kv ...string) *peer {
	return p.head(id, false, append([]string{":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a"}, kv...)...)
}

func getFields(kv ...string) []string {
	return append([]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"}, kv...)
}

func (p *peer) data(id uint32, s string, end bool) *peer {
	return p.frame(typeData, flagIf(end, flagEnd), id, s)
}

func (p *peer) settings(kv ...int) *peer {
	var b []byte
	for i := 0; i < len(kv); i += 2 {
		b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(b, uint16(kv[i])), uint32(kv[i+1]))
	}
	return p.frame(typeSettings, 0, 0, string(b))
}

func (p *peer) reset(id uint32, code Code) *peer { return p.frame(typeReset, 0, id, u32(uint32(code))) }

func (p *peer) window(id, n uint32) *peer { return p.frame(typeWindow, 0, id, u32(n)) }

func (p *peer) goAway(last uint32, code Code) *peer {
	return p.frame(typeGoAway, 0, 0, u32(last)+u32(uint32(code)))
}

func u32(v uint32) string { return string(binary.BigEndian.AppendUint32(nil, v)) }

// script is what was seen of a Conn: events and the frames that it wrote, a line each.
type script struct {
	lines []string
	dec   *hpack.Decoder
}

func newScript() *script { return &script{dec: hpack.NewDecoder(tableSize, nil)} }

func (s *script) add(format string, args ...any) {
	s.lines = append(s.lines, fmt.Sprintf(format, args...))
}

// String says each thing that happened many times once.
func (s *script) String() string {
	var out []string
	for i := 0; i < len(s.lines); {
		n := 1
		for i+n < len(s.lines) && s.lines[i+n] == s.lines[i] {
			n++
		}
		if n > 1 {
			out = append(out, fmt.Sprintf("%d times %s", n, s.lines[i]))
		} else {
			out = append(out, s.lines[i])
		}
		i += n
	}
	return strings.Join(out, "; ")
}

// wrote notes the frames in b.
func (s *script) wrote(t testing.TB, b []byte) {
	fr := xhttp2.NewFramer(nil, bytes.NewReader(b))
	fr.AllowIllegalReads = true
	for {
		f, err := fr.ReadFrame()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatalf("we wrote a frame that cannot be read: %v: %x", err, b)
		}
		id := f.Header().StreamID
		switch f := f.(type) {
		case *xhttp2.SettingsFrame:
			if f.IsAck() {
				s.add("> SETTINGS ack")
				break
			}
			var line strings.Builder
			line.WriteString("> SETTINGS")
			for i := range f.NumSettings() {
				fmt.Fprintf(&line, " %d=%d", f.Setting(i).ID, f.Setting(i).Val)
			}
			s.add("%s", line.String())
		case *xhttp2.RSTStreamFrame:
			s.add("> RST %d %v", id, Code(f.ErrCode))
		case *xhttp2.GoAwayFrame:
			s.add("> GOAWAY %d %v %s", f.LastStreamID, Code(f.ErrCode), f.DebugData())
		case *xhttp2.WindowUpdateFrame:
			s.add("> WINDOW %d +%d", id, f.Increment)
		case *xhttp2.PingFrame:
			s.add("> PING ack=%v %x", f.IsAck(), f.Data)
		case *xhttp2.DataFrame:
			s.add("> DATA %d %s%s", id, short(f.Data()), mark(f.StreamEnded(), " end"))
		case *xhttp2.HeadersFrame:
			block := bytes.Clone(f.HeaderBlockFragment())
			parts := 1
			for end := f.HeadersEnded(); !end; parts++ {
				next, err := fr.ReadFrame()
				if err != nil {
					t.Fatal(err)
				}
				c := next.(*xhttp2.ContinuationFrame)
				block, end = append(block, c.HeaderBlockFragment()...), c.HeadersEnded()
			}
			list, err := s.dec.DecodeFull(block)
			if err != nil {
				t.Fatalf("we wrote a head that cannot be read: %v", err)
			}
			var line strings.Builder
			fmt.Fprintf(&line, "> HEADERS %d", id)
			if parts > 1 {
				fmt.Fprintf(&line, " in %d", parts)
			}
			for _, f := range list {
				line.WriteString(" " + f.Name + "=" + short([]byte(f.Value)) + mark(f.Sensitive, "(secret)"))
			}
			s.add("%s%s", line.String(), mark(f.StreamEnded(), " end"))
		default:
			t.Fatalf("we wrote %v", f)
		}
	}
}

func mark(on bool, text string) string {
	if on {
		return text
	}
	return ""
}

func short(b []byte) string {
	if len(b) > 30 {
		return fmt.Sprintf("%d bytes", len(b))
	}
	return string(b)
}

func (h *Head) show() string {
	var b strings.Builder
	if h.Method != nil {
		fmt.Fprintf(&b, "%s %s %s %s", h.Method, h.Scheme, h.Authority, h.Path)
		if len(h.Protocol) > 0 {
			fmt.Fprintf(&b, " protocol=%s", h.Protocol)
		}
	}
	if h.Status > 0 {
		fmt.Fprintf(&b, "%d", h.Status)
	}
	if h.Length >= 0 {
		fmt.Fprintf(&b, " length=%d", h.Length)
	}
	b.WriteString(mark(h.Trailers, " te") + showFields(fieldsOf(h)))
	return strings.TrimPrefix(b.String(), " ")
}

func showFields(fields []Field) string {
	var b strings.Builder
	for _, f := range fields {
		fmt.Fprintf(&b, " %s=%s%s", f.Name, short(f.Value), mark(f.Secret, "(secret)"))
	}
	return b.String()
}

// event notes an event. Pieces of data that follow each other are one.
func (s *script) event(ev Event) {
	end := mark(ev.End, " end")
	switch ev.Kind {
	case EventRequest:
		s.add("request %d %s%s", ev.ID, ev.Head.show(), end)
	case EventResponse:
		s.add("response %d %s%s", ev.ID, ev.Head.show(), end)
	case EventInterim:
		s.add("interim %d %s", ev.ID, ev.Head.show())
	case EventTrailers:
		s.add("trailers %d %s%s", ev.ID, ev.Head.show(), end)
	case EventTooLarge:
		s.add("too large %d%s", ev.ID, end)
	case EventData:
		line := fmt.Sprintf("data %d ", ev.ID)
		if n := len(s.lines); n > 0 && strings.HasPrefix(s.lines[n-1], line) && !strings.HasSuffix(s.lines[n-1], " end") {
			s.lines[n-1] += string(ev.Data) + end
			break
		}
		s.add("%s%s%s", line, ev.Data, end)
	case EventReset:
		s.add("reset %d %v %s%s", ev.ID, ev.Code, ev.Err.Text, mark(ev.Retry, " retry"))
	case EventRefused:
		s.add("refused %d %v %s", ev.ID, ev.Code, ev.Err.Text)
	case EventWritable:
		s.add("writable %d", ev.ID)
	case EventSettings:
		s.add("settings")
	case EventGoAway:
		s.add("go away %d %v", ev.ID, ev.Code)
	case EventPong:
		s.add("pong %x", ev.Ping)
	}
}

// feed gives in to c in the pieces that cut makes, and notes everything. do is what the caller does at an event.
func (s *script) feed(t testing.TB, c *Conn, in []byte, cut func(n int) int, do func(c *Conn, ev Event)) {
	drain := func() {
		s.wrote(t, c.Out)
		c.Out = c.Out[:0]
	}
	drain()
	for at, have := 0, 0; ; {
		ev, n, err := c.Next(in[at:have:have])
		at += n
		drain()
		if err != nil {
			s.add("error %v", err)
			if _, _, again := c.Next(in[at:have]); again != err {
				t.Fatalf("after %v: %v", err, again)
			}
			return
		}
		if ev.Kind != EventNone {
			s.event(ev)
			if do != nil {
				do(c, ev)
				drain()
			}
			continue
		}
		if have == len(in) {
			if at < have && have-at > frameHead+maxFrame {
				t.Fatalf("%d bytes are not used", have-at)
			}
			return
		}
		have += min(max(1, cut(have)), len(in)-have)
	}
}
