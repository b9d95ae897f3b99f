//go:build process && linux

package conformance

import (
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// h2specCases is how many cases h2spec has, with those that only --strict runs.
const h2specCases = 146

var h2specExceptions = exceptions{
	"http2/3.5/2": "the port speaks HTTP/1, too: what is no preface of HTTP/2 gets 400 in HTTP/1 and the connection's end; h2spec takes the 400 for a frame",
}

// TestH2spec: RFC 9113 and RFC 7541, case by case, at a service's address.
func TestH2spec(t *testing.T) {
	app, caller := twoHops(t, 130)
	h2spec := tool(t, "github.com/summerwind/h2spec/cmd/h2spec")
	for _, protocol := range []string{"http", "http2"} {
		t.Run("to "+protocol, func(t *testing.T) {
			service := "h2spec-" + protocol
			serve(t, app, service, protocol, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				io.WriteString(w, "an answer of some bytes, since cases open windows byte by byte\n")
			}))
			to := caller.Reach(service)
			report := filepath.Join(t.TempDir(), "junit.xml")
			cmd := exec.CommandContext(t.Context(), h2spec, "--strict", "-h", to.Addr().String(), "-p", strconv.Itoa(int(to.Port())), "-j", report)
			out, err := cmd.CombinedOutput() // an error when a case fails: the report says which
			ran, failed := readJUnit(t, report)
			if ran != h2specCases {
				t.Errorf("%d cases ran, want %d: %v\n%s", ran, h2specCases, err, out)
			}
			h2specExceptions.judge(t, ran, failed)
		})
	}
}

// readJUnit returns how many cases ran, and what the failed ones say, by group and number.
func readJUnit(t *testing.T, file string) (ran int, failed map[string]string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var report struct {
		Suites []struct {
			Package string `xml:"package,attr"`
			Cases   []struct {
				Text    string  `xml:"classname,attr"`
				Failure *string `xml:"failure"`
				Error   *string `xml:"error"`
				Skipped *string `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(text, &report); err != nil {
		t.Fatal(err)
	}
	failed = map[string]string{}
	for _, s := range report.Suites {
		for i, c := range s.Cases {
			ran++
			for _, why := range []*string{c.Failure, c.Error, c.Skipped} {
				if why != nil {
					failed[fmt.Sprintf("%s/%d", s.Package, i+1)] = c.Text + ":\n" + *why
				}
			}
		}
	}
	return ran, failed
}
