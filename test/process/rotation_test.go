//go:build process && linux

package process

import (
	"fmt"
	"testing"
	"time"

	"github.com/meshagent/meshagent/test/lab"
)

// TestRotationUnderLoad: the root of the certificate authority is replaced, with all certificates, and then the key of gossip, while calls go on between two hosts: none
// fails. Certificates last for 20 s here, so that all steps of the rotation end while the test looks on.
func TestRotationUnderLoad(t *testing.T) {
	c := lab.NewShortLived(t, 124, 3, 2)
	serve(c.Host(4), "v1")
	c.Host(5).Calls()
	c.Host(5).AwaitUsable("web", 1)
	client := newClient(t, c.Host(5))
	if _, err := get(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	before, err := c.Host(1).API.CA(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	old := before.Roots[0].SHA256
	var took [2]time.Duration
	const rate = 200
	failed := load(t.Context(), client, 75*rate, rate, func() {
		begin := time.Now()
		c.Host(2).CLI("ca", "rotate")
		c.Await("another root alone", 90*time.Second, func() error {
			s, err := c.Host(5).API.CA(t.Context())
			switch {
			case err != nil:
				return err
			case s.Step != "" || len(s.Roots) != 1 || s.Roots[0].SHA256 == old:
				return fmt.Errorf("step %q, %d roots", s.Step, len(s.Roots))
			}
			return nil
		})
		took[0] = time.Since(begin)
		keys, err := c.Host(1).API.Keyring(t.Context(), 0, 0)
		if err != nil {
			t.Error(err)
			return
		}
		begin = time.Now()
		c.Host(1).CLI("keyring", "rotate")
		c.Await("another key of gossip alone", 60*time.Second, func() error {
			s, err := c.Host(5).API.Keyring(t.Context(), 0, 0)
			switch {
			case err != nil:
				return err
			case s.Step != "" || s.Version <= keys.Version:
				return fmt.Errorf("step %q, version %d", s.Step, s.Version)
			}
			return nil
		})
		took[1] = time.Since(begin)
	})
	t.Logf("%d of %d calls failed; the root was replaced in %v, the key of gossip in %v", len(failed), 75*rate, took[0], took[1])
	for _, f := range failed[:min(len(failed), 3)] {
		t.Error(f.err)
	}
}
