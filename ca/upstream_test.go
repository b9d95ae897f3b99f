package ca

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// signing is an Upstream: an authority that signs what it is asked for.
type signing struct {
	*authority

	mu    sync.Mutex // guards what follows
	life  time.Duration
	err   error
	asked int
}

// set changes what the next request meets, and forgets those of before.
func (s *signing) set(life time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life, s.err, s.asked = life, err, 0
}

func (s *signing) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *signing) Sign(_ context.Context, csr []byte) (cert, root []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.err != nil {
		return nil, nil, s.err
	}
	p, _ := pem.Decode(csr)
	r, err := x509.ParseCertificateRequest(p.Bytes)
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{SerialNumber: newSerial(), Subject: r.Subject, URIs: r.URIs, NotBefore: time.Now(), NotAfter: time.Now().Add(s.life), BasicConstraintsValid: true, IsCA: true,
		MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, t, s.cert, r.PublicKey, s.key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), certPEM(s.authority), err
}

// TestUpstream: a mesh goes under the authority above by itself, and has each intermediate replaced at half of its life, also when that authority
// was away; for who does not lead nobody is asked.
func TestUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		day := 24 * time.Hour
		up := &signing{authority: under(t, nil, p256(t), "root", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(3650 * day) }), life: 30 * day}
		c := newCA(t, &memStore{}, Params{LeafTTL: day})
		c.cfg.Upstream = up
		var leads atomic.Bool
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- c.Run(ctx, leads.Load, func(context.Context) (uint64, error) { return 100, nil })
		}()
		defer func() { stop(); <-done }()
		pass := func(d time.Duration, asked int, given bool) Status {
			t.Helper()
			time.Sleep(d + time.Second)
			synctest.Wait()
			st, err := c.Status(t.Context())
			if n := up.count(); err != nil || n != asked || st.Given != given {
				t.Fatalf("asked %d times, want %d; %+v, %v", n, asked, st, err)
			}
			return st
		}
		pass(time.Hour, 0, false)
		leads.Store(true)
		pass(time.Minute, 1, false) // its root spreads
		pass(time.Hour, 1, true)
		first := pass(13*day, 1, true).Intermediate
		sealed := errors.New("sealed")
		up.set(30*day, sealed)
		pass(2*day-2*time.Hour, 0, true)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if err := c.UpstreamError(); up.count() < 2 || !errors.Is(err, sealed) {
			t.Errorf("asked %d times: %v", up.count(), err)
		}
		up.set(30*day, nil)
		if st := pass(2*time.Minute, 1, true); !st.Intermediate.After(first) || st.Step != NoStep || c.UpstreamError() != nil {
			t.Errorf("%+v, %v", st, c.UpstreamError())
		}
		up.set(day, nil) // not what hosts can live with
		time.Sleep(15 * day)
		synctest.Wait()
		if err := c.UpstreamError(); up.count() == 0 || !errors.Is(err, ErrGiven) {
			t.Errorf("asked %d times: %v", up.count(), err)
		}
	})
}
