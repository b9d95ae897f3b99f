package http2

// Stream is one request and its response. The caller gets it with the event Request or from Open, and gives it back with Close, exactly
// once, whatever came of it: until then what it holds of the windows is not given to others, and it counts as a stream.
type Stream struct {
	ID    uint32
	Owner any // the caller's

	next *Stream // in its bucket
	born int64   // Scratch.Now

	sendWindow int64 // how much we may send; negative after the peer made its windows smaller
	recvWindow int32 // how much the peer may send
	held       int32 // what the caller has not taken
	taken      int32 // what it has taken and the peer does not know of

	recvLeft int64 // what is left of the content-length that the peer sent, -1 if it sent none
	sendLeft int64 // the same of ours

	open               bool // it counts as one that has not ended
	recvEnd, sendEnd   bool // END_STREAM
	reset              bool // by either
	byPeer             bool // the reset
	headRecv, headSent bool // the final head of a response
	head               bool // the method is HEAD
	connect            bool // the method is CONNECT
	large              bool // the head of the request was over the limits
}

// Ended tells if nothing more comes or goes on the stream.
func (s *Stream) Ended() bool { return s.reset || s.recvEnd && s.sendEnd }

// streams is a hash table by id. Ids follow each other, so that streams of about the same age are in buckets of their own.
type streams struct {
	buckets []*Stream // a power of two of them
	n       int
}

func (t *streams) bucket(id uint32) **Stream { return &t.buckets[int(id>>1)&(len(t.buckets)-1)] }

func (t *streams) find(id uint32) *Stream {
	if t.n == 0 {
		return nil
	}
	s := *t.bucket(id)
	for s != nil && s.ID != id {
		s = s.next
	}
	return s
}

func (t *streams) add(s *Stream) {
	if t.n == len(t.buckets) {
		old := t.buckets
		t.buckets = make([]*Stream, max(8, 2*len(old)))
		for _, b := range old {
			for b != nil {
				next, p := b.next, t.bucket(b.ID)
				b.next, *p = *p, b
				b = next
			}
		}
	}
	p := t.bucket(s.ID)
	s.next, *p = *p, s
	t.n++
}

func (t *streams) remove(s *Stream) {
	p := t.bucket(s.ID)
	for *p != s {
		p = &(*p).next
	}
	*p = s.next
	t.n--
}

// closed remembers streams that ended lately, and if we reset them: then the peer's frames that were on their way are no mistake.
type closed struct {
	ring [128]uint32 // id << 1 | ours
	n    uint32      // how many ended, ever
}

func (c *closed) add(id uint32, ours bool) {
	e := id << 1
	if ours {
		e |= 1
	}
	c.ring[c.n%uint32(len(c.ring))] = e
	c.n++
}

// find tells if the stream ended lately, and if we reset it.
func (c *closed) find(id uint32) (ended, ours bool) {
	for _, e := range c.ring[:min(int(c.n), len(c.ring))] {
		if e>>1 == id {
			return true, e&1 == 1
		}
	}
	return false, false
}

// forgot tells if there were more than it could remember.
func (c *closed) forgot() bool { return c.n > uint32(len(c.ring)) }
