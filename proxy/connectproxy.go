package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// maxConnectAnswer bounds the head of a forward proxy's answer, in bytes.
const maxConnectAnswer = 8 << 10

// throughProxy has a forward proxy outside of the mesh, to which c is connected, connect it to a target. Nothing behind the proxy's answer is read.
// Source: RFC 9110, section 9.3.6.
func throughProxy(ctx context.Context, c net.Conn, target string) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	end, _ := ctx.Deadline()
	c.SetDeadline(end)
	defer c.SetDeadline(time.Time{})
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
		return err
	}
	var head []byte
	for one := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); {
		if len(head) == maxConnectAnswer {
			return errors.New("its answer is too long")
		}
		if _, err := io.ReadFull(c, one); err != nil {
			return err
		}
		head = append(head, one[0])
	}
	line, _, _ := bytes.Cut(head, []byte("\r\n"))
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[8] != ' ' || line[9] != '2' || len(line) > 12 && line[12] != ' ' {
		return fmt.Errorf("it answers %.80q", line)
	}
	return nil
}
