//go:build process && linux

package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// big is a body that needs many windows and buffers.
var big = bytes.Repeat([]byte("0123456789abcdef"), 10<<20/16)

// application answers what the cases of this package ask for.
func application() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s %s\n", r.Method, r.URL.Path) })
	mux.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(big)))
		w.Write(big)
	})
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		for n := range 10 {
			fmt.Fprintf(w, "part %d\n", n)
			w.(http.Flusher).Flush()
		}
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex() // HTTP/2 always is
		io.Copy(w, r.Body)
	})
	mux.HandleFunc("/count", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%d bytes, %v\n", n, err)
	})
	mux.HandleFunc("/trailers", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Checksum")
		io.WriteString(w, "a body\n")
		w.(http.Flusher).Flush() // else the body has a length, where curl stops reading
		w.Header().Set("X-Checksum", "c0ffee")
		w.Header().Set(http.TrailerPrefix+"X-Not-Announced", "too")
	})
	mux.HandleFunc("/hints", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		io.WriteString(w, "hinted\n")
	})
	mux.HandleFunc("/too-large", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close") // the rest of the body is not read
		http.Error(w, "it is too large", http.StatusRequestEntityTooLarge)
	})
	mux.HandleFunc("/truncated", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, "the beginning\n")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/truncated-stream", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "the beginning\n")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/range", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"one"`)
		http.ServeContent(w, r, "x.txt", time.Time{}, bytes.NewReader([]byte("0123456789")))
	})
	mux.HandleFunc("/nothing", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	return mux
}

// curlCase is a call of curl with -sS -i and what must come out. URL, FILE (10 MB) stand for themselves in args.
type curlCase struct {
	name string
	args string
	want []string // in the output, in this order, whatever the case of letters
	not  []string // not in it
	code int      // -1: the one of an answer that breaks off
}

// curlCases are those of each version of HTTP; VERSION stands for it in want.
var curlCases = []curlCase{
	{"get", "URL/x", []string{"VERSION 200", "GET /x\n"}, nil, 0},
	{"head", "--head URL/big", []string{"VERSION 200", "Content-Length: 10485760"}, []string{"abcdef"}, 0},
	{"options of the server", "-X OPTIONS --request-target * URL", []string{"VERSION 200"}, nil, 0},
	{"no content", "URL/nothing", []string{"VERSION 204"}, []string{"Transfer-", "Content-"}, 0},
	{"stream", "URL/stream", []string{"VERSION 200", "part 0\npart 1\n", "part 9\n"}, nil, 0},
	{"range", "-r 2-4 URL/range", []string{"VERSION 206", "234"}, []string{"0123"}, 0},
	{"not modified", `-H If-None-Match:"one" URL/range`, []string{"VERSION 304"}, []string{"0123"}, 0},
	{"download of 10 MB", "-o /dev/null -w %{size_download} URL/big", []string{"10485760"}, nil, 0},
	{"upload of 10 MB", "-T FILE URL/count", []string{"VERSION 200", "10485760 bytes, <nil>"}, nil, 0},
	{"both ways at once", "-o /dev/null -w %{size_download} --data-binary @FILE -H Expect: URL/echo", []string{"10485760"}, nil, 0},
}

// curlMore are those of one version of HTTP, which stands in args. Of an answer of HTTP/2 that breaks off curl shows nothing, and
// it cannot use a connection of HTTP/2 with prior knowledge twice (7.88 says "Error in the HTTP2 framing layer", to any server).
var curlMore = []curlCase{
	{"1.0 stream", "-0 URL/stream", []string{" 200", "part 0\npart 1\n", "part 9\n"}, []string{"Transfer-"}, 0},
	{"1.0 keep-alive", "-0 -H Connection:keep-alive URL/x", []string{" 200", "GET /x\n"}, nil, 0},
	{"1.0 answer before the body's end", "-0 --data-binary @FILE URL/too-large", []string{" 413", "it is too large"}, nil, 0},
	{"1.0 truncated", "-0 URL/truncated", []string{" 200", "the beginning"}, nil, -1},
	{"1.1 upload of unknown length", "--http1.1 -T - URL/count", []string{"HTTP/1.1 200", "10485760 bytes, <nil>"}, nil, 0},
	{"2 upload of unknown length", "--http2-prior-knowledge -T - URL/count", []string{"HTTP/2 200", "10485760 bytes, <nil>"}, nil, 0},
	{"1.1 answer before the body's end", "--http1.1 --data-binary @FILE URL/too-large", []string{"HTTP/1.1 413", "it is too large"}, nil, 0},
	{"1.1 truncated", "--http1.1 URL/truncated", []string{"HTTP/1.1 200", "the beginning"}, nil, -1},
	{"2 truncated", "--http2-prior-knowledge URL/truncated", nil, nil, -1},
	{"1.1 truncated stream", "--http1.1 URL/truncated-stream", []string{"HTTP/1.1 200", "the beginning"}, nil, -1},
	{"2 truncated stream", "--http2-prior-knowledge URL/truncated-stream", nil, nil, -1},
	{"1.1 two calls, one connection", "--http1.1 -w %{num_connects}\n URL/x URL/y", []string{"GET /x\n1\n", "GET /y\n0\n"}, nil, 0},
	{"1.1 200 calls, 20 at a time", "--http1.1 -Z --parallel-max 20 URL/[1-200]", []string{"GET /"}, nil, 0},
	{"1.1 expect", "--http1.1 --expect100-timeout 30 -H Expect:100-continue --data-binary @FILE URL/count",
		[]string{"HTTP/1.1 100", "HTTP/1.1 200", "10485760 bytes"}, nil, 0},
	{"1.1 expect refused", "--http1.1 --expect100-timeout 30 -H Expect:100-continue -w \nsent=%{size_upload} --data-binary @FILE URL/too-large",
		[]string{"HTTP/1.1 413", "it is too large", "sent=0"}, []string{"HTTP/1.1 100"}, 0},
	{"1.1 trailers", "--http1.1 URL/trailers", []string{"HTTP/1.1 200", "a body", "X-Checksum: c0ffee", "X-Not-Announced: too"}, nil, 0},
	{"2 trailers", "--http2-prior-knowledge URL/trailers", []string{"HTTP/2 200", "a body", "X-Checksum: c0ffee", "X-Not-Announced: too"}, nil, 0},
	{"1.1 early hints", "--http1.1 URL/hints", []string{"HTTP/1.1 103", "HTTP/1.1 200", "hinted"}, nil, 0},
	{"2 early hints", "--http2-prior-knowledge URL/hints", []string{"HTTP/2 103", "HTTP/2 200", "hinted"}, nil, 0},
	{"1.1 with an offer of h2c", "--http2 URL/x", []string{"HTTP/1.1 200", "GET /x\n"}, []string{"HTTP/1.1 101"}, 0},
	{"1.1 absolute form", "--http1.1 -x URL URL/x", []string{"HTTP/1.1 200", "GET /x\n"}, nil, 0},
}

// TestCurl: the client that most people have, in each version of HTTP (BEHAVIOURS 13-15, 17, 22).
func TestCurl(t *testing.T) {
	app, caller := twoHops(t, 134)
	curl := installed(t, "curl", "curl")
	file := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(file, big, 0o600); err != nil {
		t.Fatal(err)
	}
	var all []curlCase
	for _, c := range curlCases {
		for version, flag := range map[string]string{"": "-0", "HTTP/1.1": "--http1.1", "HTTP/2": "--http2-prior-knowledge"} {
			d := c
			d.name, d.args, d.want = strings.TrimLeft(flag, "-")+" "+c.name, flag+" "+c.args, nil
			for _, w := range c.want {
				d.want = append(d.want, strings.ReplaceAll(w, "VERSION", version))
			}
			all = append(all, d)
		}
	}
	all = append(all, curlMore...)
	for _, protocol := range []string{"http", "http2"} {
		serve(t, app, "curl-"+protocol, protocol, application())
		url := "http://" + caller.Reach("curl-"+protocol).String()
		for _, c := range all {
			t.Run(protocol+"/"+c.name, func(t *testing.T) { c.run(t, curl, url, file) })
		}
	}
}

func (c curlCase) run(t *testing.T, curl, url, file string) {
	args := []string{"-sS", "-i", "--max-time", "20"}
	for a := range strings.SplitSeq(c.args, " ") {
		args = append(args, strings.NewReplacer("URL", url, "FILE", file).Replace(a))
	}
	cmd := exec.CommandContext(t.Context(), curl, args...)
	cmd.Stdin = bytes.NewReader(big)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	code := 0
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		code = e.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	// The codes of answers that break off differ by version; 28 is a time-out.
	if c.code >= 0 && code != c.code || c.code < 0 && (code == 0 || code == 28) {
		t.Errorf("curl ended with code %d, want %d: %s", code, c.code, &stderr)
	}
	rest := bytes.ToLower(out) // fields have names in lower case after HTTP/2
	for _, w := range c.want {
		_, after, ok := bytes.Cut(rest, bytes.ToLower([]byte(w)))
		if !ok {
			t.Errorf("%q is missing in:\n%.2000s", w, out)
			break
		}
		rest = after
	}
	for _, n := range c.not {
		if bytes.Contains(bytes.ToLower(out), bytes.ToLower([]byte(n))) {
			t.Errorf("%q is in:\n%.2000s", n, out)
		}
	}
}
