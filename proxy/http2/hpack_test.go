package http2

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
)

// Every byte is read as the library writes it, and what is not well formed is refused as the library does.
func TestHuffman(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
		for n := range 9 {
			want := bytes.Repeat(all[i:i+1], n)
			if got, long, ok := appendHuffman(nil, hpack.AppendHuffmanString(nil, string(want)), 8); !bytes.Equal(got, want) || long || !ok {
				t.Errorf("%d times %#x: %x, %v, %v", n, i, got, long, ok)
			}
		}
	}
	if got, long, ok := appendHuffman(nil, hpack.AppendHuffmanString(nil, string(all)), 256); !bytes.Equal(got, all) || long || !ok {
		t.Errorf("all bytes: %x, %v, %v", got, long, ok)
	}
	for _, bad := range []string{"\xff", "\xff\xff", "\xff\xff\xff\xff", "\xff\xff\xff\xfc", "\x00", "\x1f\xff", "\x1e", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00"} {
		_, theirs := hpack.HuffmanDecodeToString([]byte(bad))
		if got, _, ok := appendHuffman(nil, []byte(bad), 100); ok || theirs == nil {
			t.Errorf("%x is read as %x; the library has %v", bad, got, theirs)
		}
	}
	in := hpack.AppendHuffmanString(nil, strings.Repeat("0", 1<<20))
	if got, long, ok := appendHuffman([]byte("ab"), in, 100); len(got) != 102 || cap(got) > 1000 || !long || !ok {
		t.Errorf("%d bytes of at most 102, long %v, ok %v", len(got), long, ok)
	}
	if _, _, ok := appendHuffman(nil, append(in, 0xff), 100); ok {
		t.Error("what is wrong behind the limit was not seen")
	}
}

// What repeats is soon in the table, and stays there, whatever else is new in every head.
func TestEncoderKeepsWhatRepeats(t *testing.T) {
	enc := newEncoder()
	write := func(name, value string) []byte {
		return enc.field(nil, []byte(name), []byte(value), lookup([]byte(name)), false)
	}
	for i := range 1000 {
		for _, name := range []string{"user-agent", "x-tenant"} {
			if b := write(name, "the same "+name); i > 100 && len(b) != 1 {
				t.Fatalf("head %d: %s takes %d bytes", i, name, len(b))
			}
		}
		for _, name := range []string{":path", "date", "x-request-id"} {
			write(name, fmt.Sprintf("%s of head %d", name, i))
		}
	}
}

// A table that was smaller for a while is told to be, to every decoder, Go's too.
func TestEncoderSizes(t *testing.T) {
	for _, sizes := range [][]int{nil, {64, tableSize}, {0, tableSize}, {100}, {tableSize, 0, 200}, {1 << 20}, {64, 10, 64}} {
		enc := newEncoder()
		dec := decoder{table{most: tableSize}}
		lib := hpack.NewDecoder(tableSize, nil)
		var h Head
		for i := range 6 {
			if i == 4 {
				for _, n := range sizes {
					enc.resize(n)
				}
			}
			out := enc.begin(nil)
			for k := range 50 {
				out = enc.field(out, fmt.Appendf(nil, "x-%d", k), []byte("a value of it"), 0, false)
			}
			h.reset(ofResponseTrailers, &Options{HeadBytes: 10_000, Fields: 100})
			if _, err := lib.DecodeFull(out); err != nil || !dec.decode(out, &h) || h.Len() != 50 {
				t.Fatalf("sizes %v, head %d, %x: %v; we read %s", sizes, i, out, err, h.show())
			}
			sameTable(t, lib, &enc.table)
			sameTable(t, lib, &dec.table)
		}
	}
}
