package lb

import "net/netip"

// Hash returns the key of a header, a cookie or a query parameter for Pick: FNV-1a and a finalizer. It is the same on all hosts and in
// all versions, so that all agents send a key to the same instance. It is not 0, the key of calls that have none.
func Hash[T string | []byte](s T) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 0x100000001b3
	}
	return max(1, mix(h))
}

// HashAddr returns the key of a caller's address. IPv4 in IPv6 is IPv4, zones do not count.
func HashAddr(a netip.Addr) uint64 {
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		return Hash(b[:])
	}
	b := a.As16()
	return Hash(b[:])
}

// golden is 2^64 divided by the golden ratio: steps of it through mix make a good sequence of random numbers (splitmix64).
const golden = 0x9e3779b97f4a7c15

// mix makes each bit of x depend on all of them: the finalizer of splitmix64, a bijection.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
