package ca

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// signing is an Upstream: an authority that signs what it is asked for.
type signing struct {
	*authority
	life  time.Duration
	err   error
	asked int
}

func (s *signing) Sign(_ context.Context, csr []byte) (cert, root []byte, err error) {
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
		leads := false
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- c.Run(ctx, func() bool { return leads }, func(context.Context) (uint64, error) { return 100, nil })
		}()
		defer func() { stop(); <-done }()
		pass := func(d time.Duration, asked int, given bool) Status {
			t.Helper()
			time.Sleep(d + time.Second)
			synctest.Wait()
			st, err := c.Status(t.Context())
			if err != nil || up.asked != asked || st.Given != given {
				t.Fatalf("asked %d times, want %d; %+v, %v", up.asked, asked, st, err)
			}
			return st
		}
		pass(time.Hour, 0, false)
		leads = true
		pass(time.Minute, 1, false) // its root spreads
		pass(time.Hour, 1, true)
		first := pass(13*day, 1, true).Intermediate
		up.err = errors.New("sealed")
		pass(2*day-2*time.Hour, 1, true)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if err := c.UpstreamError(); up.asked < 2 || !errors.Is(err, up.err) {
			t.Errorf("asked %d times: %v", up.asked, err)
		}
		up.err, up.asked = nil, 0
		if st := pass(2*time.Minute, 1, true); !st.Intermediate.After(first) || st.Step != NoStep || c.UpstreamError() != nil {
			t.Errorf("%+v, %v", st, c.UpstreamError())
		}
		up.life = day // not what hosts can live with
		up.asked = 0
		time.Sleep(15 * day)
		synctest.Wait()
		if err := c.UpstreamError(); up.asked == 0 || !errors.Is(err, ErrGiven) {
			t.Errorf("asked %d times: %v", up.asked, err)
		}
	})
}
