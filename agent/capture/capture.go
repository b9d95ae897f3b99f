// Package capture has the kernel lead calls of declared addresses to the agent: one table of nftables, which this package alone writes. Imported by
// cmd/meshagent, for a process of its own: the agent has no privilege for it.
//
// Guarantees: only new TCP connections that this host's programs open to an address and port of a Set are touched, and none of the agent's own; what comes
// from outside, and what is open already, never. The table is written whole, so that writing it again changes nothing, and removed whole. Addresses
// are in it for 15 s at most and are renewed while the agent answers: when it ends, or this process does, calls go their own way again.
//
// Source: nft(8); Linux nf_nat, hook output.
package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// The times of a Runner.
const (
	lifetime = 15 * time.Second // of an address in the kernel that is not renewed
	renew    = 5 * time.Second
	ask      = time.Second // how often the agent is asked, and how long it may take
	nftTime  = 5 * time.Second
	patience = 1 // asks that may fail one after the other before nothing is captured any more
)

// table is what nft calls ours.
const table = "inet meshagent"

// Target is an address whose calls are led to another. Both are of IPv4.
type Target struct{ From, To netip.AddrPort }

// Set is what is captured, and whose calls are not.
type Set struct {
	User    uint64 // whose calls go their own way: the agent's
	Targets []Target
}

// install is the text by which nft writes the table anew, in one transaction. Its chain stands before those of others, at -100: where an address of a
// connection is translated first counts.
func install(s Set) string {
	return uninstall + fmt.Sprintf(`table %s {
	map targets {
		type ipv4_addr . inet_service : ipv4_addr . inet_service
		flags timeout
	}
	chain output {
		type nat hook output priority -110; policy accept;
		meta skuid != %d dnat ip to ip daddr . tcp dport map @targets
	}
}
`, table, s.User) + elements(s.Targets)
}

// uninstall is the text by which nft removes the table, also where there is none.
const uninstall = "add table " + table + "\ndelete table " + table + "\n"

// refill is the text by which nft writes the addresses anew, in one transaction.
func refill(ts []Target) string { return "flush map " + table + " targets\n" + elements(ts) }

func elements(ts []Target) string {
	var b strings.Builder
	for _, t := range ts {
		fmt.Fprintf(&b, "add element %s targets { %s . %d timeout %ds : %s . %d }\n", table, t.From.Addr(), t.From.Port(), lifetime/time.Second, t.To.Addr(), t.To.Port())
	}
	return b.String()
}

// Runner keeps the table as the agent says.
type Runner struct {
	Ask func(ctx context.Context) (Set, error) // the agent
	Nft func(ctx context.Context, text string) error
	Log *slog.Logger // not nil
}

// Run writes the table and keeps it until ctx ends; then it removes it. Its error is that of the first write: nothing is captured, then.
func (r *Runner) Run(ctx context.Context) error {
	var now Set // in the kernel
	var wrote time.Time
	if err := r.nft(ctx, install(now)); err != nil {
		return err
	}
	defer func() {
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), nftTime)
		defer cancel()
		if err := r.Nft(rctx, uninstall); err != nil {
			r.Log.Error("the table is still there: remove it with `meshagent capture uninstall`", "err", err)
		}
	}()
	failed, said := 0, ""
	say := func(what string, err error) {
		if err == nil {
			said = ""
		} else if text := what + err.Error(); text != said {
			said = text
			r.Log.Warn(what, "err", err)
		}
	}
	for tick := time.NewTicker(ask); ; {
		want, err := r.ask(ctx)
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case err == nil:
			failed = 0
		case failed < patience:
			failed++
			want, err = now, nil // it may be handing over to another process
		default:
			want = Set{User: now.User}
		}
		what, why := "nothing is captured: the agent does not answer", err
		same := slices.Equal(want.Targets, now.Targets)
		if !same || want.User != now.User || len(now.Targets) > 0 && time.Since(wrote) >= renew {
			if err := r.write(ctx, now, want); err != nil {
				what, why = "what is captured is not written; it is tried again", err
			} else {
				if !same {
					r.Log.Info("captured addresses", "addresses", len(want.Targets))
				}
				now, wrote = want, time.Now()
			}
		}
		say(what, why)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// write makes what is in the kernel what is wanted.
func (r *Runner) write(ctx context.Context, now, want Set) error {
	if want.User == now.User && r.nft(ctx, refill(want.Targets)) == nil {
		return nil
	}
	return r.nft(ctx, install(want)) // also where somebody has removed the table: a firewall that begins anew does
}

func (r *Runner) ask(ctx context.Context) (Set, error) {
	ctx, cancel := context.WithTimeout(ctx, ask)
	defer cancel()
	return r.Ask(ctx)
}

func (r *Runner) nft(ctx context.Context, text string) error {
	ctx, cancel := context.WithTimeout(ctx, nftTime)
	defer cancel()
	return r.Nft(ctx, text)
}

// Uninstall removes the table, if there is one.
func Uninstall(ctx context.Context) error { return Nft(ctx, uninstall) }

// Nft runs nft(8) on a text, which does all of it or nothing. It needs CAP_NET_ADMIN.
func Nft(ctx context.Context, text string) error {
	c := exec.CommandContext(ctx, "nft", "-f", "-")
	c.Stdin = strings.NewReader(text)
	out, err := c.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("nft is not there: install the package nftables")
	}
	if err != nil {
		if line, _, _ := bytes.Cut(bytes.TrimSpace(out), []byte("\n")); len(line) > 0 {
			return fmt.Errorf("nft: %s", line)
		}
		return fmt.Errorf("nft: %w", err)
	}
	return nil
}
