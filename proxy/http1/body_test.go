package http1

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// drink takes a whole body out of b, which comes in pieces of step bytes and in a buffer that moves. It says what the body is, and
// how many bytes of b belong to the message; done is false when it had no end.
func drink(body Body, b []byte, step int) (data string, t Trailer, used int, done bool, err error) {
	var buf []byte
	for in := b; ; {
		k := min(step, len(in))
		buf, in = append(bytes.Clone(buf), in[:k]...), in[k:]
		for {
			d, n, end, err := body.Next(buf, &t)
			data += string(d)
			used += n
			buf = buf[n:]
			if end || err != nil {
				return data, t, used, end, err
			}
			if n == 0 && len(d) == 0 {
				break
			}
		}
		if k == 0 {
			return data, t, used, false, nil
		}
	}
}

func chunkedBody(response bool) Body { return newBody(Framing{Chunked, -1}, response) }

var bodyRows = []row{
	{"B17", "chunks", "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\nrest", 0, "hello world||rest"},
	{"B17", "no data", "0\r\n\r\n", 0, "||"},
	{"B17", "upper and lower case, leading zeros", "00a\r\n0123456789\r\nA\r\n0123456789\r\n000\r\n\r\n", 0, "01234567890123456789||"},
	{"B17", "extension", "1;a=\"b\" ; c\r\nx\r\n0;d\r\n\r\n", 0, "x||"},
	{"B15", "trailers", "1\r\nx\r\n0\r\nA: b\r\ngrpc-status:0\r\n\r\nrest", 0, "x|A: b\ngrpc-status: 0\n|rest"},
	{"S33", "underscores are left out", "0\r\nX_A: b\r\n\r\n", 0, "||"},
	{"B17 S17", "bare LF behind the size", "5\nhello\r\n0\r\n\r\n", 400, "a chunk size must be followed by CR LF, or by ';' and an extension without control bytes"},
	{"B17 S17", "bare LF behind the extension", "5;a\nhello\r\n0\r\n\r\n", 400, faultChunkLine.request.Text},
	{"B17 S17", "bare LF behind the data", "5\r\nhello\n0\r\n\r\n", 400, "a chunk must end with CR LF after as many bytes as it announced"},
	{"B17 S17", "bare LF behind a trailer", "0\r\na: b\n\r\n", 400, faultLine.request.Text},
	{"B17 S17", "bare LF at the end", "0\r\n\n", 400, faultLine.request.Text},
	{"B17", "CR alone behind the size", "5\rhello\r\n0\r\n\r\n", 400, faultChunkLine.request.Text},
	{"B17", "CR alone behind the data", "5\r\nhello\r0\r\n\r\n", 400, faultChunkEnd.request.Text},
	{"B17", "CR in the extension", "5;a\rb\r\nhello\r\n0\r\n\r\n", 400, faultChunkLine.request.Text},
	{"B17", "NUL in the extension", "5;a\x00\r\nhello\r\n0\r\n\r\n", 400, faultChunkLine.request.Text},
	{"B17", "+5", "+5\r\nhello\r\n0\r\n\r\n", 400, "a chunk size must be 1 to 15 hexadecimal digits"},
	{"B17", "-5", "-5\r\n", 400, faultChunkSize.request.Text},
	{"B17", "0x5", "0x5\r\nhello\r\n0\r\n\r\n", 400, faultChunkLine.request.Text},
	{"B17", "no size", "\r\n", 400, faultChunkSize.request.Text},
	{"B17", "extension without a size", ";a\r\n", 400, faultChunkSize.request.Text},
	{"B17", "space before the size", " 5\r\n", 400, faultChunkSize.request.Text},
	{"B17", "space behind the size", "5 \r\nhello\r\n0\r\n\r\n", 400, faultChunkLine.request.Text},
	{"B17", "space before the extension", "5 ;a\r\nhello\r\n0\r\n\r\n", 400, faultChunkLine.request.Text},
	{"B17", "oversize", "fffffffffffffffff\r\n", 400, faultChunkSize.request.Text},
	{"B17", "sixteen zeros", "0000000000000000\r\n\r\n", 400, faultChunkSize.request.Text},
	{"B17", "more data than announced", "5\r\nhello!\r\n0\r\n\r\n", 400, faultChunkEnd.request.Text},
	{"B17", "flood of extensions in one chunk", "1;" + strings.Repeat("a", 16<<10) + "\r\n", 400, "the body has too many bytes of chunk extensions"},
	{"B17", "flood of extensions in many chunks", strings.Repeat("1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n", 600), 400, faultExtension.request.Text},
	{"B17", "obs-fold in trailers", "0\r\na: b\r\n c\r\n\r\n", 400, faultFold.request.Text},
	{"B17", "space before a trailer's colon", "0\r\na : b\r\n\r\n", 400, faultName.request.Text},
	{"B17", "NUL in a trailer", "0\r\na: \x00\r\n\r\n", 400, faultValue.request.Text},
	{"B17 S18", "framing in trailers", "0\r\nContent-Length: 5\r\n\r\n", 400, "a trailer may not be a field that rules framing, routing, credentials or how the body is read"},
	{"B17 S18", "coding in trailers", "0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, faultTrailer.request.Text},
	{"S23", "Host in trailers", "0\r\nhost: b\r\n\r\n", 400, faultTrailer.request.Text},
	{"S32", "credentials in trailers", "0\r\nAuthorization: b\r\n\r\n", 400, faultTrailer.request.Text},
	{"S32", "cookie in trailers", "0\r\nCookie: b\r\n\r\n", 400, faultTrailer.request.Text},
	{"S33", "type in disguise in trailers", "0\r\nContent_Type: b\r\n\r\n", 400, faultTrailer.request.Text},
	{"B19", "trailers over the limit", "0\r\na: " + strings.Repeat("b", 16<<10) + "\r\n\r\n", 431, "the trailers are too large or too many"},
	{"B19", "101 trailers", "0\r\n" + strings.Repeat("a: b\r\n", 101) + "\r\n", 431, faultTrailerSize.request.Text},
}

func TestChunked(t *testing.T) {
	for _, c := range bodyRows {
		t.Run(c.law+" "+c.name, func(t *testing.T) {
			in := []byte(c.in)
			for _, step := range []int{1, 2, 3, 5, 1000, len(in)} {
				data, tr, used, done, err := drink(chunkedBody(false), in, step)
				if c.status != 0 {
					var e *Error
					if !errors.As(err, &e) || e.Status != c.status || e.Text != c.want {
						t.Fatalf("by %d: got %v; want %d %s", step, err, c.status, c.want)
					}
					if _, _, _, _, err := drink(chunkedBody(true), in, step); !errors.As(err, &e) || e.Status != 502 || e.Text != c.want {
						t.Fatalf("by %d, in a response: got %v", step, err)
					}
					continue
				}
				if got := data + "|" + tr.show() + "|" + c.in[used:]; err != nil || !done || got != c.want {
					t.Fatalf("by %d: got %q, %v, %v; want %q", step, got, done, err, c.want)
				}
			}
		})
	}
}

// A body that is cut anywhere is no body (B17): the end of the connection must not look like the end of the message.
func TestCut(t *testing.T) {
	for _, c := range []struct {
		framing Framing
		in      string
	}{
		{Framing{Chunked, -1}, "5\r\nhello\r\n0\r\na: b\r\n\r\n"},
		{Framing{Length, 5}, "hello"},
	} {
		for k := range c.in {
			for _, response := range []bool{false, true} {
				body, status := newBody(c.framing, response), 400
				if response {
					status = 502
				}
				for b := []byte(c.in[:k]); ; {
					var tr Trailer
					d, n, done, err := body.Next(b, &tr)
					if done || err != nil {
						t.Fatalf("%q: %v, %v", c.in[:k], done, err)
					}
					if b = b[n:]; n == 0 && len(d) == 0 {
						break
					}
				}
				var e *Error
				if err := body.End(); !errors.As(err, &e) || e.Status != status || e.Text != "the connection ended before the body did" || body.Done() {
					t.Errorf("%q: %v", c.in[:k], err)
				}
			}
		}
	}
}

func TestBodies(t *testing.T) {
	var tr Trailer
	tr.n = 1 // of an earlier body
	for _, c := range []struct {
		framing Framing
		want    string
	}{
		{Framing{None, -1}, `"" 0 true 0 <nil>`},
		{Framing{None, 5}, `"" 0 true 0 <nil>`}, // HEAD
		{Framing{Length, 3}, `"abc" 3 true 0 <nil>`},
		{Framing{Length, 9}, `"abcdef" 6 false 3 http1: the connection ended before the body did`},
		{Framing{UntilClose, -1}, `"abcdef" 6 false -1 <nil>`}, // B17: the end of the connection is the end of the body
		{Framing{Tunnel, -1}, `"abcdef" 6 false -1 <nil>`},
	} {
		b := newBody(c.framing, true)
		d, n, done, err := b.Next([]byte("abcdef"), &tr)
		if got := fmt.Sprintf("%q %d %v %d %v", d, n, done, b.Left(), b.End()); got != c.want || err != nil || tr.Len() != 0 {
			t.Errorf("%v: got %s, %v, trailers %q", c.framing, got, err, tr.show())
		}
	}
	if b := chunkedBody(false); b.Left() != -1 {
		t.Error("the length of chunks is not known")
	}
}

// Trailers of a body that was given up half read do not show up behind the next.
func TestTrailersBegun(t *testing.T) {
	var tr Trailer
	first, second := chunkedBody(false), chunkedBody(false)
	if _, _, done, err := first.Next([]byte("0\r\nsecret: a\r\nb"), &tr); done || err != nil {
		t.Fatal(done, err)
	}
	if _, _, done, err := first.Next([]byte("e"), &tr); done || err != nil || tr.Len() != 0 { // of what was left, bytes are lost
		t.Fatal(done, err, tr.show())
	}
	if _, n, done, err := second.Next([]byte("0\r\nc: d\r\n\r\n"), &tr); n != 11 || !done || err != nil || tr.show() != "c: d\n" {
		t.Error(n, done, err, tr.show())
	}
}
