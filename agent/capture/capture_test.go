package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func target(from, to string) Target {
	return Target{netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)}
}

func TestTexts(t *testing.T) {
	s := Set{User: 995, Targets: []Target{target("10.0.0.9:80", "127.64.0.10:80"), target("10.0.0.9:5432", "127.64.0.11:5432")}}
	const elements = `add element inet meshagent targets { 10.0.0.9 . 80 timeout 15s : 127.64.0.10 . 80 }
add element inet meshagent targets { 10.0.0.9 . 5432 timeout 15s : 127.64.0.11 . 5432 }
`
	for got, want := range map[string]string{
		install(s): `add table inet meshagent
delete table inet meshagent
table inet meshagent {
	map targets {
		type ipv4_addr . inet_service : ipv4_addr . inet_service
		flags timeout
	}
	chain output {
		type nat hook output priority -110; policy accept;
		meta skuid != 995 dnat ip to ip daddr . tcp dport map @targets
	}
}
` + elements,
		refill(s.Targets): "flush map inet meshagent targets\n" + elements,
		refill(nil):       "flush map inet meshagent targets\n",
		uninstall:         "add table inet meshagent\ndelete table inet meshagent\n",
	} {
		if got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
}

// kernel is what the texts make of nftables, as far as they go.
type kernel struct {
	there bool
	user  string
	ends  map[string]time.Time // of elements
	wrote int
	fail  error
}

func (k *kernel) nft(_ context.Context, text string) error {
	if k.fail != nil {
		return k.fail
	}
	k.wrote++
	if strings.HasPrefix(text, uninstall) {
		k.there, k.ends = false, map[string]time.Time{}
	}
	for l := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(l, "table "):
			k.there = true
		case strings.Contains(l, "skuid"):
			fmt.Sscanf(strings.TrimSpace(l), "meta skuid != %s", &k.user)
		case strings.HasPrefix(l, "flush "):
			if !k.there {
				return errors.New("No such file or directory")
			}
			k.ends = map[string]time.Time{}
		case strings.HasPrefix(l, "add element "):
			var a, to string
			var port, toPort, left int
			if _, err := fmt.Sscanf(l, "add element inet meshagent targets { %s . %d timeout %ds : %s . %d }", &a, &port, &left, &to, &toPort); err != nil {
				return err
			}
			k.ends[fmt.Sprintf("%s:%d>%s:%d", a, port, to, toPort)] = time.Now().Add(time.Duration(left) * time.Second)
		}
	}
	return nil
}

// has says what is captured now.
func (k *kernel) has() string {
	if !k.there {
		return "no table"
	}
	n := 0
	for _, end := range k.ends {
		if time.Now().Before(end) {
			n++
		}
	}
	return fmt.Sprintf("%d for all but %s", n, k.user)
}

// TestRunner plays an agent and a firewall that come and go.
func TestRunner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &kernel{}
		var mu sync.Mutex // guards k and what follows
		set, away, hangs := Set{User: 995}, error(nil), false
		var log bytes.Buffer
		r := Runner{Log: slog.New(slog.NewTextHandler(&log, nil)), Nft: func(ctx context.Context, text string) error {
			mu.Lock()
			defer mu.Unlock()
			return k.nft(ctx, text)
		}, Ask: func(ctx context.Context) (Set, error) {
			mu.Lock()
			defer mu.Unlock()
			if hangs {
				mu.Unlock()
				<-ctx.Done()
				mu.Lock()
				return Set{}, ctx.Err()
			}
			return set, away
		}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		// after lets time pass. The caller holds mu otherwise.
		after := func(d time.Duration, want string) {
			t.Helper()
			mu.Unlock()
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			if got := k.has(); got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		mu.Lock()
		after(100*time.Millisecond, "0 for all but 995")
		after(time.Minute, "0 for all but 995")
		if k.wrote != 2 {
			t.Errorf("written %d times though there is nothing", k.wrote)
		}
		set.Targets = []Target{target("10.0.0.9:80", "127.64.0.10:80")}
		after(time.Second, "1 for all but 995")
		before := k.wrote
		for range 60 {
			after(time.Second, "1 for all but 995")
		}
		if n := k.wrote - before; n < 11 || n > 13 {
			t.Errorf("written %d times in a minute", n)
		}
		away = errors.New("no agent answers")
		after(time.Second, "1 for all but 995") // it may be handing over
		away = nil
		after(time.Second, "1 for all but 995")
		away = errors.New("no agent answers")
		after(2*time.Second, "0 for all but 995")
		after(time.Hour, "0 for all but 995")
		away = nil
		after(time.Second, "1 for all but 995")
		hangs = true
		after(4*time.Second, "0 for all but 995")
		hangs = false
		after(2*time.Second, "1 for all but 995")
		k.there = false // a firewall begins anew
		after(renew+time.Second, "1 for all but 995")
		set.User = 4
		after(time.Second, "1 for all but 4")
		k.fail = errors.New("nft: Operation not permitted") // whatever is wrong, and as if this process had ended
		after(lifetime+time.Second, "0 for all but 4")
		k.fail = nil
		after(time.Second, "1 for all but 4")
		mu.Unlock()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := k.has(); got != "no table" {
			t.Errorf("at the end %s", got)
		}
		for _, once := range []string{"what is captured is not written"} {
			if n := strings.Count(log.String(), once); n != 1 {
				t.Errorf("%q is said %d times:\n%s", once, n, &log)
			}
		}
		if n := strings.Count(log.String(), "the agent does not answer"); n != 2 {
			t.Errorf("that the agent does not answer is said %d times:\n%s", n, &log)
		}
	})
}

// TestRunnerWithoutRights: what cannot be written at first is an error, and not tried for ever.
func TestRunnerWithoutRights(t *testing.T) {
	k := &kernel{fail: errors.New("nft: Operation not permitted")}
	r := Runner{Nft: k.nft, Log: slog.New(slog.DiscardHandler), Ask: func(context.Context) (Set, error) { t.Error("the agent is asked"); return Set{}, nil }}
	if err := r.Run(t.Context()); err == nil || err.Error() != "nft: Operation not permitted" {
		t.Error(err)
	}
}
