package engine

import (
	"io"
	"strings"
	"time"
)

// guess is what is not known yet of a connection that was let in.
type guess uint8

const (
	known    guess = iota // raw tells it
	anything              // requests or raw
	hello                 // raw, and what its client says first is to be known before
)

const (
	anyWait   = 200 * time.Millisecond // for the first bytes of a client that may wait for its server's
	maxMethod = 24                     // bytes of a method that looks like one
)

// recognise finds out by its first bytes what a connection speaks that Conn.AdmitAny let in.
func (c *conn) recognise() (more bool) {
	yes, maybe := looksHTTP(c.rest())
	if !maybe {
		c.settleOn(!yes)
		return true
	}
	return c.guessMore()
}

// guessMore reads more of what is not known yet.
func (c *conn) guessMore() (more bool) {
	err := c.fill()
	switch {
	case err == nil:
		return true
	case err == errAgain:
		if c.drains() && c.in == nil {
			c.close(false)
		}
		return false
	case err == io.EOF && c.in != nil: // the end will be read again
		c.settleOn(true)
		return true
	default: // somebody looked if there is anybody
		c.close(err != io.EOF)
		return false
	}
}

// settleOn ends the guessing.
func (c *conn) settleOn(raw bool) {
	c.guess, c.raw, c.since = known, raw, c.l.now
	c.arm()
}

// looksHTTP tells if b begins like a request line of HTTP/1, or like the preface of HTTP/2, which is one, too; or if it may do so with
// more behind it.
func looksHTTP(b []byte) (yes, maybe bool) {
	n := 0
	for n < len(b) && (b[n] >= 'A' && b[n] <= 'Z' || b[n] == '-') {
		n++
	}
	switch {
	case n > maxMethod:
		return false, false
	case n == len(b):
		return false, true
	case n == 0 || b[n] != ' ':
		return false, false
	}
	target := string(b[n+1 : min(len(b), n+1+len("https://"))])
	switch {
	case target == "":
		return false, true
	case target[0] == '/', target[0] == '*', string(b[:n]) == "CONNECT":
		return true, false
	}
	for _, scheme := range [...]string{"http://", "https://"} {
		k := min(len(target), len(scheme))
		if strings.EqualFold(target[:k], scheme[:k]) {
			yes, maybe = yes || k == len(scheme), maybe || k < len(scheme)
		}
	}
	return yes, maybe && !yes
}
