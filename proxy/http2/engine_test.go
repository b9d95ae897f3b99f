package http2

import (
	"bytes"
	"errors"
	"net"
	"sync"
	"testing"
)

// engine runs a Conn over a net.Conn, one goroutine each, as a proxy would that has only this protocol.
type engine struct {
	*Conn
	x    Scratch
	net  net.Conn
	in   []byte
	buf  []byte
	each func(*engine, Event)
}

func newEngine(n net.Conn, client bool, o Options, each func(*engine, Event)) *engine {
	e := &engine{net: n, buf: make([]byte, 32<<10), each: each}
	if client {
		e.Conn = NewClient(o, &e.x)
	} else {
		e.Conn = NewServer(o, &e.x)
	}
	return e
}

func (e *engine) flush() error {
	if len(e.Out) == 0 {
		return nil
	}
	_, err := e.net.Write(e.Out)
	e.Out = e.Out[:0]
	return err
}

// turn reads once and gives all events of what it read to each.
func (e *engine) turn() error {
	if err := e.flush(); err != nil {
		return err
	}
	n, err := e.net.Read(e.buf)
	if err != nil {
		return err
	}
	in := e.buf[:n]
	if len(e.in) > 0 {
		e.in = append(e.in, in...)
		in = e.in
	}
	for {
		ev, n, err := e.Next(in)
		in = in[n:]
		if err != nil {
			e.flush()
			return err
		}
		if ev.Kind == EventNone {
			break
		}
		e.each(e, ev)
	}
	e.in = append(e.in[:0], in...)
	return e.flush()
}

func (e *engine) run() error {
	defer e.net.Close()
	for {
		if err := e.turn(); err != nil {
			return err
		}
		if e.Done() {
			return nil
		}
	}
}

// reply is an answer that is on its way: of an echo server.
type reply struct {
	body     bytes.Buffer
	end      bool
	took     int
	trailers []Field
}

func fieldsOf(h *Head) (fields []Field) {
	for i := range h.Len() {
		fields = append(fields, h.Field(i))
	}
	return fields
}

// echo answers with the fields, the body and the trailers of the request, or with a greeting if there is no body.
func echo(e *engine, ev Event) {
	s := ev.Stream
	switch ev.Kind {
	case EventRequest:
		r := &reply{end: ev.End}
		s.Owner = r
		if ev.End {
			r.body.WriteString("hello, world")
		}
		if err := e.Respond(s, 200, -1, fieldsOf(ev.Head), ev.End && string(ev.Head.Method) == "HEAD"); err != nil {
			panic(err)
		}
		e.answer(s)
	case EventTooLarge:
		e.Respond(s, 431, -1, nil, true)
		e.Close(s, NoError)
	case EventData:
		r := s.Owner.(*reply)
		r.body.Write(ev.Data)
		r.took += len(ev.Data)
		r.end = ev.End
		e.answer(s)
	case EventTrailers:
		r := s.Owner.(*reply)
		var h Head
		h.Copy(ev.Head)
		r.end, r.trailers = true, fieldsOf(&h)
		e.answer(s)
	case EventReset:
		e.Close(s, Cancel)
	case EventWritable, EventSettings:
		if s != nil {
			e.answer(s)
			break
		}
		for s := range e.Streams() {
			e.answer(s)
		}
	}
}

func (e *engine) answer(s *Stream) {
	r := s.Owner.(*reply)
	if !s.sendEnd {
		n, err := e.Data(s, r.body.Bytes(), r.end && r.trailers == nil)
		if err != nil {
			panic(err)
		}
		r.body.Next(n)
		if r.end && r.trailers != nil && r.body.Len() == 0 {
			if err := e.Trailers(s, r.trailers); err != nil {
				panic(err)
			}
		}
	}
	if t := min(r.took, r.took-r.body.Len()); t > 0 {
		e.Take(s, t)
		r.took -= t
	}
	if s.Ended() {
		e.Close(s, NoError)
	}
}

// listen serves connections with a Conn each, and returns the address. failed is told what peers do wrong.
func listen(t testing.TB, o Options, each func(*engine, Event), failed func(error)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			n, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				if e, ok := errors.AsType[*Error](newEngine(n, false, o, each).run()); ok {
					failed(e)
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() }) // clients have closed their connections
	return l.Addr().String()
}
