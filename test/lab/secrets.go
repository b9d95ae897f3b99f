//go:build process && linux

package lab

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// secret is what nobody may find in what agents write.
type secret struct {
	what  string
	forms [][]byte
	home  string // the one file that has it, below the data directory; "" for none
}

// Secret has the end of the test look for a text in all that the agents of the cluster wrote and stored: it must not be there, as it is or in
// base64 or hex. Of a token it is the secret part.
func (c *Cluster) Secret(what, text string) { c.add(what, text, "") }

func (c *Cluster) add(what, text, home string) {
	s := secret{what: what, home: home}
	part, _, _ := strings.Cut(text, "@")
	if part = part[strings.LastIndexAny(part, "._")+1:]; len(part) < 16 {
		part = text // it is no token
	}
	s.forms = append(s.forms, []byte(part), []byte(hex.EncodeToString([]byte(part))))
	for before := range 3 { // wherever in a longer text it stands
		b := base64.RawStdEncoding.EncodeToString([]byte("..."[:before] + part))
		s.forms = append(s.forms, []byte(b[(before*8+5)/6:len(b)-2])) // whose last characters depend on what follows
	}
	c.secrets = append(c.secrets, s)
}

// Leaks names the secrets that are in a text.
func (c *Cluster) Leaks(text []byte) (out []string) { return c.leaks("", text) }

func (c *Cluster) leaks(file string, text []byte) (out []string) {
	for _, s := range c.secrets {
		if (s.home == "" || s.home != file) && slices.ContainsFunc(s.forms, func(f []byte) bool { return bytes.Contains(text, f) }) {
			out = append(out, s.what)
		}
	}
	return out
}

// keepsSecrets looks for secrets in the host's log and in its data directory: SECURITY 65.
func (h *Host) keepsSecrets() {
	if b, err := os.ReadFile(h.path("data", "node.key")); err == nil {
		if block, _ := pem.Decode(b); block != nil {
			if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
				if d, err := key.(*ecdsa.PrivateKey).Bytes(); err == nil {
					h.c.add("the key of "+h.name(), string(d), h.path("data", "node.key"))
				}
			}
		}
	}
	look := func(file string) {
		b, err := os.ReadFile(file)
		if err != nil {
			h.c.t.Error(err)
		}
		for _, what := range h.c.leaks(file, b) {
			h.c.t.Errorf("%s is in %s", what, strings.TrimPrefix(file, h.c.Dir))
		}
	}
	look(h.path("agent.log"))
	filepath.WalkDir(h.path("data"), func(file string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			look(file)
		}
		return err
	})
}
