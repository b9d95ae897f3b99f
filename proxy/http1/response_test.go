package http1

import (
	"fmt"
	"strings"
	"testing"
)

// responseRow is a response to a request of which asked is known.
type responseRow struct {
	row
	asked Asked
}

var (
	get     = Asked{Proto: HTTP11, KeepAlive: true}
	head    = Asked{Proto: HTTP11, KeepAlive: true, Head: true}
	connect = Asked{Proto: HTTP11, Connect: true}
	upgrade = Asked{Proto: HTTP11, KeepAlive: true, Upgrade: true}
	old     = Asked{Proto: HTTP10, KeepAlive: true}
)

var responseRows = []responseRow{
	{row{"B17", "length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde", 0, "200 OK 1.1 length 5 keep"}, get},
	{row{"B17", "length 0", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0, "200 OK 1.1 none 0 keep"}, get},
	{row{"B17", "chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 0, "200 OK 1.1 chunked -1 keep"}, get},
	{row{"B17", "close-delimited", "HTTP/1.1 200 OK\r\n\r\n", 0, "200 OK 1.1 close -1"}, get},
	{row{"B13", "HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", 0, "200 OK 1.0 length 5"}, get},
	{row{"B13", "HTTP/1.0 kept", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", 0, "200 OK 1.0 length 5 keep"}, get},
	{row{"B13", "chunked in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 502, "HTTP/1.0 has no Transfer-Encoding"}, get},
	{row{"B2", "close", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n", 0, "200 OK 1.1 length 5"}, get},
	{row{"B17", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 0, "200 OK 1.1 none 5 keep"}, head},
	{row{"B17", "HEAD without a length", "HTTP/1.1 200 OK\r\n\r\n", 0, "200 OK 1.1 none -1 keep"}, head},
	{row{"B17", "HEAD chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 0, "200 OK 1.1 none -1 keep"}, head},
	{row{"B17", "204", "HTTP/1.1 204 No Content\r\n\r\n", 0, "204 No Content 1.1 none -1 keep"}, get},
	{row{"B17 B2", "204 with a body", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 0, "204 No Content 1.1 none -1"}, get},
	{row{"B17 B2", "204 with chunks", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 0, "204 No Content 1.1 none -1"}, get},
	{row{"B17", "304", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 0, "304 Not Modified 1.1 none 5 keep"}, get},
	{row{"B14", "100", "HTTP/1.1 100 Continue\r\n\r\n", 0, "100 Continue 1.1 none -1 keep interim"}, get},
	{row{"B14", "103", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 0, "103 Early Hints 1.1 none -1 keep interim"}, head},
	{row{"B14 B23", "101", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 0,
		"101 Switching Protocols 1.1 tunnel -1 upgrade=websocket"}, upgrade},
	{row{"B23", "101 not asked for", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 502,
		"101 answers a request that did not ask for an upgrade"}, get},
	{row{"B23", "101 without Upgrade", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n", 502,
		"101 must say in one Upgrade, listed in Connection, to what"}, upgrade},
	{row{"B23", "101 without Connection", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", 502, faultSwitchTo.response.Text}, upgrade},
	{row{"B23", "101 in HTTP/1.0", "HTTP/1.0 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 502, faultSwitch.response.Text}, upgrade},
	{row{"B23", "101 to h2c", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", 502, faultSwitchTo.response.Text}, upgrade},
	{row{"S20", "200 to Upgrade", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 0, "200 OK 1.1 length 5 keep"}, upgrade},
	{row{"S20", "426", "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 0,
		"426 Upgrade Required 1.1 none 0 keep upgrade=websocket"}, get},
	{row{"B21", "200 to CONNECT", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 0, "200 OK 1.1 tunnel -1"}, connect},
	{row{"B21", "204 to CONNECT", "HTTP/1.1 204 OK\r\n\r\n", 0, "204 OK 1.1 tunnel -1"}, connect},
	{row{"S20 S21", "405 to CONNECT", "HTTP/1.1 405 No\r\nContent-Length: 5\r\n\r\n", 0, "405 No 1.1 length 5 keep"}, connect},
	{row{"B17", "no reason", "HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\n", 0, "200  1.1 length 5 keep"}, get},
	{row{"B17", "no reason, no space", "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n", 0, "200  1.1 length 5 keep"}, get},
	{row{"B17", "reason with bytes that are not ASCII", "HTTP/1.1 200 \xe4\tb\r\nContent-Length: 5\r\n\r\n", 0, "200 \xe4\tb 1.1 length 5 keep"}, get},
	{row{"S33", "underscores pass", "HTTP/1.1 200 OK\r\nX_A: b\r\nContent-Length: 5\r\n\r\n", 0, "200 OK 1.1 length 5 keep"}, get},
	{row{"S33", "length in disguise", "HTTP/1.1 200 OK\r\nContent_Length: 5\r\n\r\n", 502, faultDisguise.response.Text}, get},
	{row{"B17 S18", "both", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 502, faultBoth.response.Text}, get},
	{row{"B17 S18", "two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 502, faultLengths.response.Text}, get},
	{row{"B17", "another coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 502, faultCoding.response.Text}, get},
	{row{"B17", "NUL in the reason", "HTTP/1.1 200 O\x00K\r\n", 502, faultValue.response.Text}, get},
	{row{"B17", "bare LF", "HTTP/1.1 200 OK\n", 502, faultLine.response.Text}, get},
	{row{"B17", "obs-fold", "HTTP/1.1 200 OK\r\nx: a\r\n\tb\r\n\r\n", 502, faultFold.response.Text}, get},
	{row{"B17", "two digits", "HTTP/1.1 20 OK now\r\n", 502, "a response must begin with HTTP/1.1 and three digits, one space between them"}, get},
	{row{"B17", "four digits", "HTTP/1.1 2000 OK\r\n", 502, faultStatus.response.Text}, get},
	{row{"B17", "099", "HTTP/1.1 099 OK\r\n", 502, faultStatus.response.Text}, get},
	{row{"B17", "+99", "HTTP/1.1 +99 OK\r\n", 502, faultStatus.response.Text}, get},
	{row{"B13", "HTTP/2.0", "HTTP/2.0 200 OK\r\n", 502, faultVersion.response.Text}, get},
	{row{"B13", "HTTP/0.9", "<html>", 502, faultStatus.response.Text}, get},
	{row{"B13", "ICY", "HXXP/1.1 200 OK\r\n", 502, faultStatus.response.Text}, get},
	{row{"B19", "head over the limit", "HTTP/1.1 200 OK\r\nx: " + strings.Repeat("v", 64<<10), 502, "the head is too large"}, get},
	{row{"B19", "101 fields", "HTTP/1.1 200 OK\r\n" + strings.Repeat("x: y\r\n", 101), 502, "the head has too many fields"}, get},
}

func (r *Response) show() string {
	return marked(fmt.Sprintf("%d %s %v %v %d", r.Status, r.Reason, r.Proto, r.Framing.Kind, r.Framing.Length),
		mark{r.KeepAlive, " keep"}, mark{r.Interim(), " interim"}, mark{r.Upgrade != nil, " upgrade=" + string(r.Upgrade)})
}

func parseWholeResponse(t testing.TB, r *Response, b []byte, asked Asked) (int, error) {
	n, err := whole(t, b, func(fresh bool, b []byte) (int, error) {
		if fresh {
			r.Reset()
		}
		return r.Parse(b, asked, Options{})
	}, func() string { return r.show() + "\n" + r.Head.show() })
	if n > 0 {
		r.Reset()
		r.Parse(b, asked, Options{})
	}
	return n, err
}

func TestResponse(t *testing.T) {
	for _, c := range responseRows {
		t.Run(c.law+" "+c.name, func(t *testing.T) {
			var r Response
			n, err := parseWholeResponse(t, &r, []byte(c.in), c.asked)
			check(t, c.row, n, err, r.show)
		})
	}
}
