package engine

// buffers are those of a loop that nobody uses. The last one given back is the next one taken: it is still in the CPU's cache.
type buffers struct{ free [len(sizes)][][]byte }

// sizes of buffers. The smallest takes most heads, the third a head or a part of a body of 64 KiB and what is added to it, the last
// whatever our limits allow, as a window of 256 KiB that was not passed on.
var sizes = [...]int{4 << 10, 16 << 10, 80 << 10, 208 << 10, 416 << 10}

const maxFree = 4 << 20 // bytes of each size that are kept

// get returns an empty buffer with room for n bytes.
func (f *buffers) get(n int) []byte {
	for i, size := range sizes {
		if n > size {
			continue
		}
		if k := len(f.free[i]); k > 0 {
			b := f.free[i][k-1]
			f.free[i] = f.free[i][:k-1]
			return b
		}
		return make([]byte, 0, size)
	}
	return make([]byte, 0, n)
}

// put gives a buffer back. nil is none.
func (f *buffers) put(b []byte) {
	for i := len(sizes) - 1; i >= 0; i-- {
		if cap(b) >= sizes[i] {
			if (len(f.free[i])+1)*sizes[i] <= maxFree && cap(b) <= 2*sizes[len(sizes)-1] {
				f.free[i] = append(f.free[i], b[:0])
			}
			return
		}
	}
}

// grow returns b with room for n bytes more. The old buffer is given back if it was too small.
func (f *buffers) grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	g := append(f.get(len(b)+n), b...)
	f.put(b)
	return g
}
