//go:build process && linux

package process

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/meshagent/meshagent/test/lab"
)

// TestS65Canaries: secrets are put through every door of a mesh, right and wrong, and found in nothing that anybody is shown, that is logged, or stored
// in the clear. The end of this and of every other test with a lab looks into the agents' logs and data directories.
func TestS65Canaries(t *testing.T) {
	c := lab.NewConfigured(t, 121, 1, 2, func(int) string { return "" })
	canary := func(what string) string {
		s := "canary" + strings.ToLower(rand.Text())
		c.Secret(what, s)
		return s
	}
	first := c.Host(1)
	var shown bytes.Buffer
	// run shows what a user sees who is root of a host; wrong calls are as good as right ones.
	run := func(h *lab.Host, stdin string, env []string, args ...string) {
		cmd := h.Command(args...)
		cmd.Env = append(cmd.Env, env...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &shown, &shown
		cmd.Run()
	}
	// Tokens for the API and for joining.
	api := strings.TrimSpace(first.CLI("apitoken", "create", "deploy", "--role", "operator"))
	c.Secret("a token of the API", api)
	join := strings.TrimSpace(first.CLI("token", "create"))
	c.Secret("a join token that is not used", join)
	for _, token := range []string{c.Admin, api, api[:len(api)-1], join, canary("a token of nobody")} {
		for _, h := range c.Hosts {
			run(h, "", []string{"MESHAGENT_TOKEN=" + token}, "token", "list")
			run(h, "", []string{"MESHAGENT_TOKEN=" + token}, "apitoken", "create", "more", "--role", "viewer")
			run(h, "", []string{"MESHAGENT_TOKEN=" + token, "MESHAGENT_ADDR=http://" + h.Addr() + ":8500"}, "status")
		}
		run(first, token, nil, "join", "-", "--config", first.Write("other/agent.yaml", "name: other\naddress: 127.0.0.1\ndataDir: "+c.Dir+"/other\n"), "--systemd=false")
	}
	// Secrets that are of no use, and one that is.
	certificate, key := canary("the certificate of a Secret"), canary("the key of a Secret")
	b64 := base64.StdEncoding.EncodeToString
	for _, s := range []string{
		"stringData: {tls.crt: " + certificate + ", tls.key: " + key + "}", "data: {tls.crt: " + b64([]byte(certificate)) + ", tls.key: " + b64([]byte(key)) + "}",
		"data: {tls.key: " + key + "!}", "stringDate: {tls.key: " + key + "}", "stringData: {tls.key: {" + key + ": 1}}", "stringData: {tls.key: [" + key + "]}",
	} {
		for _, verb := range [][]string{{"validate", "-f", "-"}, {"diff", "-f", "-"}, {"apply", "-f", "-"}, {"analyze", "-f", "-"}} {
			run(first, "apiVersion: v1\nkind: Secret\nmetadata: {name: shop}\ntype: kubernetes.io/tls\n"+s+"\n", nil, verb...)
		}
	}
	cert, private := pair(t)
	c.Secret("the key of a Secret in use", string(private[36:68]))
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	c.Secret("a line of it", strings.Split(string(keyPEM), "\n")[1])
	run(first, fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: shop}\ntype: kubernetes.io/tls\ndata: {tls.crt: %s, tls.key: %s}\n", b64(cert), b64(keyPEM)), nil, "apply", "-f", "-", "--wait")
	// What users of services bring, to a service that lets them in, one that does not, and one that takes tokens.
	serve(c.Host(2), "v1")
	c.Host(3).Calls()
	c.Host(3).AwaitUsable("web", 1)
	client := newClient(t, c.Host(3))
	for _, policy := range []string{"", denyWeb, takesTokens} {
		if policy != "" {
			first.CLI("apply", "-f", first.Write("policy.yaml", policy), "--wait")
		}
		for _, u := range []string{"http://web.service.mesh:8080/?access_token=", "http://web.service.mesh:8080/x?password="} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, u+canary("a parameter"), strings.NewReader(canary("a body")))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"Authorization", "Proxy-Authorization", "Cookie", "X-Api-Key"} {
				r.Header.Set(name, "Bearer "+canary("the header "+name))
			}
			res, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
	}
	// All that there is to be seen.
	for _, h := range c.Hosts {
		for _, verb := range []string{"status -o json", "members -o json", "services -o json", "services show web -o json", "services local", "get all", "get secret -o yaml", "get secret shop -o yaml",
			"get requestauthentication -o yaml", "token list -o json", "apitoken list -o json", "whoami", "ca status -o json", "keyring status -o json", "audit verify", "analyze", "explain --from web --to web GET /"} {
			run(h, "", []string{"MESHAGENT_TOKEN=" + c.Admin}, strings.Fields(verb)...)
		}
		for _, path := range []string{"/metrics", "/v1/status", "/v1/policies"} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+h.Addr()+":8500"+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(&shown, res.Body)
			res.Body.Close()
		}
	}
	for _, form := range []string{api, base64.RawURLEncoding.EncodeToString([]byte("x" + key + "y")), b64(keyPEM)} {
		if len(c.Leaks([]byte("x"+form+"y"))) == 0 {
			t.Errorf("%s would not be found", form)
		}
	}
	for _, what := range c.Leaks(shown.Bytes()) {
		t.Errorf("%s is shown", what)
	}
	if t.Failed() {
		t.Logf("%s", shown.Bytes())
	}
	for _, word := range []string{"secret shop created", "deploy", "meshagent_requests_total", `"web"`} { // else it was not asked well
		if !strings.Contains(shown.String(), word) {
			t.Errorf("nothing that was shown has %q", word)
		}
	}
}

// pair makes a certificate in PEM, and its key.
func pair(t *testing.T) (cert, key []byte) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"shop.example.com"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, x, x, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	key, err = x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key
}

const denyWeb = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {selector: {matchLabels: {app: web}}}
`

const takesTokens = `apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: login}
spec:
  selector: {matchLabels: {app: web}}
  jwtRules: [{issuer: "https://login.example.com", fromHeaders: [{name: authorization, prefix: "Bearer "}], fromCookies: [session], jwks: '{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "key-1", "x": "e59_UTWxLqQ2LKsvjtRzXTw1-xwcBl_jfpTNRCFKQxI"}]}'}]
`
