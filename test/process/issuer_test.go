//go:build process && linux

package process

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/test/lab"
)

// TestLoginAtARealIssuer: the device flow with zitadel/oidc, a certified implementation of OpenID Connect, as the user's browser sees it.
func TestLoginAtARealIssuer(t *testing.T) {
	dir := t.TempDir()
	file := fileIn(t, dir)
	program := filepath.Join(dir, "issuer")
	if out, err := exec.Command("go", "-C", "../..", "build", "-modfile=tool.mod", "-o", program, "./test/process/testdata/issuer").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	issuer := fmt.Sprintf("http://localhost:%d/", port)
	users := file("users.json", `{"alice": {"ID": "alice", "Username": "alice", "Password": "verysecure"}}`)
	logs, err := os.Create(filepath.Join(dir, "issuer.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	defer lab.Spawn(t, logs, program, fmt.Sprint(port), users).Kill()
	browser := &http.Client{Timeout: 10 * time.Second}
	if browser.Jar, err = cookiejar.New(nil); err != nil {
		t.Fatal(err)
	}
	lab.Await(t, "the issuer", 20*time.Second, func() error {
		resp, err := browser.Get(issuer + ".well-known/openid-configuration")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	c := lab.NewConfigured(t, 125, 1, 0, func(int) string {
		return fmt.Sprintf(`api: {listen: "ADDR:8501", tls: {certificate: mesh}, oidc: {issuer: %q, clientID: meshagent, scopes: [openid], roles: [{claim: sub, value: alice, role: viewer}]}}
tokens: {allow: [localhost]}
`, issuer)
	})
	server := c.Host(1)
	at := far{t, server, []string{"--server", "https://" + server.Addr() + ":8501", "--ca", file("mesh.pem", server.CLI("ca", "export-bundle"))},
		[]string{"XDG_CONFIG_HOME=" + filepath.Join(dir, "config"), "MESHAGENT_TOKEN="}}
	login := server.Command(append([]string{"login", "--client-secret-file", file("secret", "secret")}, at.args...)...)
	login.Env = append(login.Env, at.env...)
	said, err := login.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := login.Start(); err != nil {
		t.Fatal(err)
	}
	code := ""
	lines := bufio.NewScanner(said)
	for code == "" && lines.Scan() {
		if m := regexp.MustCompile(`^and enter (\S+)$`).FindStringSubmatch(lines.Text()); m != nil {
			code = m[1]
		}
	}
	rest := make(chan string, 1)
	go func() { b, _ := io.ReadAll(said); rest <- lines.Text() + string(b) }()
	page := func(resp *http.Response, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s %s, %v", resp.Status, b, err)
		}
		return string(b)
	}
	if p := page(browser.PostForm(issuer+"device/login", url.Values{"user_code": {code}, "username": {"alice"}, "password": {"verysecure"}})); !strings.Contains(p, "Welcome back alice") {
		t.Errorf("code %q: %s", code, p)
	}
	page(browser.Get(issuer + "device/confirm?action=allowed"))
	errs := <-rest
	if err := login.Wait(); err != nil {
		t.Fatalf("%v: %s", err, errs)
	}
	at.shows("alice@"+issuer+" by login", "whoami")
	at.shows("host1", "members")
	at.refuses("may not write:policies", "apply", "-f", file("rule.yaml", aRule))
	recorded(t, server, filepath.Join(filepath.Dir(server.Socket()), "data", "audit.log"), `"what":"authorize","who":"alice@`+issuer+`","role":"viewer"`, `"result":"forbidden"`)
	at.shows("logged out", "logout")
	at.refuses("this call needs an API token or a certificate", "status")
}
