//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// drain takes what the backend's TCP port sends through a proxy, over some connections, without copying it out of the kernel.
type drain struct {
	addr         netip.AddrPort
	conns        int
	warm, window time.Duration
	sample       func()
	n            atomic.Int64
}

func (d *drain) run(ctx context.Context) (outcome, error) {
	p, err := newPoller()
	if err != nil {
		return outcome{}, err
	}
	defer p.close()
	for range d.conns {
		fd, err := connect(d.addr)
		if err != nil {
			return outcome{}, err
		}
		if err := p.watch(fd, &sink{d, fd}, true, false); err != nil {
			return outcome{}, err
		}
		if _, err := write(fd, []byte("go\n")); err != nil { // some proxies connect at the first byte
			return outcome{}, err
		}
	}
	lctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var at [2]int64
	var took sync.WaitGroup
	took.Go(func() {
		defer cancel()
		for i, w := range []time.Duration{d.warm, d.window} {
			select {
			case <-lctx.Done():
				return
			case <-time.After(w):
			}
			d.sample()
			at[i] = d.n.Load()
		}
	})
	for lctx.Err() == nil && err == nil {
		err = p.wait(50 * time.Millisecond)
	}
	cancel()
	took.Wait()
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && at[1] == at[0] {
		err = fmt.Errorf("nothing came from %v", d.addr)
	}
	return outcome{requests: at[1] - at[0]}, err
}

type sink struct {
	d  *drain
	fd int
}

func (s *sink) failed(err error) error { return fmt.Errorf("tcp: %w", err) }

func (s *sink) event(bool) error {
	n, err := discard(s.fd)
	switch {
	case err == syscall.EAGAIN || err == syscall.EINTR:
		return nil
	case err != nil:
		return err
	case n == 0:
		return errClosed
	}
	s.d.n.Add(int64(n))
	return nil
}

// discard throws away what a socket has received.
func discard(fd int) (int, error) {
	n, _, errno := syscall.Syscall6(syscall.SYS_RECVFROM, uintptr(fd), 0, 4<<20, syscall.MSG_TRUNC|syscall.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
