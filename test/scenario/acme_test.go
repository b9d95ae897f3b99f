//go:build process && linux

package scenario

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/meshagent/meshagent/test/lab"
)

// customerKey is that of the external account "customer".
const customerKey = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"

// acmeServer NAME [bound] [SECONDS]: starts Pebble, Let's Encrypt's server for tests, at an address of no host. It asks at ports 8090 and 8443, and looks
// names up at the name server; with bound it wants accounts to be bound to the key of keyID "customer"; its certificates live so long.
// $NAME is what stands behind `server:` of a Certificate, with the caBundle, and NAME.pem the root of its certificates.
func (w *world) acmeServer(args []string) (string, error) {
	if len(args) < 1 || len(args) > 3 || w.dns == nil || w.c == nil {
		return "", errors.New("usage: acmeserver NAME [bound] [SECONDS], behind nameserver and mesh")
	}
	name, bound, life := args[0], len(args) > 1 && args[1] == "bound", 0
	if last := args[len(args)-1]; len(args) > 1 && last != "bound" {
		var err error
		if life, err = strconv.Atoi(last); err != nil {
			return "", err
		}
	}
	if _, err := w.certificate([]string{"acmeserver", w.outside()}); err != nil {
		return "", err
	}
	port := 14000 + 2*len(w.acme)
	w.acme = append(w.acme, name)
	w.c.Secret("the key of an external account", customerKey)
	at, manage := fmt.Sprintf("%s:%d", w.outside(), port), fmt.Sprintf("%s:%d", w.outside(), port+1)
	cfg, err := json.Marshal(map[string]any{"pebble": map[string]any{"listenAddress": at, "managementListenAddress": manage,
		"certificate": w.file("acmeserver.pem"), "privateKey": w.file("acmeserver.key"), "httpPort": 8090, "tlsPort": 8443, "keyAlgorithm": "ecdsa",
		"externalAccountBindingRequired": bound, "externalAccountMACKeys": map[string]string{"customer": customerKey},
		"profiles": map[string]any{"default": map[string]any{"description": "", "validityPeriod": life}}}})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(w.file(name+".json"), cfg, 0o600); err != nil {
		return "", err
	}
	program, err := exec.Command("go", "-C", "../..", "tool", "-modfile=tool.mod", "-n", "pebble").Output()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(strings.TrimSpace(string(program)), "-config", w.file(name+".json"), "-dnsserver", w.dns.srv.PacketConn.LocalAddr().String())
	var log bytes.Buffer // is read when it has ended
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=5")
	if err := cmd.Start(); err != nil {
		return "", err
	}
	w.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if w.t.Failed() {
			w.t.Logf("%s:\n%s", name, &log)
		}
	})
	ca, err := os.ReadFile(w.file("ca.pem"))
	if err != nil {
		return "", err
	}
	w.setenv(name, fmt.Sprintf("https://%s/dir\n    caBundle: %s", at, strconv.Quote(string(ca))))
	return "", w.fetchRoot(name, manage, ca)
}

// fetchRoot waits until an ACME server runs, and writes the root of its certificates.
func (w *world) fetchRoot(name, at string, ca []byte) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
	var root []byte
	lab.Await(w.t, name+" runs", 20*time.Second, func() error {
		ctx, cancel := context.WithTimeout(w.t.Context(), most)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, "GET", "https://"+at+"/roots/0", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		root, err = io.ReadAll(resp.Body)
		return err
	})
	return os.WriteFile(w.file(name+".pem"), root, 0o600)
}
