package engine

import "time"

// holdTime bounds how long a head is held back, as what follows it may be long in coming.
const holdTime = 200 * time.Millisecond

// holdBack reports whether the head of an answer, n bytes in l.head, is held back, and keeps it then: what decides about another try, as of gRPC, may
// stand in trailers. Of a request that has not ended it is not, since the client may wait for the head.
func (x *Call) holdBack(end bool) bool {
	if !x.Decision.HoldHead || end || x.late != nil || !x.whole || !x.kept || x.tunnel || x.copied || x.asked.Connect || x.asked.Upgrade {
		return false
	}
	x.late = append(x.l.buffers.get(len(x.l.head)), x.l.head...)
	x.lateAt = x.l.now
	x.arm()
	return true
}

// passHeld passes on the head that is held back, if there is one. The call goes on with this answer if it is true.
func (c *conn) passHeld(x *Call) bool {
	if x.late == nil {
		return true
	}
	head := x.late
	x.late = nil
	x.res.Reset()
	n, _ := x.res.Parse(head, x.asked, c.pool.up.Response) // no error: it was parsed
	ok := x.passHead(n, false)
	c.l.buffers.put(head)
	return ok
}

// dropHeld forgets it.
func (x *Call) dropHeld() {
	x.l.buffers.put(x.late)
	x.late, x.lateAt = nil, 0
}
