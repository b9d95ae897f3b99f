package http2

import (
	"net"
	"os/exec"
	"strings"
	"testing"
)

// TestSpec runs the conformance suite h2spec, where it is installed, strict, against a server of this package.
func TestSpec(t *testing.T) {
	bin, err := exec.LookPath("h2spec")
	if err != nil {
		t.Skip("h2spec is not installed: go install github.com/summerwind/h2spec/cmd/h2spec@latest")
	}
	host, port, err := net.SplitHostPort(listen(t, Options{}, echo, func(error) {}))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), bin, "--strict", "-h", host, "-p", port).CombinedOutput()
	text := strings.TrimSpace(string(out))
	t.Log(text[strings.LastIndex(text, "\n")+1:])
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
