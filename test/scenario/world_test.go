//go:build process && linux

package scenario

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/test/lab"
)

// world is the mesh of one script.
type world struct {
	t       testing.TB
	dir     string // of the script's files
	setenv  func(name, value string)
	c       *lab.Cluster
	apps    map[string]*app
	callers map[string]*lab.Host // by service; a host under its own name calls as nobody but itself
	as      string
	ca      *authority
	dns     *nameServer
	acme    []string   // names of ACME servers
	new     []instance // which not every host has been seen to know

	answers []answer // of the last calls
	slowest time.Duration
	fastest time.Duration
	printed map[string][]string // by prompt and command line
}

type instance struct {
	service mesh.ServiceName
	id      string
	checked bool
}

// answer is what a call brought.
type answer struct {
	text string
	err  error
}

func (a answer) String() string {
	if a.err != nil && a.text == "" {
		return a.err.Error() + "\n"
	}
	return a.text
}

// do runs a command of the script and returns its output.
func (w *world) do(args []string) (string, error) {
	if len(args) == 0 {
		return "", errors.New("there is no command")
	}
	f := w.commands()[args[0]]
	if f == nil {
		return "", fmt.Errorf("%q is no command", args[0])
	}
	prompt := "$ "
	if slices.Contains([]string{"curl", "grpcurl", "nc"}, args[0]) {
		prompt = w.as + "$ "
	}
	out, err := f(args[1:])
	line := prompt + strings.Join(args, "\x00")
	w.printed[line] = append(w.printed[line], out)
	return out, err
}

// commands are those of the scripts beside testscript's own. README.md describes them.
func (w *world) commands() map[string]func(args []string) (string, error) {
	return map[string]func([]string) (string, error){
		"mesh": w.mesh, "run": w.run, "as": w.setCaller, "meshagent": w.meshagent, "on": w.on,
		"curl": w.one("curl"), "grpcurl": w.one("grpcurl"), "nc": w.one("nc"), "calls": w.many, "share": w.share, "took": w.took, "await": w.await,
		"answers": w.behave, "requests": w.requests, "forget": w.forget, "accesslog": w.accessLog, "metrics": w.metrics,
		"appdown": w.appDown, "appup": w.appUp, "hostdown": w.hostDown, "hoststop": w.hostStop, "hostup": w.hostUp,
		"replace": w.replace, "certificate": w.certificate,
		"nameserver": w.nameServer, "names": w.names, "nameserverdown": w.nameServerDown,
		"acmeserver": w.acmeServer,
	}
}

// file is the path of a file of the script.
func (w *world) file(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(w.dir, name)
}

// mesh N: forms a mesh of N hosts; host1 is the server. A file host2.yaml of the script is added to the configuration of host2.
func (w *world) mesh(args []string) (string, error) {
	if len(args) != 1 || w.c != nil {
		return "", errors.New("usage: mesh N, once in a script")
	}
	n, err := strconv.Atoi(args[0])
	if err != nil || n < 1 || n > 15 {
		return "", fmt.Errorf("%q: from 1 to 15 hosts are possible", args[0])
	}
	w.c = lab.NewConfigured(w.t, 130, 1, n-1, func(host int) string {
		b, _ := os.ReadFile(w.file(fmt.Sprintf("host%d.yaml", host)))
		return string(b)
	})
	for i, h := range w.c.Hosts {
		w.callers[fmt.Sprintf("host%d", i+1)] = h
		w.setenv(fmt.Sprintf("HOST%d", i+1), h.Addr())
	}
	w.setenv("OUTSIDE", w.outside())
	return "", nil
}

// outside is an address of the mesh's net that no host has.
func (w *world) outside() string {
	a := w.c.Host(1).Addr()
	return a[:strings.LastIndex(a, ".")] + ".200"
}

func (w *world) host(name string) (*lab.Host, error) {
	if w.c == nil {
		return nil, errors.New("there is no mesh yet")
	}
	n, err := strconv.Atoi(strings.TrimPrefix(name, "host"))
	if err != nil || n < 1 || n > len(w.c.Hosts) {
		return nil, fmt.Errorf("there is no host %q", name)
	}
	return w.c.Host(n), nil
}

// run SERVICE HOST [caller] [KEY=VALUE...]: starts an application and registers it; outside, it is started only.
func (w *world) run(args []string) (string, error) {
	if len(args) < 2 || w.c == nil {
		return "", errors.New("usage: run SERVICE HOST|outside [caller] [KEY=VALUE...], in a mesh")
	}
	service, at := args[0], args[1]
	opt := map[string]string{"protocol": "http", "port": "8080", "namespace": "default", "listen": "0"}
	labels := map[string]string{}
	caller := false
	for _, a := range args[2:] {
		k, v, ok := strings.Cut(a, "=")
		switch {
		case a == "caller":
			caller = true
		case !ok:
			return "", fmt.Errorf("%q is not KEY=VALUE", a)
		case slices.Contains([]string{"id", "protocol", "port", "namespace", "listen", "weight", "account", "check", "tls", "spiffe", "counts"}, k):
			opt[k] = v
		default:
			labels[k] = v
		}
	}
	id := opt["id"]
	if id == "" {
		id = strings.Trim(service+"-"+labels["version"], "-")
	}
	if w.apps[id] != nil {
		return "", fmt.Errorf("there is an instance %q already: give this one another id=", id)
	}
	a := &app{id: id, lines: opt["protocol"] == "tcp" || opt["protocol"] == "lines", grpc: opt["protocol"] == "grpc"}
	if n := opt["counts"]; n != "" {
		var err error
		if a.counts, err = strconv.Atoi(n); err != nil || a.counts < 1 || !a.grpc {
			return "", fmt.Errorf("counts=%s: a positive number, of an application with protocol=grpc", n)
		}
	}
	if opt["tls"] != "" {
		cfg, err := w.serverTLS(strings.Split(opt["tls"], ","))
		if err != nil {
			return "", err
		}
		a.tls = cfg
	}
	if opt["spiffe"] != "" {
		cfg, err := w.spiffeTLS(at, opt["spiffe"])
		if err != nil {
			return "", err
		}
		a.tls = cfg
	}
	addr := w.outside()
	h, err := w.host(at)
	if err == nil {
		addr = h.Addr()
	} else if at != "outside" {
		return "", err
	}
	a.listen = addr + ":" + opt["listen"]
	if err := a.start(); err != nil {
		return "", err
	}
	w.t.Cleanup(a.stop)
	w.apps[id] = a
	if at == "outside" {
		return "", nil
	}
	return "", w.register(h, a, service, opt, labels, caller)
}

func (w *world) register(h *lab.Host, a *app, service string, opt, labels map[string]string, caller bool) error {
	def := fmt.Sprintf("name: %s\nnamespace: %s\nid: %s\naddress: %s\nport: %s\nservicePort: %s\nprotocol: %s\n", service, opt["namespace"], a.id,
		h.Addr(), a.listen[strings.LastIndex(a.listen, ":")+1:], opt["port"], opt["protocol"])
	for _, k := range []string{"weight", "account"} {
		if opt[k] != "" {
			def += k + ": " + opt[k] + "\n"
		}
	}
	if opt["check"] != "" {
		def += "checks: [{type: " + opt["check"] + ", interval: 100ms}]\n"
	}
	if len(labels) > 0 {
		def += "labels:\n"
		for k, v := range labels {
			def += "  " + k + ": " + strconv.Quote(v) + "\n"
		}
	}
	if caller {
		for s, other := range w.callers {
			if other == h && !strings.HasPrefix(s, "host") {
				return fmt.Errorf("%s calls from this host already: the kernel could not tell them apart", s)
			}
		}
		def += "callers: {users: [\"" + strconv.Itoa(os.Getuid()) + "\"]}\n"
		w.callers[service] = h
	}
	if _, err := h.API.Register(w.t.Context(), []byte(def)); err != nil {
		return err
	}
	name, err := mesh.NewServiceName(opt["namespace"], service)
	if err != nil {
		return err
	}
	w.new = append(w.new, instance{name, a.id, opt["check"] != ""})
	return nil
}

// settle waits until every host that runs knows every instance.
func (w *world) settle() {
	for _, in := range w.new {
		for n, h := range w.c.Hosts {
			if h.Agent.Ended() {
				continue
			}
			w.c.Await(fmt.Sprintf("host%d knows %s", n+1, in.id), 20*time.Second, func() error {
				s, err := h.API.Service(w.t.Context(), in.service)
				for _, i := range s.Instances {
					if i.ID == in.id && (i.Usable || !in.checked) {
						return nil
					}
				}
				return cmpErr(err, "it does not")
			})
		}
	}
	w.new = nil
}

func cmpErr(err error, text string) error {
	if err == nil {
		err = errors.New(text)
	}
	return err
}

// as SERVICE|hostN|outside: who calls from now on.
func (w *world) setCaller(args []string) (string, error) {
	if len(args) != 1 || w.callers[args[0]] == nil && args[0] != "outside" {
		return "", fmt.Errorf("as %q: nobody of that name calls; a service that does is run with caller", args)
	}
	w.as = args[0]
	return "", nil
}

// meshagent ARG...: on host1.
func (w *world) meshagent(args []string) (string, error) {
	return w.on(append([]string{"host1", "meshagent"}, args...))
}

// on HOST meshagent ARG...
func (w *world) on(args []string) (string, error) {
	if len(args) < 3 || args[1] != "meshagent" {
		return "", errors.New("usage: on HOST meshagent ARG...")
	}
	h, err := w.host(args[0])
	if err != nil {
		return "", err
	}
	w.settle()
	name := args[0]
	args = args[2:]
	if args[0] == "apply" && !slices.Contains(args, "--wait") && !slices.Contains(args, "--dry-run") {
		return "", errors.New("apply without --wait: what follows would meet the old policy or the new one")
	}
	cmd := h.Command(args...)
	cmd.Dir = w.dir
	cmd.Env = append(cmd.Env, "SPIFFE_ENDPOINT_SOCKET="+w.workloadSocket(name))
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	err = cmd.Run()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("exit code %d: %s", e.ExitCode(), &bad)
	}
	for _, m := range registered.FindAllStringSubmatch(out.String(), -1) {
		name, err := mesh.NewServiceName(m[1], m[2])
		if err != nil {
			return "", err
		}
		w.new = append(w.new, instance{name, m[3], false}) // what follows is to meet it everywhere
	}
	return out.String() + bad.String(), err
}

var registered = regexp.MustCompile(`(?m)^service ([a-z0-9-]+)/([a-z0-9-]+) registered with the id (\S+)$`)

// one is a single call.
func (w *world) one(tool string) func([]string) (string, error) {
	return func(args []string) (string, error) {
		w.settle()
		c, err := w.newCaller(append([]string{tool}, args...))
		if err != nil {
			return "", err
		}
		defer c.close()
		begin := time.Now()
		a := answer{}
		a.text, a.err = c.call(w.t.Context())
		w.fastest = time.Since(begin)
		w.slowest = w.fastest
		w.answers = []answer{a}
		out := a.text
		if cu, ok := c.(*curl); ok && !cu.head {
			_, out, _ = strings.Cut(out, "\n\n")
		}
		return out, a.err
	}
}

// many: calls [-c WORKERS] [-at N 'COMMAND'] N CALL...
func (w *world) many(args []string) (string, error) {
	workers, at, event := 1, -1, ""
	for len(args) > 1 && strings.HasPrefix(args[0], "-") {
		var err error
		switch {
		case args[0] == "-c":
			workers, err = strconv.Atoi(args[1])
			args = args[2:]
		case args[0] == "-at" && len(args) > 2:
			at, err = strconv.Atoi(args[1])
			event, args = args[2], args[3:]
		default:
			err = fmt.Errorf("%s is no option of calls", args[0])
		}
		if err != nil {
			return "", err
		}
	}
	if len(args) < 2 {
		return "", errors.New("usage: calls [-c WORKERS] [-at N COMMAND] N curl|grpcurl|nc ARG...")
	}
	n, err := strconv.Atoi(args[0])
	if err != nil || n < 1 || workers < 1 || workers > n {
		return "", fmt.Errorf("%d workers for %q calls", workers, args[0])
	}
	w.settle()
	w.answers = make([]answer, n)
	times := make([]time.Duration, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	var eventErr error
	for range workers {
		c, err := w.newCaller(args[1:])
		if err != nil {
			return "", err
		}
		wg.Go(func() {
			defer c.close()
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				if int(i) == at {
					_, eventErr = w.do(strings.Fields(event))
				}
				begin := time.Now()
				w.answers[i].text, w.answers[i].err = c.call(w.t.Context())
				times[i] = time.Since(begin)
			}
		})
	}
	wg.Wait()
	w.fastest, w.slowest = slices.Min(times), slices.Max(times)
	return w.table(), eventErr
}

// table counts the answers by their first line and that of the body.
func (w *world) table() string {
	count := map[string]int{}
	for _, a := range w.answers {
		head, body, _ := strings.Cut(a.String(), "\n\n")
		first, _, _ := strings.Cut(head, "\n")
		id, _, _ := strings.Cut(body, "\n")
		count[strings.TrimSpace(first+" "+id)]++
	}
	var lines []string
	for text, n := range count {
		lines = append(lines, fmt.Sprintf("%6d  %s\n", n, text))
	}
	slices.Sort(lines)
	slices.Reverse(lines)
	return strings.Join(lines, "")
}

// share PERCENT REGEX: so many of the last calls have an answer that matches, give or take five standard deviations of a draw; of 0 and
// 100 there is no deviation. `share PERCENT+-POINTS REGEX` says how much else it may be off.
func (w *world) share(args []string) (string, error) {
	if len(args) != 2 || len(w.answers) == 0 {
		return "", errors.New("usage: share PERCENT REGEX, behind a call")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	if err != nil {
		return "", err
	}
	percent, points, given := strings.Cut(args[0], "+-")
	want, err := strconv.ParseFloat(percent, 64)
	if err != nil {
		return "", err
	}
	n := float64(len(w.answers))
	p := want / 100
	tolerance := 100 * 5 * math.Sqrt(p*(1-p)/n)
	if given {
		if tolerance, err = strconv.ParseFloat(points, 64); err != nil {
			return "", err
		}
	}
	match := 0
	var other answer
	for _, a := range w.answers {
		if re.MatchString(a.String()) {
			match++
		} else {
			other = a
		}
	}
	got := 100 * float64(match) / n
	if math.Abs(got-want) > tolerance+1e-9 {
		return "", fmt.Errorf("%.2f %% of %d answers match %s, not %g +- %.2f %%; another answer: %s", got, len(w.answers), args[1], want, tolerance, other)
	}
	return fmt.Sprintf("%.2f %%\n", got), nil
}

// took MIN MAX: every one of the last calls took at least and at most so long.
func (w *world) took(args []string) (string, error) {
	if len(args) != 2 || len(w.answers) == 0 {
		return "", errors.New("usage: took MIN MAX, behind a call")
	}
	least, err := time.ParseDuration(args[0])
	most, err2 := time.ParseDuration(args[1])
	if err := errors.Join(err, err2); err != nil {
		return "", err
	}
	if w.fastest < least || w.slowest > most {
		return "", fmt.Errorf("the calls took from %v to %v", w.fastest, w.slowest)
	}
	return "", nil
}

// await REGEX COMMAND...: until what the command shows matches; for commands that look, not for calls.
func (w *world) await(args []string) (string, error) {
	if len(args) < 2 || !slices.Contains([]string{"meshagent", "on", "requests", "accesslog", "metrics"}, args[1]) {
		return "", errors.New("usage: await REGEX meshagent|on|requests|accesslog|metrics ARG...")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	if err != nil {
		return "", err
	}
	var out string
	lab.Await(w.t, strings.Join(args, " "), 20*time.Second, func() error {
		var err error
		if out, err = w.do(args[1:]); err == nil && !re.MatchString(out) {
			err = fmt.Errorf("it shows\n%s", out[max(0, len(out)-3000):])
		}
		return err
	})
	return out, nil
}

func (w *world) app(args []string) (*app, []string, error) {
	if len(args) == 0 || w.apps[args[0]] == nil {
		return nil, nil, fmt.Errorf("%q: the first argument is the id of an instance", args)
	}
	return w.apps[args[0]], args[1:], nil
}

// answers ID [CODE] [times=N] [delay=D] [HEADER: VALUE...]: how an application answers from now on.
func (w *world) behave(args []string) (string, error) {
	a, args, err := w.app(args)
	if err != nil {
		return "", err
	}
	var how behaviour
	for _, arg := range args {
		k, v, pair := strings.Cut(arg, "=")
		name, value, header := strings.Cut(arg, ": ")
		switch {
		case header:
			how.header = append(how.header, [2]string{name, value})
		case pair && k == "times":
			how.times, err = strconv.Atoi(v)
		case pair && k == "delay":
			how.delay, err = time.ParseDuration(v)
		case !pair:
			how.code = arg
		default:
			err = fmt.Errorf("%q is none of CODE, times=N, delay=D, 'HEADER: VALUE'", arg)
		}
		if err != nil {
			return "", err
		}
	}
	a.answers(how)
	return "", nil
}

// requests ID: how many requests an application got since forget, and which.
func (w *world) requests(args []string) (string, error) {
	a, _, err := w.app(args)
	if err != nil {
		return "", err
	}
	seen := a.requests()
	return fmt.Sprintf("%d requests\n\n%s", len(seen), strings.Join(seen, "\n")), nil
}

// forget ID: what it got before does not count.
func (w *world) forget(args []string) (string, error) {
	a, _, err := w.app(args)
	if err == nil {
		a.forget()
	}
	return "", err
}

func (w *world) accessLog(args []string) (string, error) {
	if len(args) != 1 {
		return "", errors.New("usage: accesslog HOST")
	}
	h, err := w.host(args[0])
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(h.AccessLog())
	return string(b), err
}

func (w *world) metrics(args []string) (string, error) {
	if len(args) != 1 {
		return "", errors.New("usage: metrics HOST")
	}
	h, err := w.host(args[0])
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), most)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", "http://"+h.Addr()+":8500/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func (w *world) appDown(args []string) (string, error) {
	a, _, err := w.app(args)
	if err == nil {
		a.stop()
	}
	return "", err
}

func (w *world) appUp(args []string) (string, error) {
	a, _, err := w.app(args)
	if err == nil {
		err = a.start()
	}
	return "", err
}

func (w *world) atHost(args []string, f func(h *lab.Host)) (string, error) {
	if len(args) != 1 {
		return "", errors.New("usage: hostdown|hoststop|hostup HOST")
	}
	h, err := w.host(args[0])
	if err == nil {
		f(h)
	}
	return "", err
}

// hostdown HOST kills the agent of a host, and hoststop ends it; its applications live. hostup starts it again.
func (w *world) hostDown(args []string) (string, error) {
	return w.atHost(args, func(h *lab.Host) { h.Agent.Kill() })
}

func (w *world) hostStop(args []string) (string, error) {
	return w.atHost(args, func(h *lab.Host) { h.Agent.Stop(w.t) })
}

func (w *world) hostUp(args []string) (string, error) {
	return w.atHost(args, func(h *lab.Host) { h.Start() })
}

// replace FILE OLD NEW: in a file, what a page cannot know, such as an address of this machine.
func (w *world) replace(args []string) (string, error) {
	if len(args) != 3 {
		return "", errors.New("usage: replace FILE OLD NEW")
	}
	b, err := os.ReadFile(w.file(args[0]))
	if err == nil && !bytes.Contains(b, []byte(args[1])) {
		err = fmt.Errorf("%s has no %q", args[0], args[1])
	}
	if err != nil {
		return "", err
	}
	return "", os.WriteFile(w.file(args[0]), bytes.ReplaceAll(b, []byte(args[1]), []byte(args[2])), 0o600)
}

func (w *world) serverTLS(names []string) (*tls.Config, error) {
	pair, err := w.issue(names)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"}}, nil
}
