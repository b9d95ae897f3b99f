package http2

import (
	"strings"

	"golang.org/x/net/http2/hpack"
)

const staticLen = 61

type pair struct{ name, value string }

// static is the static table of HPACK, from 1 on, as the library gives it.
var static = readStatic()

func readStatic() (t [staticLen + 1]pair) {
	at := 0
	d := hpack.NewDecoder(0, func(f hpack.HeaderField) { t[at] = pair{f.Name, f.Value} })
	for at = 1; at <= staticLen; at++ {
		if _, err := d.Write([]byte{0x80 | byte(at)}); err != nil {
			panic(err) // the library is not what it was built for
		}
	}
	return t
}

// huffman is the Huffman code of HPACK. The code is canonical: the lengths of the codes, which the library tells, say all. Codes are held
// as they stand in the highest of 32 bits.
var huffman = readHuffman()

const (
	shortBits = 9 // covers letters, digits and what is usual in paths
	longest   = 30
)

type huffmanTable struct {
	short [1 << shortBits]uint16 // of what begins with these bits: code length << 8 | symbol, 0 if the code is longer
	first [longest + 1]uint64    // the first code of a length
	end   [longest + 1]uint64    // codes below have at most this length
	from  [longest + 1]uint16    // where the symbols of a length begin
	order [256]byte              // symbols by code
}

func readHuffman() *huffmanTable {
	t := new(huffmanTable)
	var length [256]int
	for i := range length {
		length[i] = int(hpack.HuffmanEncodeLength(strings.Repeat(string([]byte{byte(i)}), 8))) // bytes for eight are bits for one
	}
	code, k := uint64(0), 0
	for n := 1; n <= longest; n++ {
		t.first[n], t.from[n] = code, uint16(k)
		for i := range length {
			if length[i] != n {
				continue
			}
			if n <= shortBits {
				for j := range 1 << (shortBits - n) {
					t.short[int(code>>(32-shortBits))+j] = uint16(n)<<8 | uint16(i)
				}
			}
			t.order[k] = byte(i)
			k++
			code += 1 << (32 - n)
		}
		t.end[n] = code
	}
	return t
}

// appendHuffman appends what src says, at most most bytes of it; long says that there are more. ok is false if src is not well formed.
func appendHuffman(dst, src []byte, most int) (out []byte, long, ok bool) {
	t := huffman
	var bits uint64 // from the highest on
	n := 0          // how many there are
	most += len(dst)
	for {
		for n <= 56 && len(src) > 0 {
			bits |= uint64(src[0]) << (56 - n)
			n += 8
			src = src[1:]
		}
		var size int
		var symbol byte
		if e := t.short[bits>>(64-shortBits)]; e != 0 {
			size, symbol = int(e>>8), byte(e)
		} else {
			v := bits >> 32
			for size = shortBits + 1; size <= longest && v >= t.end[size]; size++ {
			}
			if size <= longest {
				symbol = t.order[int(t.from[size])+int((v-t.first[size])>>(32-size))]
			}
		}
		if size > n { // the rest is padding: less than a byte, all ones
			return dst, long, n < 8 && bits == ^uint64(0)<<(64-n)
		}
		if size > longest { // the end symbol
			return dst, long, false
		}
		if long = len(dst) == most; !long {
			dst = append(dst, symbol)
		}
		bits <<= size
		n -= size
	}
}
